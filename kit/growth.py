"""Models that grow and teach themselves while they train: what a recipe may say, and at what time.

The reference trainer's `growth_layers` and `growth_width`, pairs of elapsed share and size. The kit
reads them by itself, so that it can count a run's work without asking the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from kit.schemas import Problem

_LEAST_WIDTH = 24  # channels that drive the smear gate


def growth_problems(model: Mapping[str, Any], pretrain: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a recipe's growth, `model` being the finished one."""
    found = []
    for name, field in (("growth_layers", "n_layer"), ("growth_width", "n_embd")):
        table, path = pretrain[name], f"pretrain.{name}"
        if not table:
            continue
        shares, sizes = [share for share, _ in table], [size for _, size in table]
        if shares[0] != 0 or sorted(set(shares)) != shares:
            found.append(Problem(path, f"found shares {shares}", "must rise, from 0 on"))
        if sizes[-1] != model[field]:
            rule = f"must end with model.{field} ({model[field]})"
            found.append(Problem(path, f"ends with {sizes[-1]}", rule))
        elif sorted(set(sizes)) != sizes:
            found.append(Problem(path, f"found {sizes}", "must grow with every pair"))
        elif field == "n_embd":
            found += _width_problems(path, sizes, model)
    return found


def _width_problems(path: str, sizes: list[int], model: Mapping[str, Any]) -> list[Problem]:
    head = max(1, model["n_embd"] // model["n_head"])
    for size, following in pairwise(sizes):
        parts = (
            (size % head, f"must be a multiple of the heads' width ({head})"),
            (following % size, f"must divide the next width ({following})"),
            (
                model["n_kv_head"] * size % model["n_embd"],
                f"must leave whole key heads: a multiple of {model['n_embd']} / "
                f"model.n_kv_head ({model['n_kv_head']})",
            ),
            (
                model["ffn_width"] * size % model["n_embd"],
                f"must leave a whole model.ffn_width ({model['ffn_width']}): change one of them",
            ),
            (size < _LEAST_WIDTH, f"must be at least {_LEAST_WIDTH}"),
        )
        wrong = [rule for fails, rule in parts if fails]
        if wrong:
            return [Problem(path, f"found {size}", wrong[0])]
    if len(sizes) > 1 and model["tied_until"]:
        # Head and embedding divide their weight among copies in different ways.
        rule = "cannot widen a table that is the head as well: set model.tied_until to 0"
        return [Problem(path, f"found with model.tied_until {model['tied_until']}", rule)]
    return []


def varies(pretrain: Mapping[str, Any]) -> bool:
    """Whether a token of the run costs more at one time than at another."""
    return bool(pretrain.get("growth_layers") or pretrain.get("growth_width"))


def size_at(
    config: Mapping[str, Any], pretrain: Mapping[str, Any], progress: float
) -> dict[str, Any]:
    """`config` with the sizes that it has at `progress` (0 to 1)."""
    size = dict(config)
    for name, field in (("growth_layers", "n_layer"), ("growth_width", "n_embd")):
        reached = [value for share, value in pretrain.get(name) or [] if share <= progress]
        if reached:
            size[field] = reached[-1]
    whole, part = config["n_embd"], size["n_embd"]
    for field in ("n_head", "n_kv_head", "ffn_width"):
        size[field] = (size.get(field) or 0) * part // whole
    return size

"""Models that grow and teach themselves while they train: what a recipe may say, and at what time.

The reference trainer's `growth_layers` and `growth_width`, pairs of elapsed share and size, and
`distill_from`, the share from which an earlier state of the model teaches. The kit reads them by
itself, so that it can count a run's work without asking the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from kit.schemas import Problem

_LEAST_REFRESH = 0.01  # of a run, between two teachers
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
    return found + _teacher_problems(pretrain)


def _teacher_problems(pretrain: Mapping[str, Any]) -> list[Problem]:
    refresh, found = pretrain["distill_refresh"], []
    if 0 < refresh < _LEAST_REFRESH:
        rule = f"must be 0 (never) or at least {_LEAST_REFRESH}"
        found.append(Problem("pretrain.distill_refresh", f"found {refresh}", rule))
    if refresh and not pretrain["distill_from"]:
        rule = "renews no teacher: set distill_from above 0"
        found.append(Problem("pretrain.distill_refresh", f"found {refresh}", rule))
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
    tables = (pretrain.get("growth_layers"), pretrain.get("growth_width"))
    return bool(pretrain.get("distill_from")) or any(len(table or []) > 1 for table in tables)


def teacher_share(pretrain: Mapping[str, Any], progress: float) -> float | None:
    """The share at which the teacher in force at `progress` was taken; None where there is none."""
    begin, every = pretrain.get("distill_from") or 0.0, pretrain.get("distill_refresh") or 0.0
    if not begin or progress < begin:
        return None
    return float(begin + every * math.floor((progress - begin) / every + 1e-9) if every else begin)


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

"""What is wrong with a recipe's growth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from reference.config.experiment import Problem
from reference.config.model import SMEAR_GATE_CHANNELS


def problems(model: Mapping[str, Any], pretrain: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of the tables of sizes, `model` being the finished one."""
    for name, field in (("growth_layers", "n_layer"), ("growth_width", "n_embd")):
        table, path = pretrain[name], f"pretrain.{name}"
        if not table:
            continue
        shares, sizes = [share for share, _ in table], [size for _, size in table]
        if shares[0] != 0 or sorted(set(shares)) != shares:
            yield Problem(path, f"found shares {shares}", "must rise, from 0 on")
        if sizes[-1] != model[field]:
            rule = f"must end with model.{field} ({model[field]})"
            yield Problem(path, f"ends with {sizes[-1]}", rule)
        elif sorted(set(sizes)) != sizes:
            yield Problem(path, f"found {sizes}", "must grow with every pair")
        elif field == "n_embd":
            yield from _width_problems(path, sizes, model)


def _width_problems(path: str, sizes: list[int], model: Mapping[str, Any]) -> Iterator[Problem]:
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
            (size < SMEAR_GATE_CHANNELS, f"must be at least {SMEAR_GATE_CHANNELS}"),
        )
        for fails, rule in parts:
            if fails:
                yield Problem(path, f"found {size}", rule)
                return
    if len(sizes) > 1 and model["tied_until"]:
        # Head and embedding divide their weight among copies in different ways.
        rule = "cannot widen a table that is the head as well: set model.tied_until to 0"
        yield Problem(path, f"found with model.tied_until {model['tied_until']}", rule)

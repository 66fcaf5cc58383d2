"""What is wrong with a recipe's self-distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reference.config.experiment import Problem

LEAST_REFRESH = 0.01  # of a run, between two teachers


def problems(_model: Mapping[str, Any], pretrain: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of `distill_refresh`."""
    path, refresh = "pretrain.distill_refresh", pretrain["distill_refresh"]
    if 0 < refresh < LEAST_REFRESH:
        yield Problem(path, f"found {refresh}", f"must be 0 (never) or at least {LEAST_REFRESH}")
    if refresh and not pretrain["distill_from"]:
        rule = "renews no teacher: set distill_from above 0"
        yield Problem(path, f"found {refresh}", rule)

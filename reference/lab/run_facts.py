"""What a run's log says about its training, in the units that the containers of metrics use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from reference.errors import TrainerError
from reference.lab.run_folder import RunFolder


@dataclass(frozen=True)
class Facts:
    """What the containers are computed from."""

    run: RunFolder
    recipe: dict[str, Any]
    model: dict[str, Any]
    steps: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    stages: dict[str, dict[str, Any]]

    @property
    def flops_per_token(self) -> float:
        """Of training; the mean over the run where a token did not always cost the same."""
        last = self.steps[-1]
        if "flops" in last:
            return float(last["flops"] / last["tokens"])
        return float(self.model["flops_per_token"])


def read_facts(path: Path, resolved: Mapping[str, Any] | None = None) -> Facts:
    """The facts of the run in folder `path`.

    Args:
        resolved: Its recipe with defaults; without it the planned memory is unknown.

    Raises:
        TrainerError: No run, or one that never trained.
    """
    run = RunFolder.open(path)
    model, steps = run.last("model"), run.steps()
    if not model or not steps:
        raise TrainerError(
            "bad_input",
            f"{path}: no pretraining step is in its log",
            "The containers describe a run that trained; `n4090-kit verify` reads any other.",
        )
    return Facts(run, dict(resolved or {}), model, steps, run.evals("val_bpb"), _stages(run))


def _stages(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Start and stop of each stage in seconds since run start, its attempts added up."""
    found: dict[str, dict[str, Any]] = {}
    for start in run.of("stage_start"):
        entry = found.setdefault(start["stage"], {"start_s": start["t_s"], "attempts": 0})
        entry["attempts"] += 1
    for stop in run.of("stage_stop"):
        found[stop["stage"]] |= {"stop_s": stop["t_s"], "status": stop["status"]}
    return found


def bpb_at(facts: Facts, flops: float) -> float | None:
    """val_bpb at `flops`, between evaluations interpolated over ln FLOPs."""
    points = [(row["flops"], row["value"]) for row in eval_points(facts) if row["flops"] > 0]
    for (c0, b0), (c1, b1) in pairwise(points):
        if c0 <= flops <= c1 * (1 + 1e-9):
            share = math.log(flops / c0) / math.log(c1 / c0)
            return float(b0 + share * (b1 - b0))
    return None


def eval_points(facts: Facts) -> list[dict[str, Any]]:
    """Evaluations with the tokens and FLOPs trained until then."""
    rows = []
    for row in facts.evals:
        before = [step for step in facts.steps if step["step"] < row.get("step", 0)]
        tokens = before[-1]["tokens"] if before else 0
        flops = before[-1].get("flops", tokens * facts.flops_per_token) if before else 0.0
        rows.append({**row, "tokens": tokens, "flops": flops})
    return rows


def first_reaching(facts: Facts, bpb: float) -> dict[str, Any] | None:
    return next((row for row in eval_points(facts) if row["value"] <= bpb), None)


def card_bytes(run: RunFolder) -> int | None:
    for row in run.of("fingerprint"):
        for gpu in row.get("fingerprint", {}).get("gpus") or ():
            if gpu.get("memory_bytes"):
                return int(gpu["memory_bytes"])
    return None

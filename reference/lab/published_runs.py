"""What the scaling laws are fitted to: published runs with their sources, and the user's own."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference.errors import TrainerError
from reference.lab.run_folder import RunFolder

PUBLISHED = Path(__file__).with_name("published_runs.toml")
OWN_FAMILY = "own"


@dataclass(frozen=True)
class Point:
    """One finished training.

    Args:
        family: Runs of one corpus and one generation of code share it.
        parameters: N, matrices and head.
        tokens: D, trained on.
        flops: By nanochat's count.
        val_bpb: Bits per byte at the end; None where the source has none.
        core: Mean CORE of `core_runs` runs.
        optimum: Whether this N was found best at this budget.
        core_line: Whether its CORE belongs to the current code.
    """

    label: str
    family: str
    source: str
    parameters: float
    tokens: float
    flops: float
    val_bpb: float | None = None
    core: float | None = None
    core_runs: int = 0
    optimum: bool = False
    core_line: bool = True

    @property
    def ratio(self) -> float:
        return self.tokens / self.parameters


def published_points(path: Path = PUBLISHED) -> list[Point]:
    """The points of published_runs.toml; each names where it comes from."""
    document = tomllib.loads(path.read_text())
    sources: dict[str, str] = document["sources"]
    return [Point(**{**row, "source": sources[row["source"]]}) for row in document["point"]]


def own_points(runs: list[Path]) -> list[Point]:
    """One point a run folder.

    Raises:
        TrainerError: A run has no model, no step or no bits per byte in its log.
    """
    return [_own_point(path) for path in runs]


def _own_point(path: Path) -> Point:
    run = RunFolder.open(path)
    model, steps, bpb = (
        run.last("model"),
        run.steps(),
        run.evals("val_bpb_nanochat") or run.evals("val_bpb"),
    )
    if not model or not steps or not bpb:
        raise TrainerError(
            "bad_input",
            f"{path}: its log has no finished pretraining (model, steps and val_bpb)",
            "Give runs that completed their pretrain stage.",
        )
    tokens = steps[-1]["tokens"]
    core: dict[str, Any] = (run.result.get("quality") or {}).get("core") or {}
    whole = bool(core) and not core.get("partial") and core.get("bundle") == "core"
    return Point(
        label=run.name,
        family=OWN_FAMILY,
        source=f"run {run.name}",
        parameters=model["scaling_parameters"],
        tokens=tokens,
        flops=steps[-1].get("flops", model["flops_per_token"] * tokens),
        val_bpb=bpb[-1]["value"],
        core=core["value"] if whole else None,
        core_runs=1 if whole else 0,
    )

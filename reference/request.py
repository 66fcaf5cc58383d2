"""The stage request: what the supervisor asks of one trainer process (see kit/contract.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import Any

from reference.errors import TrainerError

CONTRACT = 1


@dataclass(frozen=True)
class Request:
    """One stage's orders. Paths are absolute; `None` means the recipe does not use that input.

    `resume_step` is the first step whose report the log lacks; None: whoever asks does not say.
    """

    stage: str
    run_id: str
    seed: int
    attempt: int
    resume_step: int | None
    device: str
    threads: int
    recipe: dict[str, Any]
    paths: dict[str, Path | None]
    start_ns: int
    stage_start_ns: int
    deadline_ns: int
    budget_s: float

    @classmethod
    def load(cls, path: Path) -> Request:
        """Reads a request file; raises `TrainerError` for a contract that is not this one."""
        document = json.loads(path.read_text())
        if document.get("contract") != CONTRACT:
            raise TrainerError(
                "bad_input",
                f"{path}: contract {document.get('contract')!r}, this trainer speaks {CONTRACT}",
                "Install a trainer and a kit of the same release.",
            )
        clock = document["clock"]
        return cls(
            stage=document["stage"],
            run_id=document["run_id"],
            seed=document["seed"],
            attempt=document["attempt"],
            resume_step=document.get("resume_step"),
            device=document["device"],
            threads=document["threads"],
            recipe=document["recipe"],
            paths={
                name: None if value is None else Path(value)
                for name, value in document["paths"].items()
            },
            start_ns=clock["start_ns"],
            stage_start_ns=clock.get("stage_start_ns", clock["start_ns"]),
            deadline_ns=clock["deadline_ns"],
            budget_s=clock["budget_s"],
        )

    def path(self, name: str) -> Path:
        """The input or output folder `name`, which this stage cannot do without."""
        value = self.paths.get(name)
        if value is None:
            raise TrainerError(
                "bad_input",
                f"stage {self.stage}: the request has no path {name!r}",
                f"Give it with --{name.replace('_', '-')} or run `n4090-kit prepare` first.",
            )
        return value

    def stage_elapsed_s(self) -> float:
        """Seconds since this stage was first started, time between attempts included."""
        return (clock_gettime_ns(CLOCK_BOOTTIME) - self.stage_start_ns) / 1e9

    def remaining_s(self) -> float:
        """Seconds until this stage must have ended, on the supervisor's clock."""
        return (self.deadline_ns - clock_gettime_ns(CLOCK_BOOTTIME)) / 1e9

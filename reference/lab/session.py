"""A study from start to report, with a table that lives while it runs."""

from __future__ import annotations

import json
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from reference.files import write_whole
from reference.lab.ablate import Progress, StudyRun
from reference.lab.ablate_page import write_study_page
from reference.lab.executor import Executor, LocalExecutor, RayExecutor
from reference.lab.findings import Findings, find
from reference.lab.study import BASELINE
from reference.lab.trial import COMPLETE
from reference.tables import table_of


class Session(NamedTuple):
    findings: Findings
    page: Path


def run_session(
    run: StudyRun, *, jobs: int, gpus: int, ray_address: str | None, start: bool = True
) -> Session:
    """Runs what is missing of the study, then writes findings.json and report.html."""
    if start:
        board = _Board(run)
        executor: Executor = (
            RayExecutor(ray_address, device=run.place.device, threads=run.place.threads)
            if ray_address
            else LocalExecutor(jobs, gpus=gpus, report=board.heard)
        )
        with board.live():
            run.run(executor, board.show)
    findings = find(run.study, run.progress, flops_of(run), jobs)
    folder = run.place.folder
    facts = _facts(run, jobs)
    document = {"study": run.study.name, **findings.to_json(), "facts": facts}
    write_whole(folder / "findings.json", (json.dumps(document, indent=2) + "\n").encode())
    page = folder / "report.html"
    write_study_page(page, run.study, run.progress, findings, facts)
    return Session(findings, page)


def flops_of(run: StudyRun) -> dict[str, float]:
    """FLOPs of a baseline trial at each scale: as asked for, or as reached in the time."""
    reached = {}
    for scale in run.study.scales:
        seen = [
            outcome.evals[-1][3]
            for slot, outcome in run.progress.outcomes.items()
            if slot.arm == BASELINE and slot.scale == scale.name and outcome.status == COMPLETE
        ]
        reached[scale.name] = scale.flops or (sum(seen) / len(seen) if seen else scale.budget)
    return reached


def gpu_count() -> int:
    """CUDA devices of this machine, asked in the driver's library, not through torch."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # no library, no driver, no device: each says there is no GPU to deal out
        return 0


def _facts(run: StudyRun, jobs: int) -> dict[str, str]:
    state = run.progress
    spent = sum(outcome.wall_s for outcome in state.outcomes.values())
    facts = {
        "baseline": Path(run.study.baseline).stem,
        "trials": f"{len(state.outcomes)}, {state.reused} of them known from before",
        "time in trials": f"{spent / 3600:.2f} h",
        "at a time": str(jobs),
    }
    if state.wall_s:
        facts["this session"] = f"{state.wall_s / 3600:.2f} h"
        new = spent if not state.reused else None
        if new:
            facts["scheduler's CPU time"] = f"{state.overhead_s / new:.2%} of trial time"
    return facts


class _Board:
    """The live table: one line a change and scale, fed by the trials' own reports."""

    EVERY_S = 1.0

    def __init__(self, run: StudyRun) -> None:
        self._run = run
        self._latest: dict[str, tuple[float, float]] = {}  # trial -> (progress, loss)
        self._lock = threading.Lock()
        self._live: Any = None
        self._shown_at = 0.0

    def heard(self, trial: str, ev: str, data: Any) -> None:
        with self._lock:
            if ev == "step":
                self._latest[trial] = (data["progress"], data["loss"])

    def live(self) -> Any:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        if not console.is_terminal:
            return nullcontext()
        self._live = Live(self._table(), console=console, auto_refresh=False)
        return self._live

    def show(self) -> None:
        if self._live is None or time.monotonic() - self._shown_at < self.EVERY_S:
            return
        self._shown_at = time.monotonic()
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Any:
        state: Progress = self._run.progress
        study = self._run.study
        scales = [scale.name for scale in study.scales]
        headings = ("change", *scales, "running")
        table = table_of(f"study {study.name}", headings, text=(0, len(scales) + 1))
        with self._lock:
            latest = dict(self._latest)
        for arm in study.arms:
            cells = []
            for scale in study.scales:
                ended = [
                    outcome
                    for slot, outcome in state.outcomes.items()
                    if (slot.arm, slot.scale) == (arm.name, scale.name)
                ]
                values = [outcome.val_bpb for outcome in ended if outcome.val_bpb]
                mean = f"{sum(values) / len(values):.4f} " if values else ""
                cells.append(
                    f"{mean}{len(ended)}/{len(study.seeds_at(scale.name))}" if ended else ""
                )
            now = []
            for slot in [slot for slot in state.running if slot.arm == arm.name]:
                progress, loss = latest.get(self._run.trial(slot).id, (0.0, 0.0))
                now.append(f"{slot.scale} seed {slot.seed}: {progress:.0%}, loss {loss:.3f}")
            table.add_row(arm.name, *cells, "; ".join(now))
        return table

"""What supervision costs: steps of a run with the supervisor at work, and while it is stopped.

A machine that others share, or that warms up, runs minutes apart at speeds that differ by more than
supervision costs: whole runs, one with and one without a supervisor, cannot show half a percent. So
one run holds both. The supervisor is a process of its own; every second window it is stopped by a
signal, and the trainer goes on alone, its reports waiting in the pipe. Steps next to each other in
time are compared. What waited is stored in the windows that count as supervised, so that the cost
is rather overstated. What stays while the supervisor is stopped (the pipe, the session that it
opened for the trainer) is in both and is not seen.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from kit.errors import KitError
from kit.run.log import LOG_KIND, EventLog
from kit.run.plan import RunPlan
from kit.run.process import StopFlag
from kit.run.supervisor import supervise
from kit.timing import boottime_ns
from kit.trust.chain import read_chain
from kit.trust.keys import Signer

CATCH_UP_S = 0.02  # within it, reports that waited in the pipe are stored


class Step(NamedTuple):
    """A step as stored: when, and how long the trainer says that it took; seconds."""

    stored_s: float
    dt_s: float


class Pair(NamedTuple):
    """Mean seconds of a step with the supervisor at work, and in the next window, without."""

    supervised_s: float
    alone_s: float


class Round(NamedTuple):
    """One run. CPU seconds are the supervisor's while stages ran, which took `wall_s`."""

    wall_s: float
    cpu_s: float
    telemetry_share: float | None  # of one core, as the run itself recorded it
    pairs: list[Pair]


class Overhead(NamedTuple):
    rounds: list[Round]

    @property
    def cpu_share(self) -> float:
        """The supervisor's part of one core."""
        return sum(r.cpu_s for r in self.rounds) / sum(r.wall_s for r in self.rounds)

    @property
    def telemetry_share(self) -> float | None:
        shares = [r.telemetry_share for r in self.rounds if r.telemetry_share is not None]
        return max(shares) if shares else None

    @property
    def step_ratio(self) -> tuple[float, float, float]:
        """A step's time with the supervisor over that without; with its 95 % interval.

        Raises:
            KitError: The runs were too short for two pairs.
        """
        logs = [math.log(p.supervised_s / p.alone_s) for r in self.rounds for p in r.pairs]
        if len(logs) < 2:
            raise KitError("too few steps to compare", hint="Take a longer recipe or more rounds.")
        mean = statistics.fmean(logs)
        wide = 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
        return math.exp(mean), math.exp(mean - wide), math.exp(mean + wide)


def measure_overhead(
    make_plan: Callable[[], RunPlan],
    signer: Signer,
    *,
    rounds: int,
    window_s: float,
    say: Callable[[str], None],
) -> Overhead:
    """Does whole runs whose supervisor stands still every second window.

    Args:
        make_plan: Plans a fresh run.

    Raises:
        KitError: A run did not end well.
    """
    found = []
    for number in range(rounds):
        plan = make_plan()
        receiver, sender = get_context("fork").Pipe(duplex=False)
        with _supervisor(plan, signer, sender) as process:
            stops = switch(process, window_s)
        if process.exitcode:
            raise KitError(f"the supervisor ended with exit code {process.exitcode}")
        cpu_s, wall_s = receiver.recv()
        result = json.loads((plan.run / "result.json").read_text())
        if result["claims"]["status"] != "complete":
            raise KitError(f"the run did not end well: {result['claims']['message']}")
        telemetry = (result["telemetry"]["summary"] or {}).get("core_share")
        pairs = compare(_steps(plan), stops)
        found.append(Round(wall_s, cpu_s, telemetry, pairs))
        say(
            f"run {number + 1}: {wall_s:.1f} s, {cpu_s:.2f} s of CPU for the supervisor, "
            f"{len(pairs)} pairs of windows"
        )
    return Overhead(found)


@contextmanager
def _supervisor(plan: RunPlan, signer: Signer, sender: Connection) -> Iterator[BaseProcess]:
    process = get_context("fork").Process(target=_supervise, args=(plan, signer, sender))
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.terminate()
        process.join()


def _supervise(plan: RunPlan, signer: Signer, sender: Connection) -> None:
    moments: dict[str, tuple[float, float]] = {}

    def observe(event: dict[str, Any]) -> None:
        if event["ev"] in ("run_start", "run_stop"):
            moments[event["ev"]] = time.process_time(), time.perf_counter()

    supervise(plan, signer, observe=observe, stop=StopFlag())
    began, ended = moments["run_start"], moments["run_stop"]
    sender.send((ended[0] - began[0], ended[1] - began[1]))


def switch(process: BaseProcess, window_s: float) -> list[tuple[float, float]]:
    """Stops `process` for every second window until it ends.

    Returns:
        When it stood still: from and to, seconds of CLOCK_BOOTTIME.
    """
    assert process.pid is not None
    stops: list[tuple[float, float]] = []
    while True:
        process.join(window_s)
        if not process.is_alive():
            return stops
        began = boottime_ns() / 1e9
        os.kill(process.pid, signal.SIGSTOP)
        try:
            time.sleep(window_s)
        finally:
            ended = boottime_ns() / 1e9
            os.kill(process.pid, signal.SIGCONT)
        stops.append((began, ended))


def compare(steps: Iterable[Step], stops: list[tuple[float, float]]) -> list[Pair]:
    """Means of the steps that lie whole in a window, for each two windows side by side.

    Args:
        steps: In order; what waited in a window without the supervisor is stored at its end.
        stops: Windows without the supervisor.
    """
    # Window 2k ends where the supervisor is stopped, window 2k + 1 where it has caught up.
    edges = [edge for began, ended in stops for edge in (began, ended + CATCH_UP_S)]
    windows: list[list[float]] = [[] for _ in range(len(edges) + 1)]
    window, last = 0, None
    for step in steps:
        while window < len(edges) and step.stored_s > edges[window]:
            window += 1
        if last == window:  # else it began in the window before
            windows[window].append(step.dt_s)
        last = window
    means = [statistics.fmean(window) if window else None for window in windows]
    pairs = []
    for number, (first, second) in enumerate(pairwise(means)):
        if number % 2 == 0 and first and second:
            pairs.append(Pair(first, second))
    return pairs


def _steps(plan: RunPlan) -> list[Step]:
    log = EventLog(plan.run)
    try:
        return [
            Step(log.boottime_at(event["t_ns"]) / 1e9, event["data"]["dt_s"])
            for event in read_chain(plan.run / "events.jsonl", LOG_KIND).records
            if event["ev"] == "step"
        ]
    finally:
        log.close()

"""What supervision costs: steps of one training, its supervisor at work or standing still.

Two equal runs differ by percents, far more than supervision costs, wherever they run. So both sides
of the comparison are one run: in windows of a second or so its supervisor is stopped by a signal
and the same trainer, in the same memory, goes on bare; in the windows between all is as ever.
Windows come in couples, one of each kind, whose order is drawn. The trainer puts the moment into
each of its reports, because nobody else may look while it is bare; what it reports into the pipe
then is read when the window is over, and thrown away but for those moments.

A supervisor that goes on first does what fell due while it stood. It therefore goes on when a step
has just begun, so that this lies in a step that counts; so does the signal, which no real run has.
What this finds is therefore too much rather than too little: the step that it is stopped in counts
for nothing, but what came in it is taken when it goes on. A known burden shows by how much.

What the supervisor does by the clock, a sample of the telemetry each second, it does here every two
seconds: for one of them it stands still, and what was due then it does when it goes on.

Between the stages no trainer runs, and all that the supervisor does is a cost: it is timed itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import math
import os
import random
import select
import shutil
import signal
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kit.errors import KitError
from kit.run import supervisor
from kit.run.contract import EVENTS_FD_VARIABLE
from kit.run.plan import RunPlan
from kit.run.process import StageOutcome, StopFlag, die_with_parent, run_stage
from kit.run.telemetry import TelemetrySampler
from kit.run_log import LOG_KIND
from kit.trust.chain import read_chain
from kit.trust.keys import Signer

STAGE = "pretrain"
WARM_STEPS = 10  # before them memory is still allocated and caches fill
_PIPE_BYTES = 2**20  # room for what is reported in a bare window
_REPORT_MS = 60_000  # no step of a recipe that this can time is as long
_FORK = get_context("fork")


class Watching(Protocol):
    """What shows a run's events to a person."""

    def observe(self, event: dict[str, Any]) -> None: ...


Watch = Callable[[], AbstractContextManager[Watching]]


class Window(NamedTuple):
    """From when to when, microseconds of CLOCK_MONOTONIC, and whether the supervisor worked."""

    began_us: int
    ended_us: int
    supervised: bool


class Couple(NamedTuple):
    """Mean seconds from step to step in two neighbouring windows, and how many went into each."""

    supervised_s: float
    bare_s: float
    supervised_steps: int
    bare_steps: int


class Rest(NamedTuple):
    """Of one run: seconds that no stage ran, seconds of the run, and the supervisor's CPU seconds.

    The seconds that the supervisor stood still are in none of them.
    """

    between_s: float
    run_s: float
    cpu_s: float


class Overhead(NamedTuple):
    couples: list[Couple]
    rests: list[Rest]

    @property
    def ratio(self) -> float:
        """A step's time with the supervisor over its time without.

        The geometric mean of the couples without the tenth at each end, where a machine that others
        share has hiccups.
        """
        logs, cut = self._logs, self._cut
        return math.exp(statistics.fmean(logs[cut : len(logs) - cut]))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where `ratio` lies, 95 % (Tukey and McLaughlin, 1963); None for too few couples."""
        logs, cut = self._logs, self._cut
        kept = logs[cut : len(logs) - cut]
        if len(kept) < 2:
            return None
        winsorized = [kept[0]] * cut + kept + [kept[-1]] * cut
        error = statistics.stdev(winsorized) * math.sqrt(len(logs)) / len(kept)
        middle = statistics.fmean(kept)
        return math.exp(middle - 1.96 * error), math.exp(middle + 1.96 * error)

    @property
    def between_share(self) -> float:
        """The part of the runs in which no stage ran."""
        return sum(rest.between_s for rest in self.rests) / sum(rest.run_s for rest in self.rests)

    @property
    def cpu_share(self) -> float:
        """The supervisor's part of one core, while it did not stand still."""
        return sum(rest.cpu_s for rest in self.rests) / sum(rest.run_s for rest in self.rests)

    @property
    def _logs(self) -> list[float]:
        return sorted(math.log(couple.supervised_s / couple.bare_s) for couple in self.couples)

    @property
    def _cut(self) -> int:
        return len(self.couples) // 10


def measure_overhead(
    make_plan: Callable[[], RunPlan],
    signer: Signer,
    *,
    runs: int,
    watch: Watch,
    window_s: float = 0.5,
    burden_s: float = 0.0,
    control: bool = False,
    say: Callable[[str], None],
) -> Overhead:
    """Times the steps of whole runs, their supervisor at work and standing still.

    Args:
        make_plan: Plans a fresh run; its trainer's reports hold `at_us`, CLOCK_MONOTONIC.
        watch: Makes what shows the run's events, as a person's run does.
        window_s: Seconds of each window.
        burden_s: Added work of the supervisor for each event, seconds of CPU: a cost that the
            method has to find.
        control: Nobody stands still, windows only have the names: what the method finds where
            nothing differs.

    Raises:
        KitError: A run did not end well, or its steps are too few or too long for windows.
    """
    found = Overhead([], [])
    for number in range(runs):
        plan = make_plan()
        windows, bare_reports, rest = _run(plan, signer, watch, window_s, burden_s, control)
        couples = couples_of(windows, step_times(plan.run, bare_reports))
        if not couples:
            raise KitError(
                f"no window of {window_s:g} s has whole steps",
                hint="Take more steps, or a recipe whose steps are shorter.",
            )
        found.couples.extend(couples)
        found.rests.append(rest)
        told = Overhead(couples, [rest])
        say(
            f"run {number + 1}: {told.ratio - 1:+.2%} in {len(couples)} couples of windows, "
            f"{rest.between_s:.3f} s between stages"
        )
        shutil.rmtree(plan.run)
        shutil.rmtree(plan.cache, ignore_errors=True)
    return found


def step_times(run: Path, bare_reports: bytes) -> list[tuple[int, int]]:
    """From when to when each step of pretraining went that has no other report within.

    Returns:
        (from, to), microseconds, in order; with the sending of the report that begins it.

    Raises:
        KitError: Steps are missing, or hold no moment.
    """
    reports = [json.loads(line) for line in bare_reports.splitlines()]
    reports += _logged(run)
    moments: list[tuple[int, str]] = []
    steps = set()
    for report in reports:
        if "at_us" not in report["data"]:
            raise KitError("the trainer does not say when it reports: steps cannot be timed")
        moments.append((report["data"]["at_us"], report["ev"]))
        if report["ev"] == "step":
            steps.add(report["data"]["step"])
    if steps != set(range(len(steps))):
        raise KitError("reports of some steps are lost")
    return [
        (start[0], end[0])
        for start, end in pairwise(sorted(moments))
        if start[1] == end[1] == "step"
    ]


def couples_of(windows: Sequence[Window], steps: Sequence[tuple[int, int]]) -> list[Couple]:
    """Windows two by two, with the steps that lie in them whole; couples without such are left out.

    Args:
        windows: In order; each two that follow one another are of both kinds.
    """
    begins = [window.began_us for window in windows]
    durations: list[list[float]] = [[] for _ in windows]
    for began_us, ended_us in steps:
        index = bisect_right(begins, began_us) - 1
        if index >= 0 and ended_us <= windows[index].ended_us:
            durations[index].append((ended_us - began_us) / 1e6)
    couples = []
    for first in range(0, len(windows) - 1, 2):
        if durations[first] and durations[first + 1]:
            index = first if windows[first].supervised else first + 1
            own, other = durations[index], durations[2 * first + 1 - index]
            couples.append(
                Couple(statistics.fmean(own), statistics.fmean(other), len(own), len(other))
            )
    return couples


def _logged(run: Path) -> list[dict[str, Any]]:
    """What pretraining reported and the log holds."""
    events = read_chain(run / "events.jsonl", LOG_KIND).records
    stages = [i for i, event in enumerate(events) if event["ev"] in ("stage_start", "stage_stop")]
    first = next(n for n, i in enumerate(stages) if events[i]["data"]["stage"] == STAGE)
    within = events[stages[first] : stages[first + 1]]
    return [event for event in within if event["src"] == "trainer"]


def _run(
    plan: RunPlan, signer: Signer, watch: Watch, window_s: float, burden_s: float, control: bool
) -> tuple[list[Window], bytes, Rest]:
    """One run, its supervisor in a child process that can be stopped."""
    receiver, sender = _FORK.Pipe(duplex=False)
    step = _FORK.RawValue(ctypes.c_int64, 0)
    process = _FORK.Process(
        target=_supervise, args=(sender, step, plan, signer, watch, burden_s, control)
    )
    process.start()
    sender.close()
    assert process.pid is not None
    windows: list[Window] = []
    bare, stood_s = b"", 0.0
    try:
        while not receiver.poll(0.1):
            if step.value >= WARM_STEPS and not windows:
                ended = partial(receiver.poll, 0)
                windows, bare, stood_s = _in_windows(
                    process.pid, step, plan, window_s, control, ended
                )
        try:
            rest = receiver.recv()
        except EOFError:
            raise KitError("the supervisor of a run was killed") from None
        if isinstance(rest, KitError):
            raise rest
    finally:
        process.kill()
        process.join()
    return windows, bare, rest._replace(run_s=rest.run_s - stood_s)


def _in_windows(
    supervising: int,
    step: Any,
    plan: RunPlan,
    window_s: float,
    control: bool,
    ended: Callable[[], bool],
) -> tuple[list[Window], bytes, float]:
    """Stops the supervisor and lets it go on until pretraining is nearly over.

    Returns:
        The windows, all that the trainer reported in the bare ones, and the seconds stood still.
    """
    import psutil  # type: ignore[import-untyped]

    [trainer] = psutil.Process(supervising).children()
    pipe = _read_end(trainer.pid, trainer.environ()[EVENTS_FD_VARIABLE])
    windows: list[Window] = []
    chunks: list[bytes] = []
    before, most = step.value, 1
    stopped_s, stood_s = None, 0.0
    report = select.poll()
    report.register(pipe, select.POLLIN)
    try:
        # The last reports belong into the log: well before them this ends.
        while step.value + 3 * most < plan.recipe.section(STAGE)["num_steps"] and not ended():
            for supervised in random.sample((True, False), 2):
                began_us = time.monotonic_ns() // 1000
                if supervised and stopped_s is not None:
                    report.poll(_REPORT_MS)  # left for the supervisor to read
                    os.kill(supervising, signal.SIGCONT)
                    stood_s, stopped_s = stood_s + time.monotonic() - stopped_s, None
                elif not supervised and stopped_s is None and not control:
                    os.kill(supervising, signal.SIGSTOP)
                    stopped_s = time.monotonic()
                time.sleep(window_s)
                if stopped_s is not None:
                    chunks.append(_drain(pipe))
                windows.append(Window(began_us, time.monotonic_ns() // 1000, supervised))
            before, most = step.value, max(most, step.value - before)
    finally:
        if stopped_s is not None:
            os.kill(supervising, signal.SIGCONT)
            stood_s += time.monotonic() - stopped_s
        os.close(pipe)
    return windows, b"".join(chunks), stood_s


def _read_end(trainer: int, descriptor: str) -> int:
    """A second read end of the pipe into which the trainer reports."""
    pipe = os.open(f"/proc/{trainer}/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.suppress(PermissionError):  # a user may have no more pages in pipes
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return pipe


def _drain(pipe: int) -> bytes:
    chunk = b""
    with contextlib.suppress(BlockingIOError):
        chunk = os.read(pipe, _PIPE_BYTES)
    if len(chunk) > fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) // 2:
        raise KitError("a bare trainer's reports nearly filled the pipe: it might have waited")
    return chunk


def _supervise(
    sender: Connection,
    step: Any,
    plan: RunPlan,
    signer: Signer,
    watch: Watch,
    burden_s: float,
    control: bool,
) -> None:
    """The child: a run as `n4090-kit run` does it, its own work timed."""
    die_with_parent()  # killed, this bench must not leave a supervisor standing still for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the bench, and the bench this
    moments: dict[str, tuple[float, float]] = {}
    staged: list[float] = []

    def timed(*arguments: Any, **options: Any) -> StageOutcome:
        began = time.monotonic()
        try:
            return run_stage(*arguments, **options)
        finally:
            staged.append(time.monotonic() - began)

    vars(supervisor)["run_stage"] = timed  # in this process alone
    if not control:
        vars(supervisor)["TelemetrySampler"] = partial(TelemetrySampler, interval_s=2.0)
    try:
        with watch() as watching:

            def observe(event: dict[str, Any]) -> None:
                watching.observe(event)
                if event["ev"] == "step":
                    step.value = event["data"]["step"]
                until = time.thread_time() + burden_s
                while burden_s and time.thread_time() < until:
                    pass
                if event["ev"] in ("run_start", "run_stop"):
                    moments[event["ev"]] = time.monotonic(), time.process_time()

            path = supervisor.supervise(plan, signer, observe=observe, stop=StopFlag())
        claims = json.loads(path.read_text(encoding="utf-8"))["claims"]
        if claims["status"] != "complete":
            raise KitError(f"the run did not end well: {claims['message']}")
        (began, cpu_before), (ended, cpu_after) = moments["run_start"], moments["run_stop"]
        sender.send(Rest(ended - began - sum(staged), ended - began, cpu_after - cpu_before))
    except KitError as error:
        sender.send(error)

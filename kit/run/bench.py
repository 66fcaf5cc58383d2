"""What supervision costs: whole runs under the supervisor against the bare trainer.

Two equal runs in turn, a minute apart, differ by ten percent on a machine that others share or that
warms up: far more than supervision costs. So both are begun, and they take turns of half a second
on the same cores: one side's processes stand still, stopped by signals, while the other's run. A
run's time is the sum of its turns while its clock goes. Equal runs still differ by a percent or
two, it is not known why; pairs average that out.

Both sides do the same work: the bare one has the same requests, commands and environment, writes
its reports into a file, and must leave the same files to the byte. Supervision is rather
overstated: a telemetry sample is due every second by the clock, of which a side has half, and the
supervisor, unlike the bare side's parent, wakes whenever it is let go on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from kit.errors import KitError
from kit.run.contract import (
    EVENTS_FD_VARIABLE,
    build_request,
    deadline_ns,
    stage_command,
    stage_outputs,
)
from kit.run.plan import RunPlan, stage_environment
from kit.run.process import StopFlag, die_with_parent
from kit.run.supervisor import supervise
from kit.timing import boottime_ns
from kit.trust.digest import tree_manifest
from kit.trust.keys import Signer

_FORK = get_context("fork")


class Turn(NamedTuple):
    """From when to when a side ran; nanoseconds of CLOCK_BOOTTIME."""

    began_ns: int
    ended_ns: int


class Clocked(NamedTuple):
    """A run's time on the clock, as the process that did it saw it, and the CPU time it used."""

    began_ns: int
    ended_ns: int
    cpu_s: float


Side = Callable[[], Clocked]


class Pair(NamedTuple):
    """Seconds of turns on the clock, and the supervisor's own CPU seconds in them."""

    supervised_s: float
    bare_s: float
    supervisor_cpu_s: float


class Overhead(NamedTuple):
    pairs: list[Pair]

    @property
    def cpu_share(self) -> float:
        """The supervisor's part of one core."""
        return sum(p.supervisor_cpu_s for p in self.pairs) / sum(p.supervised_s for p in self.pairs)

    @property
    def felt(self) -> float:
        """Seconds that runs lose for each second of CPU that their supervisor uses."""
        lost_s = sum(pair.supervised_s - pair.bare_s for pair in self.pairs)
        return lost_s / sum(pair.supervisor_cpu_s for pair in self.pairs)

    @property
    def ratio(self) -> float:
        """Time with the supervisor over time without; the geometric mean of the pairs."""
        return math.exp(statistics.fmean(self._logs))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where `ratio` lies, 95 %, pairs taken as normal; None for fewer than two pairs."""
        logs = self._logs
        if len(logs) < 2:
            return None
        wide = 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
        return math.exp(statistics.fmean(logs) - wide), math.exp(statistics.fmean(logs) + wide)

    @property
    def _logs(self) -> list[float]:
        return [math.log(pair.supervised_s / pair.bare_s) for pair in self.pairs]


def measure_overhead(
    make_plan: Callable[[], RunPlan],
    signer: Signer,
    *,
    pairs: int,
    turn_s: float = 0.5,
    burden_s: float = 0.0,
    control: bool = False,
    say: Callable[[str], None],
) -> Overhead:
    """Times pairs of fresh runs, one supervised and one bare, in turns on the same cores.

    Args:
        make_plan: Plans a fresh run.
        turn_s: Seconds for which one side runs while the other stands still.
        burden_s: Added work of the supervisor for each event, seconds of CPU. What the run loses to
            it stands out of the noise, and says how much of the supervisor's work a run feels.
        control: Nobody is supervised: what the method finds where nothing differs.

    Raises:
        KitError: A run did not end well, or the two did not do the same work.
    """
    found = []
    for number in range(pairs):
        plans = make_plan(), make_plan()
        sides = [
            partial(run_bare, plans[0])
            if control
            else partial(run_supervised, plans[0], signer, burden_s),
            partial(run_bare, plans[1]),
        ]
        # Who begins is exchanged: the second meets warmer caches.
        order = (0, 1) if number % 2 == 0 else (1, 0)
        ends = take_turns([sides[i] for i in order], turn_s)
        (turns, clocked), (bare_turns, bare) = (ends[i] for i in order)
        _check_same_work(*plans)
        pair = Pair(seconds_within(turns, clocked), seconds_within(bare_turns, bare), clocked.cpu_s)
        found.append(pair)
        say(
            f"pair {number + 1}: {pair.supervised_s:.2f} s, and {pair.bare_s:.2f} s bare: "
            f"{pair.supervised_s / pair.bare_s - 1:+.2%}"
        )
        for plan in plans:
            shutil.rmtree(plan.run)
            shutil.rmtree(plan.cache, ignore_errors=True)
    return Overhead(found)


def run_supervised(plan: RunPlan, signer: Signer, burden_s: float = 0.0) -> Clocked:
    """A run as `n4090-kit run` does it; on the clock from `run_start` to `run_stop`."""
    moments: dict[str, tuple[int, float]] = {}

    def observe(event: dict[str, Any]) -> None:
        until = time.thread_time() + burden_s
        while burden_s and time.thread_time() < until:
            pass
        if event["ev"] in ("run_start", "run_stop"):
            moments[event["ev"]] = boottime_ns(), time.process_time()

    result = json.loads(
        supervise(plan, signer, observe=observe, stop=StopFlag()).read_text(encoding="utf-8")
    )
    if result["claims"]["status"] != "complete":
        raise KitError(f"the supervised run did not end well: {result['claims']['message']}")
    began, ended = moments["run_start"], moments["run_stop"]
    return Clocked(began[0], ended[0], ended[1] - began[1])


def run_bare(plan: RunPlan) -> Clocked:
    """The stages' commands one after another, as by hand: a file takes what they report."""
    logs = plan.run / "logs"
    logs.mkdir(parents=True)
    start_ns, used = boottime_ns(), time.process_time()
    end_ns = deadline_ns(start_ns, plan.recipe.budget_s)
    for stage in plan.recipe.stages:
        request = build_request(
            stage,
            recipe=plan.recipe,
            run_id=plan.run.name,
            run=plan.run,
            cache=plan.cache,
            inputs=plan.inputs.as_dict(),
            seed=plan.seed,
            attempt=0,
            device=plan.device,
            threads=plan.threads,
            clock={
                "start_ns": start_ns,
                "stage_start_ns": boottime_ns(),
                "deadline_ns": end_ns,
                "budget_s": plan.recipe.budget_s,
            },
        )
        path = plan.run / f"request-{stage}.json"
        path.write_text(json.dumps(request))
        with (
            (plan.run / "events.jsonl").open("ab") as events,
            (logs / f"{stage}.txt").open("ab") as printed,
        ):
            descriptor = str(events.fileno())
            done = subprocess.run(
                [*stage_command(stage, plan.recipe, sys.executable), str(path)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=logs,
                env={**stage_environment(plan.threads, plan.run), EVENTS_FD_VARIABLE: descriptor},
                pass_fds=(events.fileno(),),
                preexec_fn=die_with_parent,
                check=False,
            )
        if done.returncode:
            said = (logs / f"{stage}.txt").read_text(errors="replace")[-500:]
            raise KitError(f"stage {stage} of the bare run failed: {said}")
    return Clocked(start_ns, boottime_ns(), time.process_time() - used)


def take_turns(sides: Sequence[Side], turn_s: float) -> list[tuple[list[Turn], Clocked]]:
    """Does each of `sides` in a process of its own, one at a time, until all have ended.

    Returns:
        For each side its turns, and what it returned.

    Raises:
        KitError: A side did not end well; the others are ended.
    """
    turns: list[list[Turn]] = [[] for _ in sides]
    trees = [_Tree(side) for side in sides]
    try:
        while any(tree.alive for tree in trees):
            for tree, own in zip(trees, turns, strict=True):
                if tree.alive:
                    began_ns = boottime_ns()
                    tree.run(turn_s)
                    own.append(Turn(began_ns, boottime_ns()))
        return [(own, tree.returned()) for tree, own in zip(trees, turns, strict=True)]
    finally:
        for tree in trees:
            tree.kill()


def seconds_within(turns: Sequence[Turn], clocked: Clocked) -> float:
    """Seconds of `turns` between the two moments."""
    return sum(
        max(0, min(turn.ended_ns, clocked.ended_ns) - max(turn.began_ns, clocked.began_ns)) / 1e9
        for turn in turns
    )


class _Tree:
    """A process and all that it started; they run and stand still together."""

    def __init__(self, side: Side) -> None:
        self._receiver, sender = _FORK.Pipe(duplex=False)
        self._process: BaseProcess = _FORK.Process(target=_do, args=(side, sender))
        self._stopped: list[int] = []

    @property
    def alive(self) -> bool:
        """Not ended; perhaps not begun."""
        return self._process.pid is None or self._process.is_alive()

    def run(self, seconds: float) -> None:
        """Goes on for so long, or to the end.

        Raises:
            KitError: It did not end well.
        """
        if self._process.pid is None:
            self._process.start()
        _signal(self._stopped, signal.SIGCONT)
        self._process.join(seconds)
        if self._process.is_alive():
            self._stop()
        elif self._process.exitcode:
            if self._receiver.poll():
                raise self._receiver.recv()
            raise KitError(f"a run ended with exit code {self._process.exitcode}")

    def returned(self) -> Clocked:
        returned: Clocked = self._receiver.recv()
        return returned

    def kill(self) -> None:
        if self._process.pid is not None and self._process.is_alive():
            self._stop()
            _signal(self._stopped, signal.SIGKILL)
            self._process.join()

    def _stop(self) -> None:
        import psutil  # type: ignore[import-untyped]

        assert self._process.pid is not None
        self._stopped, found = [], [self._process.pid]
        while found:  # the next look finds what was started before the signal arrived
            _signal(found, signal.SIGSTOP)
            self._stopped += found
            children = psutil.Process(self._process.pid).children(recursive=True)
            found = [child.pid for child in children if child.pid not in self._stopped]


def _do(side: Side, sender: Connection) -> None:
    die_with_parent()  # killed, this bench must not leave a side standing still for ever
    try:
        sender.send(side())
    except KitError as error:
        sender.send(error)
        sys.exit(1)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _check_same_work(first: RunPlan, second: RunPlan) -> None:
    for stage in first.recipe.stages:
        outputs = stage_outputs(stage)
        trees = [
            [
                file
                for file in tree_manifest(plan.run / outputs)
                if not file.path.startswith("state/")
            ]
            for plan in (first, second)
        ]
        if trees[0] != trees[1]:
            raise KitError(f"the two runs left different files in {outputs}")

"""What supervision costs: a run's stages under the supervisor, and the same requests without it.

Two costs: what the supervisor uses of its own (a busy machine hardly changes its CPU seconds), and
what it takes from the trainer, seen in the CPU seconds of the trainer's own processes with it and
without. The ratio of wall times holds both, and everything else that the machine does: it wants a
quiet machine and several rounds.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from kit.errors import KitError
from kit.run.contract import EVENTS_FD_VARIABLE, stage_command, stage_outputs
from kit.run.plan import RunPlan, stage_environment
from kit.run.process import StopFlag
from kit.run.supervisor import supervise
from kit.timing import boottime_ns
from kit.trust.keys import Signer


class Round(NamedTuple):
    """Seconds of a run's stages, done both ways, and CPU seconds of trainer and supervisor."""

    supervised_s: float
    bare_s: float
    supervisor_cpu_s: float
    supervised_cpu_s: float
    bare_cpu_s: float
    telemetry_share: float | None  # of one core, as the run itself recorded it


class Overhead(NamedTuple):
    rounds: list[Round]

    @property
    def cpu_share(self) -> float:
        """The supervisor's CPU seconds over the run's wall seconds."""
        return statistics.median(r.supervisor_cpu_s / r.supervised_s for r in self.rounds)

    @property
    def trainer_cpu_ratio(self) -> float:
        """The trainer's CPU seconds under the supervisor over those without."""
        return statistics.median(r.supervised_cpu_s / r.bare_cpu_s for r in self.rounds)

    @property
    def wall_ratio(self) -> float:
        return statistics.median(r.supervised_s / r.bare_s for r in self.rounds)


def measure_overhead(
    make_plan: Callable[[], RunPlan],
    signer: Signer,
    *,
    rounds: int,
    say: Callable[[str], None],
) -> Overhead:
    """Times fresh runs with and without the supervisor, in turn.

    The bare trainer gets the very requests that the supervised one got, in the same run folder with
    the stages' outputs taken away; its reports go nowhere.
    """
    found = []
    for number in range(rounds):
        plan = make_plan()
        began, used, trainer = time.perf_counter(), time.process_time(), _children_cpu_s()
        result = json.loads(
            supervise(plan, signer, observe=lambda event: None, stop=StopFlag()).read_text()
        )
        used, whole_s = time.process_time() - used, time.perf_counter() - began
        supervised_cpu_s = _children_cpu_s() - trainer
        if result["claims"]["status"] != "complete":
            raise KitError(f"the run did not end well: {result['claims']['message']}")
        supervised_s = result["timing"]["total_s"]
        trainer = _children_cpu_s()
        bare_s = sum(_bare(plan, stage) for stage in plan.recipe.stages)
        bare_cpu_s = _children_cpu_s() - trainer
        found.append(
            Round(
                supervised_s,
                bare_s,
                used * supervised_s / whole_s,
                supervised_cpu_s,
                bare_cpu_s,
                (result["telemetry"]["summary"] or {}).get("core_share"),
            )
        )
        say(
            f"round {number + 1}: {supervised_s:.2f} s supervised, {bare_s:.2f} s bare; the "
            f"supervisor used {used:.2f} s of CPU in {whole_s:.1f} s, the trainer "
            f"{supervised_cpu_s:.1f} s with it and {bare_cpu_s:.1f} s without"
        )
        shutil.rmtree(plan.run)
    return Overhead(found)


def _children_cpu_s() -> float:
    """CPU seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bare(plan: RunPlan, stage: str) -> float:
    """Seconds of the stage's command alone."""
    request = json.loads((plan.run / f"request-{stage}.json").read_text())
    shutil.rmtree(plan.run / stage_outputs(stage), ignore_errors=True)
    now, clock = boottime_ns(), request["clock"]
    shift = now - clock["stage_start_ns"]
    for name in ("start_ns", "stage_start_ns", "deadline_ns"):
        clock[name] += shift
    path = plan.run / "request-bare.json"
    path.write_text(json.dumps(request))
    command = [*stage_command(stage, plan.recipe, sys.executable), str(path)]
    events = os.open(os.devnull, os.O_WRONLY)
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env={**stage_environment(plan.threads, plan.run), EVENTS_FD_VARIABLE: str(events)},
            pass_fds=(events,),
            cwd=plan.run / "logs",
            capture_output=True,
            check=False,
        )
    finally:
        os.close(events)
    if done.returncode:
        raise KitError(f"the bare trainer failed: {done.stderr.decode(errors='replace')[-300:]}")
    return time.perf_counter() - began

"""V04, V05 and V08: the log is whole, in order, and without a hole."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise

from kit.events import (
    Artifacts,
    Data,
    End,
    Event,
    Resume,
    RunStart,
    RunStop,
    StageStart,
    StageStop,
    Step,
)
from kit.verify.evidence import Evidence
from kit.verify.finding import Check, Finding, conclude, fail, ok, warn
from kit.verify.thresholds import (
    CLOCK_SHARE,
    CLOCK_SLACK_S,
    GAP_MEDIANS,
    GAP_MIN_S,
    LOST_STEPS,
    STALL_S,
)


def chain(evidence: Evidence) -> Iterator[Finding]:
    """Each line holds the one before it; count and head are the signed ones."""
    log = evidence.chain
    for message, place, expected, found in evidence.log_problems[:10]:
        yield fail(message, place, expected=expected, found=found)
    if evidence.log_problems:
        return
    yield ok(f"{log.count:,} events in one chain, head {log.head[7:19]}…")
    claimed = evidence.result.telemetry.digest
    if claimed is None:
        return
    told = evidence.log.telemetry
    telemetry = evidence.telemetry
    for problem in telemetry.chain.problems[:3]:
        yield fail(problem.message, f"telemetry.jsonl, line {problem.line}")
    for name in ("head", "count"):
        found = getattr(telemetry.chain, name)
        if told and getattr(told, name) != found:
            yield fail(
                f"the telemetry's {name} does not match the log",
                f"telemetry.jsonl, {name}",
                expected=getattr(told, name),
                found=found,
            )
    if telemetry.chain.problems:
        return  # nor is a file hashed that is larger than any telemetry
    digest = evidence.digest("telemetry.jsonl")
    if digest != claimed:
        yield fail(
            "telemetry.jsonl is not the signed file",
            "telemetry.digest",
            expected=claimed,
            found=digest,
        )
    if telemetry.malformed:
        yield fail(f"{telemetry.malformed} telemetry records are malformed", "telemetry.jsonl")


def order(evidence: Evidence) -> Iterator[Finding]:
    """Time only moves forward; start, stages and stop stand in each other as a run does."""
    records = evidence.log.events
    previous = -1
    for line, event in enumerate(records, start=1):
        if event.t_ns < previous:
            yield fail(
                "time runs backwards",
                f"events.jsonl, line {line}",
                expected=f"at least {previous} ns",
                found=event.t_ns,
            )
            return
        previous = event.t_ns
    problem = _grammar(records)
    if problem:
        yield fail(problem[1], f"events.jsonl, line {problem[0]}")
        return
    if evidence.log.run_stop is None:
        yield fail("the run has no stop", "events.jsonl")
        return
    yield ok(f"{len(records):,} events in order, {previous / 1e9:,.0f} s on the run's clock")


def _grammar(records: list[Event[Data]]) -> tuple[int, str] | None:
    """(line, problem) of the first event that cannot stand where it stands."""
    started = stopped = False
    finished = ended = False  # the run was complete; its log was closed
    stage: str | None = None
    done: set[str] = set()
    for line, event in enumerate(records, start=1):
        data = event.data
        if line == 1:  # the header
            continue
        if isinstance(data, RunStart):
            if started:
                return line, "the run starts a second time"
            started = True
        elif isinstance(data, Resume):
            if ended:
                return line, "a complete run is continued"
            stage, stopped = None, finished  # a complete run may only be closed, not continued
        elif isinstance(data, StageStart):
            if finished:
                return line, "a complete run is continued"
            if not started or stopped:
                return line, "a stage begins outside the run"
            if stage is not None:
                return line, f"stage {data.stage} begins inside {stage}"
            if data.stage in done:
                return line, f"stage {data.stage} begins again after it was complete"
            stage = data.stage
        elif isinstance(data, StageStop):
            if stage != data.stage:
                return line, f"stage {data.stage} stops but did not start"
            if data.status == "complete":
                done.add(data.stage)
            stage = None
        elif isinstance(data, Artifacts):
            if stage != data.stage:
                return line, "outputs are counted outside their stage"
        elif isinstance(data, RunStop):
            if not started or stopped or stage is not None:
                return line, "the run stops while a stage is running, or before the run has started"
            stopped = True
            finished = data.status == "complete"
        elif isinstance(data, End):
            ended = finished
        elif event.src != "sup" and stage is None:
            return line, f"the trainer reports `{event.ev}` outside a stage"
        elif event.src == "eval" and stage != "core":
            return line, "the evaluator reports outside CORE"
    return None


def attempts(steps: list[Event[Step]]) -> Iterator[list[Event[Step]]]:
    """Runs of steps that only grow: one for each start of the stage."""
    current: list[Event[Step]] = []
    for event in steps:
        if current and event.data.step <= current[-1].data.step:
            yield current
            current = []
        current.append(event)
    if current:
        yield current


def gaps(evidence: Evidence) -> Iterator[Finding]:
    """No unexplained silence, no missing step, no hidden restart."""
    log = evidence.log
    boot = evidence.header.boot
    for event in log.resumes:
        data = event.data
        changed = data.boot != boot
        if changed != data.rebooted:
            yield fail(
                "a resume says one thing about a reboot and the boot's name another",
                f"events.jsonl, seq {event.seq}",
                expected=f"rebooted: {changed}",
                found=f"rebooted: {data.rebooted}",
            )
        boot = data.boot
    records = log.events
    for before, after in pairwise(records):
        if not isinstance(after.data, Resume):
            continue
        elapsed_s = (after.t_ns - before.t_ns) / 1e9
        if abs(elapsed_s - after.data.downtime_s) > CLOCK_SLACK_S + CLOCK_SHARE * elapsed_s:
            yield fail(
                "downtime is not the time between the events around it",
                f"events.jsonl, seq {after.seq}",
                expected=round(elapsed_s, 3),
                found=after.data.downtime_s,
            )
    for stage, told in log.stages.items():
        attempts = [event.data.attempt for event in told.starts]
        if attempts != list(range(len(attempts))):
            yield fail(
                f"attempts of stage {stage} are not counted one by one",
                "stage_start",
                expected=list(range(len(attempts))),
                found=attempts,
            )
    for stage in ("pretrain", "sft"):
        reports = log.stages[stage].reports if stage in log.stages else []
        yield from _step_gaps(reports, stage, _sample_times_ns(evidence))
    steps = len(log.steps("pretrain"))
    yield conclude(f"{steps:,} pretraining steps without a hole, {len(log.resumes)} resumes")


def _sample_times_ns(evidence: Evidence) -> list[int]:
    """When telemetry was sampled, in order."""
    return sorted(at_ms * 10**6 for at_ms, _ in evidence.telemetry.times)


def _step_gaps(events: list[Event[Data]], stage: str, sampled_ns: list[int]) -> Iterator[Finding]:
    """Holes in the step numbers, and silences that nothing between two steps explains.

    A machine may stall (a paused guest, a full disk, a stopped supervisor) while its clocks run on.
    Such a stall is on the run's own clock, so it is worth a warning: no step is missing, it is
    short, and telemetry was silent too.
    """
    steps = [event for event in events if isinstance(event.data, Step)]
    if len(steps) < 2:
        return
    numbers = [event.data.step for event in steps if isinstance(event.data, Step)]
    strides = [after - before for before, after in pairwise(numbers)]
    stride = statistics.mode(strides)
    seqs = [event.seq for event in steps]
    intervals = [(after.t_ns - before.t_ns) / 1e9 for before, after in pairwise(steps)]
    longest = max(GAP_MIN_S, GAP_MEDIANS * statistics.median(intervals))
    # What does not explain a silence. Events that are not the stage's own (a stage that ends and
    # begins again) show as seq numbers that the stage's events leave out.
    quiet = [e.seq for e in events if e.ev not in ("step", "eval", "checkpoint")]
    own = [e.seq for e in events]
    holes = silences = 0
    for index, (step, interval) in enumerate(zip(strides, intervals, strict=True)):
        begin, end = seqs[index], seqs[index + 1]
        between = end - begin - 1
        restarted = between > _count_between(own, begin, end)
        explained = between > _count_between(quiet, begin, end)
        if step != stride and not (restarted and step <= stride):
            if restarted and step <= LOST_STEPS * stride:
                # Reports in the pipe die with the supervisor; the trainer's checkpoint does not.
                yield warn(
                    f"{stage} lost the reports of {step // stride - 1} steps in a resume",
                    f"events.jsonl, seq {end}",
                )
                continue
            holes += 1
            if holes <= 3:
                yield fail(
                    f"{stage} jumps from step {numbers[index]} to {numbers[index + 1]}",
                    f"events.jsonl, seq {end}",
                    expected=numbers[index] + stride,
                    found=numbers[index + 1],
                )
        if interval > longest and not explained:
            sampled = _count_between(sampled_ns, steps[index].t_ns, steps[index + 1].t_ns)
            if step == stride and interval <= STALL_S and sampled <= interval / 2:
                yield warn(
                    f"{stage} and its telemetry stood still for {interval:,.0f} s on the clock",
                    f"events.jsonl, seq {end}",
                )
                continue
            silences += 1
            if silences <= 3:
                yield fail(
                    f"{interval:,.0f} s of silence in {stage} that no event explains",
                    f"events.jsonl, seq {end}",
                    expected=f"at most {longest:,.0f} s",
                    found=f"{interval:,.0f} s",
                )


def _count_between(seqs: list[int], begin: int, end: int) -> int:
    """How many of the sorted `seqs` lie strictly between the two."""
    return bisect_left(seqs, end) - bisect_right(seqs, begin)


CHECKS = (
    Check(
        "V04",
        "Log",
        "Edited, dropped, reordered, spliced and added events or telemetry.",
        "events.jsonl and telemetry.jsonl, line by line, and log.head",
        chain,
    ),
    Check(
        "V05",
        "Order",
        "A moved start or stop, work before the start or after the stop, a clock set back.",
        "t_ns of every event, and which event stands inside which",
        order,
    ),
    Check(
        "V08",
        "Gaps",
        "A paused clock, a hidden restart, steps cut out of the middle.",
        "step numbers, time between steps, boots, attempts",
        gaps,
    ),
)

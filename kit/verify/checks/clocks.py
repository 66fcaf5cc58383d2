"""V06: the clocks agree, and they are the machine's own.

What is caught: a clock slowed in libc (two ways of reading one clock disagree, the code that
answers is not libc's), a wall clock that drifts as no NTP lets it, a gap over a reboot that only
the wall clock spans, a time namespace that changed, a clock that is not read.

What stays possible: a kernel or a hypervisor that slows all clocks of a machine alike, a process
that is traced and given other answers, and a kit that was patched to write what it likes (V09 sees
that only where its code is published). Against these there is only somebody else's reproduction.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from kit.events import (
    Data,
    Event,
    Resume,
    Step,
)
from kit.tracks import is_ranked
from kit.verify.checks.log import attempts
from kit.verify.evidence import Evidence
from kit.verify.finding import Check, Finding, conclude, fail, warn
from kit.verify.thresholds import (
    CLOCK_SHARE,
    CLOCK_SLACK_S,
    RTC_SHARE,
    RTC_SLACK_S,
    SLEEP_MIN_S,
    STEP_TIME_SLACK_S,
    UPTIME_SHARE,
    WALL_DRIFT_SHARE,
    WALL_JUMP_S,
    WALL_JUMPS,
    WALL_STEP_WARN_S,
)

_LIBC = re.compile(r"libc[-.].*|ld-musl-.*|libc\.musl-.*")
_CLOCKS = ("syscall_ns", "uptime_ms")


def clocks(evidence: Evidence) -> Iterator[Finding]:
    """All clocks agree, no library or namespace bends them; sleep is seen and counted."""
    ranked = is_ranked(evidence.track)
    for part in (_sources, _namespaces, _read, _disagreements, _reboots, _device_clock):
        yield from part(evidence, ranked)
    yield conclude(f"every clock of every event within {CLOCK_SHARE:.1%}")


def _sources(evidence: Evidence, ranked: bool) -> Iterator[Finding]:
    """Clocks are read from libc and the kernel; a preloaded library may not stand between."""
    environment = evidence.header.environment
    found, preloaded = environment.clocks_from, environment.ld_preload
    if found is None:
        if ranked:
            yield fail(
                "the log does not say what answered for the clocks", "environment.clocks_from"
            )
        elif preloaded:
            yield fail(
                "a preloaded library could change what clocks say",
                "environment.ld_preload",
                expected=False,
                found=True,
            )
        return
    foreign = False
    for name in ("clock_gettime", "syscall"):
        library = found.get(name)
        if isinstance(library, str) and _LIBC.fullmatch(library):
            continue
        foreign = True
        yield fail(
            f"`{name}` is not libc's own",
            f"environment.clocks_from: {name}",
            expected="libc",
            found=library,
        )
    mounted = found.get("/proc/uptime")
    if mounted != "proc":
        say = warn if mounted == "fuse.lxcfs" else fail
        yield say(
            "/proc/uptime is not the kernel's own",
            "environment.clocks_from: /proc/uptime",
            expected="proc",
            found=mounted,
        )
    if preloaded and not foreign:
        yield warn("a library was preloaded; it does not answer for the clocks", "environment")


def _namespaces(evidence: Evidence, ranked: bool) -> Iterator[Finding]:
    """A time namespace shifts clocks once and for all: it may not differ over a run."""
    begun = evidence.header.environment.time_namespace
    if begun is None and ranked:
        yield fail("the time namespace was not read", "environment.time_namespace")
    end = evidence.log.end
    places = [("end", end.environment.time_namespace)] if end else []
    for event in evidence.log.resumes:
        found = event.data.time_namespace
        # Resumes of early kits do not have it: they excuse nothing but plain clocks.
        if found is not None or begun not in (None, "none"):
            places.append((f"events.jsonl, seq {event.seq}", found))
    for place, found in places:
        if found != begun:
            yield fail(
                "the run went on in a time namespace with other offsets",
                f"environment.time_namespace: {place}",
                expected=begun,
                found=found,
            )
            return
    if begun not in (None, "none"):
        yield warn(
            "the run was in a time namespace; its offsets stayed the same",
            "environment.time_namespace",
            found=begun,
        )


def _read(evidence: Evidence, ranked: bool) -> Iterator[Finding]:
    """A clock that is there is read with every event; a missing sample excuses nothing."""
    silent = []
    for name in _CLOCKS:
        lacking = [e for e in evidence.log.events if getattr(e.clocks, name) is None]
        if not lacking:
            continue
        if len(lacking) == len(evidence.log.events):
            silent.append(name)
            if ranked:
                yield fail("a clock was never read", f"clocks.{name}")
            continue
        yield fail(
            f"events have no reading of clock {name}",
            f"events.jsonl, seq {lacking[0].seq}: {name}",
            expected="a time",
            found=f"none in {len(lacking):,} events",
        )
    if len(silent) == len(_CLOCKS) and not ranked:
        yield fail("no second clock was read", "clocks")
    elif silent and not ranked:
        yield warn("a clock was never read", f"clocks.{silent[0]}")


def _disagreements(evidence: Evidence, ranked: bool) -> Iterator[Finding]:
    asleep_s = wall_steps = 0.0
    for boot in boots(evidence.log.events):
        slept = _asleep_s(boot)
        for name, deviation_s, span_s, at in _deviations(boot, slept):
            if name == "wall":
                wall_steps = max(wall_steps, abs(deviation_s))
                continue
            allowed_s = _allowed_s(name, span_s)
            if abs(deviation_s) > allowed_s:
                ahead = "ahead of" if deviation_s > 0 else "behind"
                yield fail(
                    f"clock `{name}` is {abs(deviation_s):,.2f} s {ahead} the run's clock after "
                    f"{span_s:,.0f} s",
                    f"events.jsonl, seq {at}",
                    expected=f"within {allowed_s:.2f} s",
                    found=f"{deviation_s:+.2f} s",
                )
        yield from _wall_drift(boot)
        asleep_s += slept[-1]
    if asleep_s:
        yield warn(
            f"the machine slept for {asleep_s:,.0f} s; the clock went on", found=f"{asleep_s:.0f} s"
        )
    if wall_steps > WALL_STEP_WARN_S:
        yield warn(
            f"the wall clock was set by {wall_steps:,.0f} s during the run (it is only a label)",
            "wall_ms",
        )


def _allowed_s(name: str, span_s: float) -> float:
    # /proc/uptime and the run's clock are one clock of the kernel, read in two ways.
    return CLOCK_SLACK_S + (UPTIME_SHARE if name == "uptime" else CLOCK_SHARE) * span_s


def _wall_drift(boot: list[Event[Data]]) -> Iterator[Finding]:
    """The wall clock is set in jumps or slewed with the run's clock, never drawn away from it."""
    if len(boot) < 2:
        return
    ahead_s = [event.wall_ms / 1e3 - event.t_ns / 1e9 for event in boot]
    moves = [after - before for before, after in pairwise(ahead_s)]
    jumps = [move for move in moves if abs(move) > WALL_JUMP_S]
    span_s = (boot[-1].t_ns - boot[0].t_ns) / 1e9
    drift_s = math.fsum(move for move in moves if abs(move) <= WALL_JUMP_S)
    allowed_s = CLOCK_SLACK_S + WALL_DRIFT_SHARE * span_s
    if abs(drift_s) > allowed_s:
        yield fail(
            "the wall clock drifted from the run's clock, as no NTP makes it",
            "wall_ms",
            expected=f"within {allowed_s:.2f} s in {span_s:,.0f} s, jumps apart",
            found=f"{drift_s:+.2f} s",
        )
    # One held-up process makes two jumps that cancel each other.
    lasting = [
        move for move in jumps if not any(abs(move + other) < WALL_JUMP_S for other in jumps)
    ]
    if len(lasting) > WALL_JUMPS:
        yield fail(
            "the wall clock was set again and again",
            "wall_ms",
            expected=f"at most {WALL_JUMPS} times",
            found=f"{len(lasting)} times",
        )


def _reboots(evidence: Evidence, ranked: bool) -> Iterator[Finding]:
    """Each reboot is named, and its gap is no shorter than other clocks say."""
    records = evidence.log.events
    begun = evidence.header.environment.rtc_s
    for before, event in pairwise(records):
        data = event.data
        if not isinstance(data, Resume) or not data.rebooted:
            continue
        place = f"events.jsonl, seq {event.seq}"
        gap_s = (event.t_ns - before.t_ns) / 1e9
        booted_s, rtc = data.since_boot_s, data.rtc_s
        witnesses = []
        if booted_s is not None:
            witnesses.append("time since boot")
            if booted_s > gap_s + CLOCK_SLACK_S:
                yield fail(
                    "the machine had been up for longer than the gap in which it was started",
                    place,
                    expected=f"at least {booted_s:,.1f} s of downtime",
                    found=f"{gap_s:,.1f} s",
                )
        if begun is not None and rtc is not None:
            witnesses.append("hardware clock")
            passed_s, by_rtc_s = (event.t_ns - records[0].t_ns) / 1e9, rtc - begun
            if abs(by_rtc_s - passed_s) > RTC_SLACK_S + RTC_SHARE * passed_s:
                yield fail(
                    "the hardware clock counted another time up to a reboot than the run",
                    place,
                    expected=f"{passed_s:,.0f} s",
                    found=f"{by_rtc_s:,} s",
                )
        if not witnesses and ranked:
            yield fail("nothing but the wall clock spans a reboot", place)
        by = " and ".join(witnesses) or "nothing but the wall clock"
        yield warn(f"the machine was restarted; {gap_s:,.0f} s of downtime, bounded by {by}", place)


def _device_clock(evidence: Evidence, ranked: bool) -> Iterator[Finding]:
    """The GPU times each step on a clock of its own, which no library can slow down."""
    for stage in ("pretrain", "sft"):
        for run in attempts(evidence.log.of(stage, Step)):
            timed = [e.data for e in run[1:] if e.data.cuda_s is not None]
            device_s = math.fsum(step.cuda_s or 0.0 for step in timed)
            passed_s = (run[-1].t_ns - run[0].t_ns) / 1e9
            stated_s = math.fsum(step.dt_s or 0.0 for step in timed)
            allowed_s = STEP_TIME_SLACK_S + CLOCK_SHARE * passed_s
            if device_s > passed_s + allowed_s:
                yield fail(
                    f"the GPU's own clock counted more {stage} time than passed",
                    "cuda_s",
                    expected=f"at most {passed_s + allowed_s:,.2f} s",
                    found=f"{device_s:,.2f} s",
                )
            elif abs(device_s - stated_s) > allowed_s:
                yield fail(
                    f"the GPU's own clock and the trainer's disagree about {stage}",
                    "cuda_s",
                    expected=f"{stated_s:,.2f} s, within {allowed_s:,.2f} s",
                    found=f"{device_s:,.2f} s",
                )


def boots(records: list[Event[Data]]) -> Iterator[list[Event[Data]]]:
    """The events of each boot."""
    current: list[Event[Data]] = []
    for event in records:
        if isinstance(event.data, Resume) and event.data.rebooted:
            yield current
            current = []
        current.append(event)
    yield current


def _deviations(
    boot: list[Event[Data]], asleep: list[float]
) -> Iterator[tuple[str, float, float, int]]:
    """(clock, seconds ahead of the run's clock, seconds counted, seq) where each is worst.

    Raw clocks stand still while the machine sleeps, so the sleep is added to them. One odd event
    proves nothing (a process may be held up between two reads): a deviation counts as far as the
    next event shows it, too, and each clock's origin is the median of its first five. Events that
    lack a clock are left out of its series, which goes on behind them.
    """
    if len(boot) < 2:
        return
    t0 = boot[0].t_ns
    series: dict[str, list[tuple[int, float]]] = {}

    def take(name: str, values: list[float | None]) -> None:
        series[name] = [(i, value) for i, value in enumerate(values) if value is not None]

    spans = [(event.t_ns - t0) / 1e9 for event in boot]
    raw = [event.clocks.raw_ns / 1e9 for event in boot]
    system = [_scaled(event.clocks.syscall_ns, 1e-9) for event in boot]
    take("wall", [event.wall_ms / 1e3 for event in boot])
    take("uptime", [_scaled(event.clocks.uptime_ms, 1e-3) for event in boot])
    # Through libc and past it: what a preloaded library cannot do to both.
    take(
        "raw against the system call",
        [
            None if theirs is None else mine - theirs + span
            for mine, theirs, span in zip(raw, system, spans, strict=True)
        ],
    )
    take("raw", [value + slept for value, slept in zip(raw, asleep, strict=True)])
    for name, points in series.items():
        if len(points) < 2:
            continue
        deviations = [value - spans[index] for index, value in points]
        origin = statistics.median(deviations[:5])
        deviations = [deviation - origin for deviation in deviations]
        worst = (-math.inf, 0.0, 0.0, 0)
        for place, deviation in enumerate(deviations):
            neighbour = deviations[place + 1 if place + 1 < len(points) else place - 1]
            lasting = min((deviation, neighbour), key=abs) if deviation * neighbour > 0 else 0.0
            index = points[place][0]
            excess = abs(lasting) - _allowed_s(name, spans[index])
            if excess > worst[0]:
                worst = (excess, lasting, spans[index], boot[index].seq)
        yield name, *worst[1:]


def _scaled(value: Any, unit: float) -> float | None:
    return None if value is None else value * unit


def _asleep_s(boot: list[Event[Data]]) -> list[float]:
    """Seconds slept so far, by event: the raw clock falls behind at once, by much, and for good."""
    first = boot[0]
    slept, furthest = 0.0, 0.0
    found = []
    for event in boot:
        elapsed = event.t_ns - first.t_ns
        lag = (elapsed - event.clocks.raw_ns + first.clocks.raw_ns) / 1e9
        if lag - furthest > SLEEP_MIN_S:
            slept += lag - furthest
        furthest = max(furthest, lag)
        found.append(slept)
    return found


def slept_s(boot: list[Event[Data]]) -> float:
    """Seconds that the run's clock counted and the raw clock did not."""
    return _asleep_s(boot)[-1] if boot else 0.0


CHECKS = (
    Check(
        "V06",
        "Clocks",
        "Slowed clocks: libfaketime, time namespaces, a suspended machine that forgets to count.",
        "five clocks in every event, the GPU's own, what answers for them, reboots",
        clocks,
    ),
)

"""V27: the run took the course that its recipe gives: stages, commands, device, contract, dates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kit
from kit.contract import CONTRACT
from kit.events import (
    Artifacts,
    End,
    Event,
    Fingerprint,
    Header,
    Inputs,
    Resume,
    RunStart,
    RunStop,
    StageStart,
    StageStop,
    TelemetrySummary,
)
from kit.timing import utc_from_ms, wall_ms
from kit.trust.digest import sha256_bytes
from kit.verify.checks.log import _grammar
from kit.verify.evidence import Evidence, Refused
from kit.verify.expected import REFERENCE_COMMAND, REFERENCE_LOADER, Expected
from kit.verify.finding import Check, Finding, conclude, fail, warn
from kit.verify.thresholds import FUTURE_S, OVERTIME_S, RELEASED_VERSIONS

_NO_CACHES = sha256_bytes(b"")
# Where an event of the supervisor may stand in one sitting (from its start or a resume to its end).
_PLACE: dict[type[Any], int] = {
    Header: 0,
    Inputs: 1,
    RunStart: 3,
    StageStart: 4,
    Artifacts: 4,
    StageStop: 4,
    RunStop: 5,
    TelemetrySummary: 6,
    End: 8,
}
_NAMES = {
    0: "header",
    1: "inputs",
    2: "fingerprint before",
    3: "run_start",
    4: "stages",
    5: "run_stop",
    6: "telemetry",
    7: "fingerprint after",
    8: "end",
}


def course(evidence: Evidence) -> Iterator[Finding]:
    """Each event stands where the recipe's run has it, once, and says what that run must say."""
    if _grammar(evidence.log.events):
        raise Refused("the order of the log cannot be relied on (V05)")
    expected = evidence.expected
    for part in (_sittings, _stages, _header, _commands, _division, _dates):
        yield from part(evidence, expected)
    stages = ", ".join(evidence.log.stages)
    yield conclude(f"{stages or 'no stage'}: as recipe {evidence.recipe.name} has them")


def _place(event: Event[Any]) -> int:
    if isinstance(event.data, Fingerprint):
        return 2 if event.data.when == "before" else 7
    return _PLACE.get(type(event.data), 4)


def _sittings(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """The supervisor's own events: in their order, once, and all there at the end."""
    seen: set[int] = set()
    last, complete = -1, False
    for event in evidence.log.events:
        if isinstance(event.data, Resume):
            # A run that was complete is only closed: its stop is not repeated.
            begins_at, last = (6, 5) if complete else (4, 2)
            seen = {place for place in seen if place < begins_at}
            continue
        complete |= isinstance(event.data, RunStop) and event.data.status == "complete"
        place = _place(event)
        if place < last or (place != 4 and place in seen):
            yield fail(
                f"`{event.ev}` does not belong here",
                f"events.jsonl, seq {event.seq}",
                expected=f"after {_NAMES[last]}" if last in _NAMES else "first",
                found=_NAMES[place],
            )
            return
        seen.add(place)
        last = place
    # A stopped or failed run has measured its machine again, too; a killed one has no result.
    lacking = [_NAMES[p] for p in (0, 1, 2, 3, 5, 6, 7, 8) if p not in seen]
    if lacking:
        yield fail("events of the supervisor are missing", "events.jsonl", found=", ".join(lacking))
    start = evidence.log.run_start
    if start is not None and start.data.compile_caches != _NO_CACHES:
        yield fail(
            "the run did not begin with empty compile caches",
            "run_start",
            expected=_NO_CACHES,
            found=start.data.compile_caches,
        )


def _stages(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Stages in the recipe's order, each complete once and with its outputs."""
    order = list(expected.recipe.stages)
    done: list[str] = []
    outputs = 0
    failed: StageStop | None = None
    for event in evidence.log.events:
        data, place = event.data, f"events.jsonl, seq {event.seq}"
        if isinstance(data, StageStart):
            failed, outputs = None, 0
            following = order[len(done)] if len(done) < len(order) else "no stage"
            if data.stage != following:
                yield fail(
                    f"stage {data.stage} begins out of turn",
                    place,
                    expected=following,
                    found=data.stage,
                )
                return
        elif isinstance(data, Artifacts):
            outputs += 1
        elif isinstance(data, StageStop):
            complete = data.status == "complete"
            if outputs != int(complete):
                yield fail(
                    f"stage {data.stage} ({data.status}) counted its outputs {outputs} times",
                    place,
                    expected=int(complete),
                    found=outputs,
                )
                return
            if complete != (data.exit_code == 0) and (complete or data.reason is None):
                yield fail(
                    f"stage {data.stage} is {data.status} with exit code {data.exit_code}", place
                )
            if complete:
                done.append(data.stage)
            else:
                failed = data
        elif isinstance(data, RunStop):
            if failed is not None and (data.status, data.stage) != (failed.status, failed.stage):
                yield fail(
                    f"the run is {data.status} though stage {failed.stage} {failed.status}",
                    place,
                    expected=f"{failed.status}, stage {failed.stage}",
                    found=f"{data.status}, stage {data.stage}",
                )
            if (data.status == "complete") != (done == order):
                yield fail(
                    f"the run is {data.status} after {len(done)} of {len(order)} stages", place
                )


def _header(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Contract, versions, device and threads are those of this kit's runs."""
    header, recipe = evidence.log.header, expected.recipe
    place = "the log's header"
    if header.contract != CONTRACT:
        yield fail("another trainer contract", place, expected=CONTRACT, found=header.contract)
    if header.kit.version not in {kit.__version__, *RELEASED_VERSIONS}:
        say = fail if expected.ranked else warn
        yield say(
            "no kit of this version was published",
            f"{place}: kit.version",
            expected=", ".join(sorted({kit.__version__, *RELEASED_VERSIONS})),
            found=header.kit.version,
        )
    cores = ((header_host := evidence.log.fingerprints.get("before")) or {}).get("host", {})
    logical = cores.get("cores_logical") if header_host else None
    if header.threads is None or header.threads < 1 or (logical and header.threads > logical):
        yield fail(
            "the stages had more threads than the machine",
            f"{place}: threads",
            expected=f"1 to {logical}",
            found=header.threads,
        )
    if not header.software.get("python") or (
        expected.reference and "pretrain" in recipe.stages and not header.software.get("torch")
    ):
        yield fail("the header does not name python and torch", f"{place}: software")
    wanted = "cuda" if expected.ranked else recipe.document["device"]
    if header.device not in ("auto", "cpu", "cuda", "mps"):
        yield fail("no such device", f"{place}: device", found=header.device)
    elif wanted != "auto" and header.device not in (wanted, "auto"):
        say = fail if expected.ranked else warn
        yield say(
            "the run was told to use another device than its recipe's",
            f"{place}: device",
            expected=wanted,
            found=header.device,
        )


def _commands(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Each stage ran the recipe's program, and CORE the kit's."""
    for name, stage in evidence.log.stages.items():
        wanted = expected.command(name)
        for start in stage.starts:
            found = start.data.command
            if wanted is not None and (found is None or list(found) != wanted):
                yield fail(
                    f"stage {name} ran another program than the recipe's",
                    f"events.jsonl, seq {start.seq}",
                    expected=" ".join(wanted),
                    found=None if found is None else " ".join(found),
                )
                return


def _division(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """The closed division: the reference trainer on the reference corpus."""
    if not expected.closed:
        return
    trainer, data = expected.recipe.section("trainer"), expected.recipe.section("data")
    if not expected.reference or trainer["options"]:
        yield fail(
            "the closed division runs the reference trainer",
            "recipe: trainer",
            expected=f"{' '.join(REFERENCE_COMMAND)}, loader {REFERENCE_LOADER}",
            found=f"{' '.join(map(str, trainer['command']))}, loader {trainer['loader']}",
        )
    if data["kind"] != "hub" or data["repo"] != expected.closed_repository:
        yield fail(
            "the closed division trains on the reference corpus",
            "recipe: data",
            expected=f"hub {expected.closed_repository}",
            found=f"{data['kind']} {data['repo']}",
        )


def _dates(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Nothing lies in the future, and a complete run ended near its budget at the latest."""
    latest = max(event.wall_ms for event in evidence.log.events)
    now = wall_ms()
    if latest > now + FUTURE_S * 1000:
        yield fail(
            "the run is dated in the future",
            "wall_ms",
            expected=f"at most {utc_from_ms(now)}",
            found=utc_from_ms(min(latest, 253_402_300_799_000)),
        )
    start, stop = evidence.log.run_start, evidence.log.run_stop
    if start is None or stop is None or stop.data.status != "complete":
        return
    recipe = expected.recipe
    down_s = sum(event.data.downtime_s for event in evidence.log.resumes)
    allowed_s = recipe.budget_s + recipe.document["grace_s"] + OVERTIME_S + down_s
    total_s = (stop.t_ns - start.t_ns) / 1e9
    if total_s > allowed_s:
        yield fail(
            "the run is complete long after its deadline ended its stages",
            "timing.total_s",
            expected=f"at most {allowed_s:,.0f} s",
            found=f"{total_s:,.0f} s",
        )


CHECKS = (
    Check(
        "V27",
        "Course",
        "Stages left out, out of turn, failed or counted twice; other programs, devices, contracts "
        "and versions; a closed division with a trainer or data of its own; runs of the future.",
        "every event of the supervisor, against the recipe",
        course,
    ),
)

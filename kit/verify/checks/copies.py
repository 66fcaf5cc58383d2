"""V25: this row is not another one again, under another name."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from kit.errors import KitError
from kit.run_log import RunLog
from kit.schemas import problems
from kit.verify.checks.identity import name_of
from kit.verify.evidence import Document, Evidence, Irrelevant, read_result
from kit.verify.finding import Check, Finding, fail, ok, warn
from kit.verify.thresholds import CURVE_CORRELATION, CURVE_MIN_STEPS, CURVE_SKIPPED_SHARE

MAX_ROWS = 10_000


def copies(evidence: Evidence) -> Iterator[Finding]:
    """Neither log, telemetry, weights, answers nor the noise of the losses are another row's."""
    if not evidence.options.against:
        raise Irrelevant("no other rows were given (--against FOLDER)")
    document = evidence.document
    mine = name_of(document)
    compared, found = 0, 0
    for path, other in _rows(evidence.options.against):
        name = name_of(other)
        if name == mine:
            continue
        compared += 1
        for finding in _compare(evidence, document, other, path, name):
            found += 1
            yield finding
    if not compared:
        raise Irrelevant("no other row lies where --against looks")
    if not found:
        yield ok(f"nothing in common with {compared} other rows")


def _rows(places: tuple[Path, ...]) -> Iterator[tuple[Path, Document]]:
    """Results under the given files and folders; what is no result is no row."""
    for place in places:
        paths = [place] if place.is_file() else sorted(place.rglob("result.json"))
        for path in paths[:MAX_ROWS]:
            try:
                other = read_result(path)
            except (KitError, OSError):
                continue
            if not problems(other, "result"):
                yield path, other


def _compare(
    evidence: Evidence, mine: Document, other: Document, path: Path, name: str
) -> Iterator[Finding]:
    for what, part, field in (("log", "log", "head"), ("telemetry", "telemetry", "digest")):
        if mine[part][field] is not None and mine[part][field] == other[part][field]:
            yield fail(f"the {what} of another row", f"{part}.{field}", found=f"row {name}")
    same_seed = mine["seed"]["value"] == other["seed"]["value"]
    same_recipe = mine["recipe"]["digest"] == other["recipe"]["digest"]
    weights, theirs = mine["checkpoint"]["base"], other["checkpoint"]["base"]
    if weights and theirs and weights["digest"] == theirs["digest"]:
        # A schedule that follows the clock gives other bits each time, and so does another seed.
        by_clock = "pretrain" in evidence.recipe.facts.stage_s
        if by_clock or not (same_seed and same_recipe):
            yield fail("the weights of another row", "checkpoint.base", found=f"row {name}")
        else:
            yield warn(
                "the same weights as another row: the same seed on a CPU, or a copy",
                "checkpoint.base",
                found=f"row {name}",
            )
    elif _same_answers(mine, other):
        yield fail("the answers of another row's model", "quality.core.digest", found=f"row {name}")
    if mine["submitter"]["public_key"] != other["submitter"]["public_key"]:
        for card in sorted(_cards(mine) & _cards(other)):
            yield warn(
                "the same card as a row of another key", card[:19] + "…", found=f"row {name}"
            )
    if not same_seed and evidence.reference_trainer:
        likeness = _likeness(_losses(evidence.log), _losses_beside(path))
        if likeness is not None and likeness > CURVE_CORRELATION:
            yield fail(
                "the loss goes up and down with another row's, though the seeds differ",
                "events.jsonl",
                expected=f"a correlation of at most {CURVE_CORRELATION}",
                found=f"{likeness:.2f} with row {name}",
            )


def _same_answers(mine: Document, other: Document) -> bool:
    ours, theirs = mine["quality"]["core"], other["quality"]["core"]
    return bool(ours and theirs and ours["digest"] == theirs["digest"])


def _cards(document: Document) -> set[str]:
    gpus = (document["hardware"]["before"] or {}).get("gpus") or []
    return {gpu["uuid_hash"] for gpu in gpus if isinstance(gpu.get("uuid_hash"), str)}


def _losses(log: RunLog) -> dict[int, float]:
    return {event.data.step: float(event.data.loss) for event in log.steps()}


def _losses_beside(path: Path) -> dict[int, float]:
    """The losses in the log beside another row; none when there is none to be read."""
    try:
        return _losses(RunLog.read(path.parent))
    except (KitError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _likeness(mine: dict[int, float], other: dict[int, float]) -> float | None:
    """Correlation of what each loss is above the mean of its neighbours: the noise of its batch.

    The order of the data follows the seed, so two runs share the curve and not the noise. The
    start, where the curve itself bends, is left out.
    """
    steps = sorted(set(mine) & set(other))
    steps = steps[int(CURVE_SKIPPED_SHARE * len(steps)) :]
    if len(steps) < CURVE_MIN_STEPS:
        return None

    def noise(losses: dict[int, float]) -> list[float]:
        values = [losses[step] for step in steps]
        return [values[i] - (values[i - 1] + values[i + 1]) / 2 for i in range(1, len(values) - 1)]

    left, right = noise(mine), noise(other)
    if min(map(statistics.pstdev, (left, right))) == 0:
        return None
    return statistics.correlation(left, right)


CHECKS = (
    Check(
        "V25",
        "Copies",
        "Copied rows, borrowed weights or answers, one card under two names.",
        "other rows: logs, telemetry, weights, answers, losses, cards (--against FOLDER)",
        copies,
    ),
)

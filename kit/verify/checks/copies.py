"""V25: this row is not another one again, under another name."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

from kit.errors import KitError
from kit.files import open_regular, read_regular
from kit.result_form import Result
from kit.run_log import RunLog
from kit.trust.canonical import parse_strict
from kit.verify.checks.identity import name_of
from kit.verify.evidence import (
    MAX_EVALUATION_BYTES,
    Absent,
    Evidence,
    Irrelevant,
    Refused,
    read_result,
)
from kit.verify.finding import Check, Finding, fail, ok, warn
from kit.verify.thresholds import (
    ANSWER_CORRELATION,
    CURVE_CORRELATION,
    CURVE_MIN_STEPS,
    CURVE_SKIPPED_SHARE,
    EQUAL_LOSSES,
    EQUAL_SAMPLES,
)

MAX_ROWS = 10_000
_LAGS = 12  # steps or samples by which a copy may have been moved
_COMPARED = 1_000  # of the values of a long run
_COMPARED_BYTES = 2**20  # of another row's telemetry


def copies(evidence: Evidence) -> Iterator[Finding]:
    """Neither log, telemetry, weights, answers nor the noise of the losses are another row's."""
    if not evidence.options.against:
        raise Irrelevant("no other rows were given (--against FOLDER)")
    mine = name_of(evidence.document)
    compared, found = 0, 0
    for path, name, other in _rows(evidence.options.against):
        if name == mine:
            continue
        compared += 1
        for finding in _compare(evidence, other, path, name):
            found += 1
            yield finding
    if not compared:
        raise Irrelevant("no other row lies where --against looks")
    if not found:
        yield ok(f"nothing in common with {compared} other rows")


def _rows(places: tuple[Path, ...]) -> Iterator[tuple[Path, str, Result]]:
    """Results under the given files and folders with their ids; other files are skipped."""
    for place in places:
        paths = [place] if place.is_file() else sorted(place.rglob("result.json"))
        for path in paths[:MAX_ROWS]:
            try:
                document = read_result(path)
                result = Result.of(document)
            except (KitError, OSError):
                continue
            yield path, name_of(document), result


def _compare(evidence: Evidence, other: Result, path: Path, name: str) -> Iterator[Finding]:
    mine = evidence.result
    for what, field, ours, its in (
        ("log", "log.head", mine.log.head, other.log.head),
        ("telemetry", "telemetry.digest", mine.telemetry.digest, other.telemetry.digest),
    ):
        if ours is not None and ours == its:
            yield fail(
                f"the {what} is a copy of another row's {what}",
                field,
                found=f"equal to row {name}",
            )
    same_seed = mine.seed.value == other.seed.value
    same_recipe = mine.recipe.digest == other.recipe.digest
    weights, theirs = mine.checkpoint.base, other.checkpoint.base
    if weights and theirs and weights.digest == theirs.digest:
        # A schedule that follows the clock gives other bits each time, and so does another seed.
        by_clock = "pretrain" in evidence.recipe.facts.stage_s
        if by_clock or not (same_seed and same_recipe):
            yield fail(
                "the weights are a copy of another row's weights",
                "checkpoint.base",
                found=f"equal to row {name}",
            )
        else:
            yield warn(
                "the same weights as another row: the same seed on a CPU, or a copy",
                "checkpoint.base",
                found=f"row {name}",
            )
    elif _same_answers(mine, other):
        yield fail(
            "the answers equal those of another row's model",
            "quality.core.digest",
            found=f"equal to row {name}",
        )
    if mine.submitter.public_key != other.submitter.public_key:
        for card in sorted(_cards(mine) & _cards(other)):
            yield warn(
                "the same card as a row of another key", card[:19] + "…", found=f"row {name}"
            )
    yield from _series_alike(evidence, path, name, same_seed=same_seed)
    yield from _answers_alike(evidence, path, name)


def _series_alike(
    evidence: Evidence, path: Path, name: str, *, same_seed: bool
) -> Iterator[Finding]:
    """Losses, step times and telemetry go up and down by themselves in each run."""
    mine, theirs = _log_series(evidence.log), _series_beside(path)
    # With one seed the batches are the same, and so is what their losses have in common.
    for what, field in (("the loss", "loss"), ("the time of a step", "dt_s")):
        if field == "loss" and same_seed:
            continue
        likeness = _likeness(mine.get(field, {}), theirs.get(field, {}))
        if likeness is not None and likeness > CURVE_CORRELATION:
            yield fail(
                f"{what} goes up and down with another row's",
                "events.jsonl",
                expected=f"a correlation of at most {CURVE_CORRELATION}, at any lag",
                found=f"{likeness:.2f} with row {name}",
            )
    by_clock = "pretrain" in evidence.recipe.facts.stage_s
    if same_seed and by_clock:
        shared = _shared(list(mine["loss"].values()), list(theirs.get("loss", {}).values()))
        if shared > EQUAL_LOSSES:
            yield fail(
                "the losses of another row, which no clock gives twice",
                "events.jsonl",
                expected=f"at most {EQUAL_LOSSES:.0%} of them equal",
                found=f"{shared:.0%} with row {name}",
            )
    try:
        watts, others = [w for _, w in evidence.telemetry.power], _power_beside(path)
    except Absent:
        return
    shared = max((_shared(watts[lag:], others) for lag in range(_LAGS)), default=0.0)
    shared = max(shared, *(_shared(watts, others[lag:]) for lag in range(_LAGS)))
    if shared > EQUAL_SAMPLES:
        yield fail(
            "the power samples of another row",
            "telemetry.jsonl",
            expected=f"at most {EQUAL_SAMPLES:.0%} of them equal, at any lag",
            found=f"{shared:.0%} with row {name}",
        )


def _answers_alike(evidence: Evidence, path: Path, name: str) -> Iterator[Finding]:
    """Two trainings get other items right, also where their scores are equal."""
    try:
        mine = evidence.evaluation_file("core")
        other = parse_strict(
            read_regular(path.parent / "eval/core.json", MAX_EVALUATION_BYTES), name="core.json"
        )
    except (Absent, Refused, KitError, OSError):
        return
    if mine is None or not isinstance(other, dict):
        return
    theirs = {
        t.get("label"): t.get("outcomes") for t in other.get("tasks") or [] if type(t) is dict
    }
    alike = [
        found
        for task in mine["tasks"]
        if (found := _agreement(task["outcomes"], theirs.get(task["label"]))) is not None
    ]
    if len(alike) >= 3 and statistics.fmean(alike) > ANSWER_CORRELATION:
        say = warn if _same_digest(evidence, path) else fail
        yield say(
            "the answers nearly equal those of another row's model",
            "eval/core.json",
            expected=f"a mean correlation of at most {ANSWER_CORRELATION} over tasks",
            found=f"{statistics.fmean(alike):.3f} with row {name}",
        )


def _same_digest(evidence: Evidence, path: Path) -> bool:
    """Whether the other row has the same weights, which another finding is about."""
    base, theirs = evidence.result.checkpoint.base, None
    with contextlib.suppress(KitError, OSError):
        theirs = Result.of(read_result(path)).checkpoint.base
    return bool(base and theirs and base.digest == theirs.digest)


def _agreement(mine: object, theirs: object) -> float | None:
    """Correlation of right and wrong over the items of a task; None where it has too few."""
    if not isinstance(mine, str) or not isinstance(theirs, str) or len(mine) != len(theirs):
        return None
    left, right = [float(c == "1") for c in mine], [float(c == "1") for c in theirs]
    if len(left) < 50 or min(map(statistics.pstdev, (left, right))) < 0.1:
        return None
    return statistics.correlation(left, right)


def _same_answers(mine: Result, other: Result) -> bool:
    ours, theirs = mine.quality.core, other.quality.core
    return bool(ours and theirs and ours.digest == theirs.digest)


def _cards(result: Result) -> set[str]:
    gpus = (result.hardware.before or {}).get("gpus") or []
    return {gpu["uuid_hash"] for gpu in gpus if isinstance(gpu.get("uuid_hash"), str)}


Series = dict[str, dict[int, float]]


def _log_series(log: RunLog) -> Series:
    """Loss and time of each pretraining step, by step."""
    steps = [event.data for event in log.steps()]
    return {
        "loss": {step.step: float(step.loss) for step in steps},
        "dt_s": {step.step: float(step.dt_s) for step in steps if step.dt_s is not None},
    }


def _series_beside(path: Path) -> Series:
    """The series in the log beside another row; none when there is none to be read."""
    try:
        return _log_series(RunLog.read(path.parent))
    except (KitError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _power_beside(path: Path) -> list[float]:
    """The first power samples beside another row; none when there are none to be read."""
    found: list[float] = []
    try:
        with open_regular(path.parent / "telemetry.jsonl") as file:
            for line in file.read(_COMPARED_BYTES).split(b"\n")[:-1]:
                watts = json.loads(line).get("gpu_power_w")
                if isinstance(watts, int | float):
                    found.append(float(watts))
    except (KitError, OSError, ValueError, AttributeError, RecursionError):
        return []
    return found


def _shared(mine: list[float], theirs: list[float]) -> float:
    """Share of places at which two series have one and the same value; 0 for short ones."""
    pairs = list(zip(mine[:_COMPARED], theirs[:_COMPARED], strict=False))
    return sum(a == b for a, b in pairs) / len(pairs) if len(pairs) >= CURVE_MIN_STEPS else 0.0


def _likeness(mine: dict[int, float], other: dict[int, float]) -> float | None:
    """The largest absolute correlation, at any lag, of what each value is above its neighbours.

    That is the noise of a batch, or of a machine. The order of the data follows the seed, so two
    runs share the curve and not the noise. The start, where the curve itself bends, is left out; of
    a long run a stretch in the middle is compared.
    """
    steps = sorted(set(mine) & set(other))
    steps = steps[int(CURVE_SKIPPED_SHARE * len(steps)) :]
    middle = max(0, len(steps) - _COMPARED) // 2
    steps = steps[middle : middle + _COMPARED]
    if len(steps) < CURVE_MIN_STEPS:
        return None

    def noise(values: dict[int, float]) -> list[float]:
        found = [values[step] for step in steps]
        rest = [found[i] - (found[i - 1] + found[i + 1]) / 2 for i in range(1, len(found) - 1)]
        # A few wild values, put in to hide the rest, count no more than other large ones.
        most = 4 * statistics.median(map(abs, rest))
        return [min(most, max(-most, value)) for value in rest]

    left, right = noise(mine), noise(other)
    best = 0.0
    for lag in range(-_LAGS, _LAGS + 1):
        one = left[max(0, lag) : len(left) + min(0, lag)]
        two = right[max(0, -lag) : len(right) + min(0, -lag)]
        if len(one) < CURVE_MIN_STEPS - _LAGS or min(map(statistics.pstdev, (one, two))) == 0:
            continue
        found = abs(statistics.correlation(one, two))
        # Of few values the largest over all lags is larger by chance.
        best = max(best, found if lag == 0 else found - 1.5 / math.sqrt(len(one)))
    return best


CHECKS = (
    Check(
        "V25",
        "Copies",
        "Copied rows, borrowed weights or answers, one card under two names.",
        "other rows: logs, telemetry, weights, answers, losses, cards (--against FOLDER)",
        copies,
    ),
)

"""V07: every figure of the result, computed again from the log and the evaluation files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kit.core_eval.statistics import TaskOutcomes, normal_interval
from kit.verify import recompute
from kit.verify.evidence import Absent, Evidence, Refused
from kit.verify.finding import Check, Finding, fail, missing, ok, skip
from kit.verify.thresholds import INTERVAL_ERRORS, RELATIVE_ROUNDING

_SHOWN = 12


def headline(evidence: Evidence) -> Iterator[Finding]:
    """Every figure equals the one recomputed from the log and the evaluation files."""
    document, log = evidence.document, evidence.log
    quality: dict[str, Any] = {
        **document["quality"],
        "val_bpb": recompute.evaluated(log, "pretrain", "val_bpb"),
        "sft_loss": recompute.evaluated(log, "sft", "sft_val_loss"),
    }
    for part, stage in (("core", "core"), ("chat", "chat_eval")):
        try:
            quality[part] = evidence.evaluation(stage)
        except Absent as absent:
            yield missing(f"quality.{part} could not be recomputed: {absent}")
        except Refused as refused:
            yield skip(f"quality.{part} could not be recomputed: {refused}")
    timing = recompute.timing(log, evidence.recipe.budget_s)
    within = timing["within_budget"]
    expected: dict[str, Any] = {
        "timing": timing,
        "training": recompute.training(log),
        "environment": recompute.environment(log),
        "notes": recompute.notes(log, evidence.recipe.stages),
        "quality": quality,
        "claims": recompute.claims(log, evidence.recipe.track, within, quality["core"]),
        "runs": recompute.runs(log),
    }
    found = [
        difference
        for section in expected
        for difference in differences(expected[section], document[section], section)
    ]
    for place, computed, stated in found[:_SHOWN]:
        yield fail(
            "does not match the figure recomputed from the log",
            place,
            expected=computed,
            found=stated,
        )
    intervals = list(_interval(evidence)) if not found else []
    yield from intervals
    if len(found) > _SHOWN:
        yield fail(f"{len(found) - _SHOWN} more differences")
    if not found and not intervals:
        count = sum(1 for section in expected for _ in _leaves(expected[section]))
        yield ok(f"{count} figures recomputed, status {evidence.result.claims.status}")


def _interval(evidence: Evidence) -> Iterator[Finding]:
    """CORE's interval is about the one that its outcomes give; the bootstrap's own draws vary."""
    try:
        scored = evidence.evaluation_file("core")
    except (Absent, Refused):
        return
    if scored is None:
        return
    expected = normal_interval(
        [
            TaskOutcomes(task["label"], task["file"], task["baseline"], task["outcomes"])
            for task in scored["tasks"]
        ]
    )
    stated = scored["interval"]
    allowed = INTERVAL_ERRORS * expected.standard_error + 1e-9
    for name, value in (("low", expected.low), ("high", expected.high)):
        if abs(stated[name] - value) > allowed:
            yield fail(
                "the interval is not the one that the outcomes give",
                f"quality.core.interval: {name}",
                expected=f"{value:.5f}, within {allowed:.5f}",
                found=stated[name],
            )


def unequal(expected: Any, found: Any, place: str, other: str) -> Iterator[Finding]:
    """A failure wherever `found`, of the result, is not `expected`, of `other`."""
    for where, want, have in differences(expected, found, place):
        yield fail(f"differs from {other}", where, expected=want, found=have)


def differences(expected: Any, found: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """(place, expected, found) wherever two JSON values differ by more than rounding."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            if key not in found:
                yield f"{place}.{key}", expected[key], "missing"
            elif key not in expected:
                yield f"{place}.{key}", "missing", found[key]
            else:
                yield from differences(expected[key], found[key], f"{place}.{key}")
    elif isinstance(expected, list | tuple) and isinstance(found, list):
        if len(expected) != len(found):
            yield place, f"{len(expected)} entries", f"{len(found)} entries"
            return
        for index, (left, right) in enumerate(zip(expected, found, strict=True)):
            yield from differences(left, right, f"{place}[{index}]")
    elif not _same(expected, found):
        yield place, expected, found


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=RELATIVE_ROUNDING, abs_tol=1e-12)
    return bool(expected == found)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


CHECKS = (
    Check(
        "V07",
        "Figures",
        "Typed-in scores, times and totals.",
        "timing, training, quality, claims, environment, notes; events.jsonl and eval/*.json",
        headline,
    ),
)

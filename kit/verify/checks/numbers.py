"""V07: every figure of the result, computed again from the log and the evaluation files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kit.core_eval.statistics import TaskOutcomes, normal_interval
from kit.result import (
    environment_section,
    notes_section,
    quality_section,
    reasons_not_ranked,
    runs_section,
    timing_section,
    training_section,
)
from kit.verify.evidence import Absent, Evidence, Refused
from kit.verify.finding import Check, Finding, fail, missing, ok, skip
from kit.verify.thresholds import INTERVAL_ERRORS, RELATIVE_ROUNDING

_SHOWN = 12


def headline(evidence: Evidence) -> Iterator[Finding]:
    """Nothing in the result is typed in."""
    document, story = evidence.document, evidence.story
    stop = story.run_stop["data"] if story.run_stop else {"status": "failed", "reason": "killed"}
    expected: dict[str, Any] = {
        "timing": timing_section(story, evidence.recipe.budget_s),
        "training": training_section(story),
        "environment": environment_section(story),
        "notes": notes_section(story, evidence.recipe.stages),
    }
    quality: dict[str, Any] = dict(document["quality"])
    for part, stage in (("core", "core"), ("chat", "chat_eval")):
        try:
            quality[part] = evidence.evaluation(stage)
        except Absent as absent:
            yield missing(f"quality.{part} was not computed again: {absent}")
        except Refused as refused:
            yield skip(f"quality.{part} was not computed again: {refused}")
    recomputed = quality_section_from_log(evidence)
    quality.update(recomputed)
    expected["quality"] = quality
    claims = document["claims"]
    why = reasons_not_ranked(evidence.recipe.track, stop, expected["timing"], quality)
    expected["claims"] = {
        "status": stop["status"],
        "reason": stop.get("reason"),
        "message": stop.get("message"),
        "stage": stop.get("stage"),
        "ranked": not why,
        "why_not_ranked": why,
    }
    expected["runs"] = runs_section(story)
    found = [
        difference
        for section in expected
        for difference in differences(expected[section], document[section], section)
    ]
    for place, computed, stated in found[:_SHOWN]:
        yield fail("differs from what the log gives", place, expected=computed, found=stated)
    intervals = list(_interval(evidence)) if not found else []
    yield from intervals
    if len(found) > _SHOWN:
        yield fail(f"{len(found) - _SHOWN} more differences")
    if not found and not intervals:
        count = sum(1 for section in expected for _ in _leaves(expected[section]))
        yield ok(f"{count} figures computed again, total {claims['status']}")


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


def quality_section_from_log(evidence: Evidence) -> dict[str, Any]:
    """`val_bpb` and `sft_loss`: the part of the quality that the log alone gives."""
    story = evidence.story
    kept, story.artifacts = story.artifacts, {}
    try:
        section = quality_section(story, evidence.folder)
    finally:
        story.artifacts = kept
    return {"val_bpb": section["val_bpb"], "sft_loss": section["sft_loss"]}


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

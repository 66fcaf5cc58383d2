"""The name of a score: CORE is all items of all 22 tasks of the CORE bundle, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FULL_CORE_TASKS = 22
PARTIAL_SCORE = "partial score"
OWN_SCORE = "own-questions score"


def is_core(section: Mapping[str, Any] | None) -> bool:
    """Whether `section` holds a CORE score.

    Args:
        section: `quality.core` of a result, or an evaluation file (eval/core.json): with `bundle`,
            `partial` and `tasks`.
    """
    return (
        section is not None
        and _kind(section) == "core"
        and not section["partial"]
        and len(section["tasks"]) == FULL_CORE_TASKS
    )


def score_name(section: Mapping[str, Any]) -> str:
    """`CORE`, or the name of the smaller score that `section` holds."""
    if is_core(section):
        return "CORE"
    return PARTIAL_SCORE if _kind(section) == "core" else OWN_SCORE


def score_key(section: Mapping[str, Any]) -> str:
    """The same for machines: `core`, `partial_score` or `own_questions_score`."""
    return score_name(section).lower().replace(" ", "_").replace("-", "_")


def named_scores(section: Mapping[str, Any] | None) -> dict[str, Any]:
    """`core`: the CORE score or None; `score`: any other score with its name, or None."""
    if section is None:
        return {"core": None, "score": None}
    if is_core(section):
        return {"core": section["value"], "score": None}
    return {"core": None, "score": {"name": score_name(section), "value": section["value"]}}


def _kind(section: Mapping[str, Any]) -> str:
    bundle = section["bundle"]
    return str(bundle["kind"] if isinstance(bundle, Mapping) else bundle)

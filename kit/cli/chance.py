"""Scores at chance: said before a run whose model is too small for CORE, and after it."""

from __future__ import annotations

from typing import Any

from kit.recipe import Recipe
from kit.run.preflight import estimate

# The smallest training whose CORE `plan` knows (8.8e17 FLOPs) scores 0.14; the line through the
# larger ones, about 0.07 a decade, meets 0 near this many FLOPs.
_FLOPS_OF_CHANCE = 1e16


def expected_at_chance(recipe: Recipe) -> str | None:
    """What to say before the run, or None: its model may score above chance, or is not asked."""
    if "core" not in recipe.stages or recipe.section("data")["kind"] == "stories":
        return None
    plan = estimate(recipe)
    if plan is None or plan["flops"]["causal"] > _FLOPS_OF_CHANCE:
        return None
    return (
        f"{plan['parameters']['total'] / 1e6:,.0f} M parameters and {plan['tokens'] / 1e6:,.1f} M "
        "tokens are too few for CORE: expect a score about 0, which is guessing. The answer "
        "likelihood (bits per byte of right answers) tells such models apart."
    )


def measured_at_chance(core: dict[str, Any]) -> str | None:
    """What to say of a score whose interval holds 0; None for others."""
    low, high = core["interval"] or (1.0, 1.0)
    if not low <= 0.0 <= high:
        return None
    return "at chance: the interval holds 0, which is guessing"

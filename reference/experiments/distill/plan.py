"""When a run teaches itself, what that costs, and what memory it takes. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from reference.config.experiment import VramPlan
from reference.config.model import ModelConfig
from reference.experiments.growth.plan import model_at


def teacher_share(section: Mapping[str, Any], progress: float) -> float | None:
    """The share at which the teacher in force at `progress` was taken; None while there is none."""
    begin = section.get("distill_from") or 0.0
    if not begin or progress < begin:
        return None
    every = section.get("distill_refresh") or 0.0
    # A hair more, so that a share that was meant is not missed by rounding.
    return begin + every * math.floor((progress - begin) / every + 1e-9) if every else begin


def changes_at(section: Mapping[str, Any]) -> Iterator[float]:
    """The shares at which a teacher is taken."""
    share, every = section.get("distill_from") or 0.0, section.get("distill_refresh") or 0.0
    while 0 < share < 1:
        yield share
        share = share + every if every else 1.0


def taught_by(config: ModelConfig, section: Mapping[str, Any], share: float) -> ModelConfig | None:
    """The teacher's model at an elapsed share of the run."""
    taken = teacher_share(section, share)
    return None if taken is None else model_at(config, section, taken)


def vram_bytes(config: ModelConfig, _section: Mapping[str, Any], plan: VramPlan) -> dict[str, int]:
    """The teacher's weights, final states and 16-bit head, and both distributions of a chunk.

    The logits are then not fused: fp32 scores, their gradient and a bf16 copy instead of bf16.
    """
    states = 2 * plan.tokens * config.n_embd
    logits = plan.chunk * config.padded_vocab_size * (4 + 4 + (4 + 4))
    return {"teacher": plan.weights + states + logits + 2 * plan.head}

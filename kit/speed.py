"""The speed of a training: tokens over the seconds of its whole stage, everything counted."""

from __future__ import annotations

from typing import Any


def stage_speed(result: dict[str, Any]) -> float | None:
    """Tokens a second of pretraining; None without a finished stage.

    The stage's seconds hold start, compilation, evaluations and checkpoints. A result's
    `training.tokens_per_s` is another figure: that of the median step.
    """
    seconds, tokens = result["timing"]["pretrain_s"], result["training"]["tokens"]
    return tokens / seconds if seconds and tokens else None

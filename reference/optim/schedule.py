"""Schedules of the learning rate, Muon's momentum and its weight decay.

They follow `progress`, the elapsed share of the run's budget (time or steps, the caller's choice),
so that a slower card ends its schedule on time; only the first steps' warm-ups count steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from reference.config.pretrain import Pretrain


class Schedule(NamedTuple):
    """What a step uses: `lr` and `weight_decay` multiply each group's own, `momentum` is Muon's."""

    lr: float
    momentum: float
    weight_decay: float


SFT_WARMUP_SHARE = 0.05  # of the steps of fine-tuning
_INVERSE_TIME = 9.0  # 1 / (1 + 9 d): half of the way down after a tenth of the warm-down


@dataclass(frozen=True)
class ScheduleConfig:
    """Warm up, stay flat, come down; weight decay falls on its own schedule.

    A short warm-down after a long flat part is what papers call WSD; a `warmdown_ratio` of 1 with
    "cosine" is the classic one.

    Args:
        warmup_steps: Steps until the full learning rate.
        warmdown_ratio: The share of the run, at its end, over which it falls.
        decay: How it falls: see `falling`.
        decay_exponent: Of decay "power".
        final_lr_frac: What is left of it at progress 1.
        momentum: Of the matrices' optimizer: at the first step, at its height, at the end.
        momentum_steps: Steps over which it rises from the first to the second of these; it falls to
            the third along the warm-down.
    """

    warmup_steps: int = Pretrain.warmup_steps
    warmdown_ratio: float = Pretrain.warmdown_ratio
    final_lr_frac: float = Pretrain.final_lr_frac
    decay: str = Pretrain.decay
    decay_exponent: float = Pretrain.decay_exponent
    weight_decay_schedule: str = Pretrain.weight_decay_schedule
    momentum_steps: int = Pretrain.momentum_steps
    momentum: Sequence[float] = Pretrain.momentum

    @classmethod
    def from_recipe(cls, section: Mapping[str, Any]) -> ScheduleConfig:
        """The schedule fields of a recipe's `[pretrain]` or `[sft]` section."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: section[name] for name in names if name in section})


def sft_schedule(section: Mapping[str, Any]) -> ScheduleConfig:
    """The schedule of fine-tuning by a recipe's `[sft]`: a linear warm-down."""
    return ScheduleConfig(
        warmup_steps=math.ceil(SFT_WARMUP_SHARE * section["num_steps"]),
        warmdown_ratio=section["warmdown_ratio"],
        final_lr_frac=section["final_lr_frac"],
        decay="linear",
    )


def schedule_at(progress: float, step: int, config: ScheduleConfig) -> Schedule:
    """The multipliers of step `step` (from 0) at `progress` (0 to 1) of the run."""
    progress = min(max(progress, 0.0), 1.0)
    # Share of the warm-down behind us: 0 before it starts, 1 at the end.
    ratio = config.warmdown_ratio
    down = max(0.0, (progress - (1.0 - ratio)) / ratio) if ratio > 0 else 0.0
    up = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps > 0 else 1.0
    final = config.final_lr_frac
    lr = min(up, final + (1.0 - final) * falling(config.decay, down, config.decay_exponent))
    first, high, last = config.momentum
    target = high + (last - high) * down
    rise = min(1.0, step / config.momentum_steps) if config.momentum_steps > 0 else 1.0
    return Schedule(
        lr=lr,
        momentum=first + (target - first) * rise,
        weight_decay={
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
            "linear": 1.0 - progress,
            "constant": 1.0,
        }[config.weight_decay_schedule],
    )


def falling(decay: str, share: float, exponent: float = 1.25) -> float:
    """From 1 at share 0 to 0 at share 1 of the warm-down.

    "sqrt" falls fast at first (1 - sqrt(share); Hägele et al. 2024, arXiv:2405.18392), "square"
    ends gently, "inverse_time" falls like 1 / (1 + t), "power" is (1 - share)^exponent, over all of
    the run the power cooldown of modded-nanogpt's optimizer track (1.25 in its pull request 302).
    """
    if decay == "linear":
        return 1.0 - share
    if decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * share))
    if decay == "sqrt":
        return 1.0 - math.sqrt(share)
    if decay == "square":
        return (1.0 - share) ** 2
    if decay == "power":
        return float((1.0 - share) ** exponent)
    last = 1.0 / (1.0 + _INVERSE_TIME)
    return (1.0 / (1.0 + _INVERSE_TIME * share) - last) / (1.0 - last)

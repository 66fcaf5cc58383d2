"""What changes on the way through pretraining: sequence length, windows, batch, precision, tying.

Each is a small table over the elapsed share of the run (`progress`), so that a slower card passes
through the same stages. A `Phase` is everything that holds at one moment. The phases of a run are
known before its first step: their shapes can be compiled beforehand.

References:
    Sequence length warm-up: https://arxiv.org/abs/2108.06084
    Batch size warm-up: https://arxiv.org/abs/1711.00489
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reference.config.model import SHORT_WINDOW_MULTIPLE, ModelConfig

Ramp = Sequence[Sequence[float]]


class Phase(NamedTuple):
    """What holds between two changes.

    seq_len: Tokens of a training row. windows: keys each layer sees. batch_tokens: tokens of a
    step. eight_bit: whether 8-bit factors are in use. tied: whether head and embedding are one.
    """

    seq_len: int
    windows: tuple[int, ...]
    batch_tokens: int
    eight_bit: bool
    tied: bool

    @property
    def shape(self) -> tuple[Any, ...]:
        """What compiled code depends on."""
        return self.seq_len, self.windows, self.eight_bit


@dataclass(frozen=True)
class Curriculum:
    """The phases of a run, in order, with the progress at which each begins."""

    begins: tuple[float, ...]
    phases: tuple[Phase, ...]
    full_batch_tokens: int

    @classmethod
    def from_recipe(cls, config: ModelConfig, section: Mapping[str, Any]) -> Curriculum:
        """The phases of a recipe's `[pretrain]` section."""
        lengths: Ramp = section.get("seq_len_ramp") or [[0.0, config.seq_len]]
        shares: Ramp = section.get("window_ramp") or [[0.0, 1.0]]
        batches: Ramp = section.get("batch_ramp") or [[0.0, section["total_batch_size"]]]
        eight_bit = section.get("matmul", "bf16") != "bf16"
        until = section.get("matmul_until", 1.0) if eight_bit else 1.0
        changes = {float(share) for ramp in (lengths, shares, batches) for share, _ in ramp}
        changes |= {share for share in (until, config.tied_until) if 0 < share < 1}
        begins = sorted(changes)
        phases = []
        for progress in begins:
            seq_len = int(value_at(lengths, progress))
            share = value_at(shares, progress)
            phases.append(
                Phase(
                    seq_len=seq_len,
                    windows=tuple(window_at(w, share, seq_len) for w in config.windows),
                    batch_tokens=int(value_at(batches, progress)),
                    eight_bit=eight_bit and progress < until,
                    tied=progress < config.tied_until or config.tied,
                )
            )
        return cls(tuple(begins), tuple(phases), section["total_batch_size"])

    def at(self, progress: float) -> Phase:
        """The phase in force at `progress` (0 to 1)."""
        reached = [phase for begin, phase in zip(self.begins, self.phases, strict=True)
                   if begin <= progress]  # fmt: skip
        return reached[-1]

    def lr_scale(self, phase: Phase) -> float:
        """Of all learning rates: they follow the square root of the batch."""
        return math.sqrt(phase.batch_tokens / self.full_batch_tokens)


def sft_batch_tokens(section: Mapping[str, Any], seq_len: int) -> int:
    """Tokens of a fine-tuning step by a recipe's `[sft]`: whole micro-batches, at least one."""
    micro_batch = section["device_batch_size"] * seq_len
    return int(max(1, section["total_batch_size"] // micro_batch) * micro_batch)


def value_at(ramp: Ramp, progress: float) -> float:
    """The value in force: that of the last pair (share, value) whose share is reached."""
    return [value for share, value in ramp if share <= progress][-1]


def window_at(window: int, share: float, seq_len: int) -> int:
    """A part of a window, rounded up to the kernels' tile, within the row and the final window."""
    if share < 1.0:
        tiles = math.ceil(share * window / SHORT_WINDOW_MULTIPLE)
        window = min(window, tiles * SHORT_WINDOW_MULTIPLE)
    return min(window, seq_len)


def rows_at(phase: Phase, micro_batch: int, full_seq_len: int) -> int:
    """Rows of a micro-batch of the same tokens as `micro_batch` rows of full length.

    Fewer where a small batch of a ramp is less than that.
    """
    rows = micro_batch * full_seq_len // phase.seq_len
    return math.gcd(rows, phase.batch_tokens // phase.seq_len)

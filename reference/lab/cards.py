"""Cards that `plan` knows by name, and how fast a training on them is expected to be.

The RTX 4090's speed is the time model's, by shape. For other cards it is a share of the peak (bf16
MFU in nanochat's count): evidence where `source` names some, and an assumption where it says so.
Peaks are `reference.model.cost.PEAK_BF16_FLOPS`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from reference.errors import TrainerError
from reference.model.cost import ASSUMED_MFU, PEAK_BF16_FLOPS


@dataclass(frozen=True)
class Card:
    """A card and its expected speed.

    Args:
        peak_flops: Dense bf16 with fp32 accumulation, FLOP/s; None for a measured machine.
        flops_per_s: Of the model's own FLOPs in nanochat's count, while training.
        speed_range: Lowest and highest speed to expect, as factors of `flops_per_s` (95 %).
        modelled: The time model of a step gives the speed of each shape instead of `flops_per_s`.
    """

    name: str
    vram_gib: float
    peak_flops: float | None
    flops_per_s: float
    source: str
    speed_range: tuple[float, float]
    modelled: bool = False

    @property
    def mfu(self) -> float | None:
        return self.flops_per_s / self.peak_flops if self.peak_flops else None


ASSUMED_RANGE = (0.5, 1.15)  # where nobody has published a speed
MEASURED_RANGE = (0.97, 1.03)  # of a speed that was measured on the machine at hand


def _card(
    name: str,
    device: str,
    vram_gib: float,
    mfu: float,
    source: str,
    mfu_range: tuple[float, float] | None = None,
    modelled: bool = False,
) -> Card:
    """A card of the table; `mfu_range` are the lowest and highest published utilisations."""
    peak = PEAK_BF16_FLOPS[device]
    low, high = mfu_range or (ASSUMED_RANGE[0] * mfu, ASSUMED_RANGE[1] * mfu)
    return Card(name, vram_gib, peak, mfu * peak, source, (low / mfu, high / mfu), modelled)


_LIKE_4090 = f"{ASSUMED_MFU:.0%}: assumed like the RTX 4090's, no measurement known"
CARDS = {
    card.name: card
    for card in (
        _card(
            "rtx4090",
            "NVIDIA GeForce RTX 4090",
            24,
            0.67,
            "the time model of a step (bench train --predict rtx4090); published: 40 % of the peak "
            "(karpathy/nanochat issue 828, d12) to 80.5 % (issue 157, d20)",
            mfu_range=(0.40, 0.805),
            modelled=True,
        ),
        _card("rtx3090", "NVIDIA GeForce RTX 3090", 24, ASSUMED_MFU, _LIKE_4090),
        _card(
            "rtx5090",
            "NVIDIA GeForce RTX 5090",
            32,
            0.67,
            "the time model of a step in bf16, which no published speed of this card was fitted "
            "to; nanochat-cpp, fused by hand in mxfp8, reached 186 % of the bf16 peak",
            mfu_range=(0.40, 0.805),
            modelled=True,
        ),
        _card("rtx4080", "NVIDIA GeForce RTX 4080", 16, ASSUMED_MFU, _LIKE_4090),
        _card(
            "rtx4070",
            "NVIDIA GeForce RTX 4070",
            12,
            0.85,
            "85 %: d12 at 55.7 k tokens/s (lzwjava's blog)",
        ),
        _card("rtx4060", "NVIDIA GeForce RTX 4060", 8, ASSUMED_MFU, _LIKE_4090),
        _card(
            "h100",
            "NVIDIA H100 80GB HBM3",
            80,
            0.593,
            "59.3 %: nanochat's record run 6, eight cards, fp8 (dev/LEADERBOARD.md at 92d63d4)",
            mfu_range=(0.5, 0.62),
        ),
        _card(
            "a100",
            "NVIDIA A100*",
            80,
            0.507,
            "50.7 %: d14 at 140 k tokens/s (karpathy/nanochat pull request 655)",
        ),
        _card("l40s", "NVIDIA L40S", 48, 0.5, "50 %: assumed, no measurement known"),
    )
}


def card_key(name: str) -> str:
    """A card's name as the tables have it, however it is spelled: "rtx4090"."""
    plain = name.lower().replace("nvidia", "").replace("geforce", "")
    return "".join(letter for letter in plain if letter.isalnum())


def find_card(name: str) -> Card:
    """The card of this name, however it is spelled; raises `TrainerError` for an unknown one."""
    key = card_key(name)
    if key not in CARDS:
        close = difflib.get_close_matches(key, CARDS, n=1)
        meant = f"Did you mean {close[0]}? " if close else ""
        raise TrainerError(
            "bad_input",
            f"no card {name!r} is known here",
            f"{meant}Known: {', '.join(CARDS)}. On another: "
            "`n4090-kit bench train --json > bench.json`, then "
            "`n4090-kit plan --bench bench.json`.",
        )
    return CARDS[key]

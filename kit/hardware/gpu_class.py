"""Which kind of GPU a measured one is: ratios first, absolute rates second, its name last.

A name is a string anyone sets. A faster card can be slowed down to a 4090's speed, but not to its
ratios: how much faster FP16 is with FP16 accumulation, how slow FP64 is, where the L2 cache ends.

Sources of the bands: public matmul tables with nine contributed RTX 4090 rows (BF16 160.5 to 173.3
TFLOP/s, FP32 46 to 56), one clpeak report (FP64 1.29 to 1.36, copies 867 to 921 GB/s), triton and
pytorch threads on FP16 accumulation (1.72 measured, 2.0 by specification), the vendors' SM and L2
figures, and pci.ids. They are wider than the reports by the power-limit range (down to 70 %); they
are provisional until ten reference runs on three cards replace them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

GIB = 2**30


class Band(NamedTuple):
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class GpuKind:
    """What one kind of card measures. `None`: no public figure to hold it to."""

    name: str
    capability: tuple[int, int]
    sm_count: tuple[int, ...]
    memory_gib: Band
    fp16_accumulation: Band  # FP16 rate with FP16 accumulation over that with FP32 accumulation
    fp64_share: Band | None  # FP64 over FP32
    l2_bytes: Band | None  # where the bandwidth falls off
    bf16_tflops: Band | None
    copy_gb_s: Band | None
    spec_bf16_tflops: float  # dense, FP32 accumulation; the roof no honest run is above
    spec_copy_gb_s: float
    spec_watts: float
    pci_ids: tuple[str, ...] = ()


_CONSUMER = Band(1.4, 2.3)
_FULL_RATE = Band(0.8, 1.3)
_SIXTY_FOURTH = Band(0.008, 0.04)
_MIB = 2**20

KINDS: tuple[GpuKind, ...] = (
    GpuKind(
        "4090",
        (8, 9),
        (128,),
        Band(22, 25),
        _CONSUMER,
        _SIXTY_FOURTH,
        Band(40 * _MIB, 104 * _MIB),
        Band(112, 182),
        Band(650, 1008),
        165.2,
        1008,
        450,
        ("10de:2684",),
    ),
    GpuKind(
        "4090-48G",
        (8, 9),
        (128,),
        Band(44, 50),
        _CONSUMER,
        _SIXTY_FOURTH,
        Band(40 * _MIB, 104 * _MIB),
        Band(112, 182),
        Band(650, 1008),
        165.2,
        1008,
        450,
        ("10de:2684",),
    ),
    GpuKind(
        "4090D",
        (8, 9),
        (114,),
        Band(22, 50),
        _CONSUMER,
        _SIXTY_FOURTH,
        Band(40 * _MIB, 104 * _MIB),
        Band(100, 160),
        Band(650, 1008),
        147.0,
        1008,
        425,
        ("10de:2685",),
    ),
    GpuKind(
        "4090-laptop",
        (8, 9),
        (76,),
        Band(14, 17),
        _CONSUMER,
        _SIXTY_FOURTH,
        Band(32 * _MIB, 96 * _MIB),
        Band(40, 110),
        Band(350, 576),
        85.0,
        576,
        175,
        ("10de:2717", "10de:2757"),
    ),
    GpuKind(
        "3090",
        (8, 6),
        (82,),
        Band(22, 25),
        _CONSUMER,
        _SIXTY_FOURTH,
        Band(2 * _MIB, 16 * _MIB),
        Band(50, 84),
        Band(650, 936),
        71.2,
        936,
        350,
        ("10de:2204",),
    ),
    GpuKind(
        "5090",
        (12, 0),
        (170,),
        Band(30, 33),
        _CONSUMER,
        _SIXTY_FOURTH,
        Band(56 * _MIB, 136 * _MIB),
        Band(160, 255),
        Band(1200, 1792),
        209.5,
        1792,
        575,
        ("10de:2b85",),
    ),
    GpuKind(
        "L40S",
        (8, 9),
        (142,),
        Band(44, 49),
        _FULL_RATE,
        _SIXTY_FOURTH,
        Band(56 * _MIB, 136 * _MIB),
        Band(150, 365),
        Band(550, 960),
        362.1,
        864,
        350,
        ("10de:26b9", "10de:26b1"),
    ),
    GpuKind(
        "H100",
        (9, 0),
        (132, 114),
        Band(75, 95),
        _FULL_RATE,
        Band(0.3, 1.2),
        Band(24 * _MIB, 72 * _MIB),
        Band(400, 990),
        Band(1400, 3400),
        989.5,
        3350,
        700,
        ("10de:2330", "10de:2331", "10de:2336", "10de:2339"),
    ),
    GpuKind(
        "A100",
        (8, 0),
        (108,),
        Band(38, 82),
        _FULL_RATE,
        Band(0.3, 1.2),
        Band(20 * _MIB, 56 * _MIB),
        Band(180, 312),
        Band(1100, 2039),
        312,
        2039,
        400,
        ("10de:20b0", "10de:20b2", "10de:20b5"),
    ),
)


class GpuClass(NamedTuple):
    """`name` is a `GpuKind`'s or `other`; `reasons` what spoke for and against it."""

    name: str
    reasons: list[str]


def kind(name: str) -> GpuKind | None:
    """The kind called `name`."""
    return next((found for found in KINDS if found.name == name), None)


def gpu_class(measured: Mapping[str, Any]) -> GpuClass:
    """The kind of card that fits all that was measured.

    Args:
        measured: Any of `capability` ([major, minor]), `sm_count`, `memory_bytes`,
            `fp16_accumulation_ratio`, `fp64_share`, `l2_knee_bytes`, `bf16_tflops`, `copy_gb_s`.
            What is missing or null neither speaks for a kind nor against it.

    Returns:
        A kind whose every known figure fits, the one with the most of them; else `other`, with the
        nearest kind's misfits.
    """
    fits: list[tuple[int, GpuKind]] = []
    misfits: dict[str, list[str]] = {}
    for candidate in KINDS:
        known, against = _compare(candidate, measured)
        if against:
            misfits[candidate.name] = against
        elif known:
            fits.append((known, candidate))
    # A name needs at least one ratio besides what any driver can be made to say.
    ratios = [key for key in _RATIOS if _number(measured.get(key)) is not None]
    if fits and ratios:
        best = max(fits, key=lambda fit: fit[0])[1]
        return GpuClass(
            best.name, [f"measured figures fit, ratios among them: {', '.join(ratios)}"]
        )
    if fits:
        names = ", ".join(fit[1].name for fit in fits)
        return GpuClass("other", [f"could be {names}, but no ratio was measured to tell"])
    if not misfits:
        return GpuClass("other", ["nothing was measured"])
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    return GpuClass("other", [f"not {nearest}: {reason}" for reason in misfits[nearest]])


_RATIOS = ("fp16_accumulation_ratio", "fp64_share", "l2_knee_bytes")


def _compare(candidate: GpuKind, measured: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How many figures are known, and those that do not fit."""
    known = 0
    against: list[str] = []
    capability = measured.get("capability")
    if capability is not None:
        known += 1
        if list(capability) != list(candidate.capability):
            against.append(f"compute capability {list(capability)}")
    sm_count = measured.get("sm_count")
    if sm_count is not None:
        known += 1
        if sm_count not in candidate.sm_count:
            against.append(f"{sm_count} SMs, expected {' or '.join(map(str, candidate.sm_count))}")
    memory = _number(measured.get("memory_bytes"))
    bands: list[tuple[str, float | None, Band | None]] = [
        ("memory_gib", None if memory is None else memory / GIB, candidate.memory_gib),
        (
            "fp16_accumulation_ratio",
            _number(measured.get("fp16_accumulation_ratio")),
            candidate.fp16_accumulation,
        ),
        ("fp64_share", _number(measured.get("fp64_share")), candidate.fp64_share),
        ("l2_knee_bytes", _number(measured.get("l2_knee_bytes")), candidate.l2_bytes),
        ("bf16_tflops", _number(measured.get("bf16_tflops")), candidate.bf16_tflops),
        ("copy_gb_s", _number(measured.get("copy_gb_s")), candidate.copy_gb_s),
    ]
    for name, value, band in bands:
        if value is None or band is None:
            continue
        known += 1
        if not band.holds(value):
            against.append(f"{name} {value:.4g}, expected {band.low:.4g} to {band.high:.4g}")
    return known, against


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

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

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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
    pci_ids: tuple[str, ...] = ()


@cache
def kinds() -> tuple[GpuKind, ...]:
    """The kinds of gpu_kinds.toml."""
    table = tomllib.loads((Path(__file__).parent / "gpu_kinds.toml").read_text(encoding="utf-8"))
    return tuple(_kind(row) for row in table["kind"])


def _kind(row: dict[str, Any]) -> GpuKind:
    def band(name: str, unit: int = 1) -> Band | None:
        return Band(*(unit * value for value in row[name])) if name in row else None

    major, minor = row["capability"]
    return GpuKind(
        name=row["name"],
        capability=(major, minor),
        sm_count=tuple(row["sm_count"]),
        memory_gib=Band(*row["memory_gib"]),
        fp16_accumulation=Band(*row["fp16_accumulation"]),
        fp64_share=band("fp64_share"),
        l2_bytes=band("l2_mib", 2**20),
        bf16_tflops=band("bf16_tflops"),
        copy_gb_s=band("copy_gb_s"),
        spec_bf16_tflops=row["spec_bf16_tflops"],
        pci_ids=tuple(row["pci_ids"]),
    )


class GpuClass(NamedTuple):
    """`name` is a `GpuKind`'s or `other`; `reasons` what spoke for and against it."""

    name: str
    reasons: list[str]


def kind(name: str) -> GpuKind | None:
    """The kind called `name`."""
    return next((found for found in kinds() if found.name == name), None)


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
    for candidate in kinds():
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

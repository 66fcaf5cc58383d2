"""Figures over a run's telemetry: peaks, means, throttling, energy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

TELEMETRY_KIND = "n4090-telemetry-v1"
_GAP_INTERVALS = 5.0  # a longer pause between samples is a gap, not an interval

_PEAKS = (
    "gpu_power_w",
    "gpu_temp_c",
    "gpu_used_bytes",
    "gpu_sm_mhz",
    "gpu_mem_mhz",
    "cpu_util",
    "ram_used_bytes",
)
_MEANS = ("gpu_power_w", "gpu_temp_c", "gpu_sm_mhz", "gpu_mem_mhz", "gpu_util", "cpu_util")
_FIGURES = tuple(dict.fromkeys(_PEAKS + _MEANS))

Record = dict[str, Any]


# Why a GPU's clocks are lower than they could be (NVML's bit mask).
THROTTLE_BITS = {
    0x1: "idle",
    0x2: "application_clocks",
    0x4: "power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
    0x100: "display_clocks",
}


@dataclass
class Summary:
    """Figures over the records of a telemetry chain, added one by one.

    The sampler writes such a summary into the log; `verify` makes one from telemetry.jsonl and
    compares.
    """

    samples: int = 0
    starts: int = 0
    gap_s: float = 0.0
    interval_s: float = 1.0
    first_ms: int | None = None
    last_ms: int | None = None
    integrated_j: float = 0.0
    counter_j: float = 0.0
    counter_beside_j: float = 0.0  # the counter's part over the intervals that are integrated
    rapl_j: float = 0.0
    has_power: bool = False
    has_counter: bool = False
    has_rapl: bool = False
    totals: dict[str, list[float]] = field(  # peak, sum, count
        default_factory=lambda: {key: [-math.inf, 0.0, 0] for key in _FIGURES}
    )
    masks: dict[int, int] = field(default_factory=dict)  # samples by throttle reasons
    reasons: dict[str, str] = field(default_factory=dict)
    _previous: Record | None = None

    def add(self, record: Record) -> None:
        if record.get("ev") == "start":
            self.starts += 1
            self.interval_s = float(record.get("interval_s", 1.0))
            self.reasons.update(record.get("reasons", {}))
            return
        if record.get("ev") != "sample":
            return
        at_ms = record["t_ms"]
        previous, self._previous = self._previous, record
        self.samples += 1
        self.first_ms = at_ms if self.first_ms is None else self.first_ms
        self.last_ms = at_ms
        for key, total in self.totals.items():
            value = record.get(key)
            if value is not None:
                if value > total[0]:
                    total[0] = value
                total[1] += value
                total[2] += 1
        reasons = record.get("gpu_throttle")
        if reasons:
            self.masks[reasons] = self.masks.get(reasons, 0) + 1
        self.has_power |= record.get("gpu_power_w") is not None
        self.has_counter |= record.get("gpu_energy_j") is not None
        self.has_rapl |= record.get("rapl_j") is not None
        if previous is not None:
            self._integrate(previous, record)

    def _integrate(self, previous: Record, sample: Record) -> None:
        """Adds the energy between two samples."""
        from_ms, to_ms = previous["t_ms"], sample["t_ms"]
        joules_before, joules = previous.get("gpu_energy_j"), sample.get("gpu_energy_j")
        rapl_before, rapl_j = previous.get("rapl_j"), sample.get("rapl_j")
        watts_before, watts = previous.get("gpu_power_w"), sample.get("gpu_power_w")
        elapsed_s = (to_ms - from_ms) / 1000
        # Counters run on during a gap. Only a smaller value (a reloaded driver) is a new start.
        counted_j = None
        if joules_before is not None and joules is not None and joules >= joules_before:
            counted_j = joules - joules_before
            self.counter_j += counted_j
        if rapl_before is not None and rapl_j is not None and rapl_j >= rapl_before:
            self.rapl_j += rapl_j - rapl_before
        if elapsed_s > _GAP_INTERVALS * self.interval_s:
            self.gap_s += elapsed_s
            return
        if watts_before is not None and watts is not None:
            self.integrated_j += (watts_before + watts) / 2 * elapsed_s
            if counted_j is not None:
                self.counter_beside_j += counted_j

    def to_json(self) -> dict[str, Any]:
        span_s = 0.0
        if self.first_ms is not None and self.last_ms is not None:
            span_s = (self.last_ms - self.first_ms) / 1000
        return {
            "samples": self.samples,
            "starts": self.starts,
            "span_s": round(span_s, 3),
            "gap_s": round(self.gap_s, 3),
            "peaks": {key: self.totals[key][0] if self.totals[key][2] else None for key in _PEAKS},
            "means": {
                key: round(total[1] / total[2], 3) if (total := self.totals[key])[2] else None
                for key in _MEANS
            },
            "throttled_share": {
                name: round(count / self.samples, 4)
                for name, count in sorted(self._throttled().items())
            },
            "energy": self._energy(),
            "reasons": dict(sorted(self.reasons.items())),
        }

    def _throttled(self) -> dict[str, int]:
        """Samples by reason; a sample may have several."""
        found: dict[str, int] = {}
        for mask, count in self.masks.items():
            for bit, name in THROTTLE_BITS.items():
                if mask & bit:
                    found[name] = found.get(name, 0) + count
        return found

    def _energy(self) -> dict[str, Any]:
        energy: dict[str, Any] = {
            "kwh": None,
            "source": None,
            "gpu_joules_counter": round(self.counter_j, 1) if self.has_counter else None,
            "gpu_joules_integrated": round(self.integrated_j, 1) if self.has_power else None,
            "cpu_joules": round(self.rapl_j, 1) if self.has_rapl else None,
            "reason": None,
        }
        for key, source in (
            ("gpu_joules_counter", "GPU, energy counter"),
            ("gpu_joules_integrated", "GPU, power integrated once a second"),
            ("cpu_joules", "CPU package, RAPL"),
        ):
            if energy[key] is not None:
                energy["kwh"] = round(energy[key] / 3.6e6, 6)
                energy["source"] = source
                return energy
        energy["reason"] = "neither a GPU's power nor RAPL can be read on this machine"
        return energy

"""Telemetry: what the machine did while a run went on, once a second, in a chain of its own.

With NVML: clocks, power, temperature, memory, utilisation, throttle reasons and the energy counter
of the first GPU; always the CPU's use, memory and load; RAPL energy where the kernel lets it be
read. One thread, well under half a percent of a core. Losing samples (a full disk, a card that
fell off the bus) is counted and never stops a run.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from types import NoneType
from typing import Any

from kit.errors import KitError
from kit.hardware.nvml import Nvml, open_nvml, uuid_hash
from kit.timing import boottime_ns, wall_ms
from kit.trust.chain import ChainWriter, scan_chain

TELEMETRY_KIND = "n4090-telemetry-v1"
_GAP_INTERVALS = 5.0  # a longer pause between samples is a gap, not an interval
_RAPL = Path("/sys/class/powercap")

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

_INTEGRATED = ("t_ms", "gpu_energy_j", "rapl_j", "gpu_power_w")
_COLUMNS = tuple(dict.fromkeys((*_INTEGRATED, "gpu_throttle", *_FIGURES)))

Record = dict[str, Any]
_Integrated = tuple[Any, Any, Any, Any]  # the values named in _INTEGRATED


def _integrated(record: Record) -> _Integrated:
    return (
        record["t_ms"],
        record.get("gpu_energy_j"),
        record.get("rapl_j"),
        record.get("gpu_power_w"),
    )


@dataclass
class Summary:
    """Figures of a telemetry chain, taken in one record at a time.

    The sampler and `verify` both use it, so a summary that differs from its file shows.
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
            self._integrate(_integrated(previous), _integrated(record))

    def add_samples(self, records: Sequence[Record]) -> bool:
        """As `add` of each, faster; False, and nothing done, where only `add` can judge a value."""
        rows = records if self._previous is None else [self._previous, *records]
        if not records or not all(row.get("ev") == "sample" for row in rows):
            return False
        columns = {key: [row.get(key) for row in rows] for key in _COLUMNS}
        kinds = {key: set(map(type, column)) for key, column in columns.items()}
        if (
            not kinds["t_ms"] <= {int, float}
            or not kinds["gpu_throttle"] <= {int, NoneType}
            or not set().union(*kinds.values()) <= {int, float, NoneType}
        ):
            return False
        fresh = slice(len(rows) - len(records), None)
        at_ms = columns["t_ms"][fresh]
        self.samples += len(records)
        self.first_ms = at_ms[0] if self.first_ms is None else self.first_ms
        self.last_ms = at_ms[-1]
        for key, total in self.totals.items():
            values = [value for value in columns[key][fresh] if value is not None]
            if values:
                total[0] = max(total[0], max(values))
                total[1] = reduce(add, values, total[1])  # `sum` would round otherwise
                total[2] += len(values)
        for mask, count in Counter(columns["gpu_throttle"][fresh]).items():
            if mask:
                self.masks[mask] = self.masks.get(mask, 0) + count
        self.has_power |= kinds["gpu_power_w"] != {NoneType}
        self.has_counter |= kinds["gpu_energy_j"] != {NoneType}
        self.has_rapl |= kinds["rapl_j"] != {NoneType}
        steps = zip(*(columns[key] for key in _INTEGRATED), strict=True)
        for before, after in pairwise(steps):
            self._integrate(before, after)
        self._previous = records[-1]
        return True

    def _integrate(self, previous: _Integrated, sample: _Integrated) -> None:
        from_ms, joules_before, rapl_before, watts_before = previous
        to_ms, joules, rapl_j, watts = sample
        elapsed_s = (to_ms - from_ms) / 1000
        # Counters go on over a gap; only a smaller value (driver loaded anew) starts over.
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


class TelemetrySampler:
    """Samples the machine in a thread from `start` to `stop`.

    Args:
        path: The chain's file; one that is there (a resumed run) is continued.
        interval_s: Time between samples.
        clock: Nanoseconds on the run's clock; by default since this object was made.
        nvml: An open NVML; by default the machine's, when it has one.
    """

    def __init__(
        self,
        path: Path,
        interval_s: float = 1.0,
        *,
        clock: Callable[[], int] | None = None,
        nvml: Nvml | None = None,
    ) -> None:
        began_ns = boottime_ns()
        self._path = path
        self._interval_s = interval_s
        self._clock = clock or (lambda: boottime_ns() - began_ns)
        self._nvml = nvml
        self._handle: Any = None
        self._writer: ChainWriter | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._summary = Summary()
        self._lost = 0
        self._cpu_s = 0.0
        self._result: dict[str, Any] | None = None
        self._reasons: dict[str, str] = {}
        self._host: Any = None
        self._rapl: tuple[Path, ...] = ()

    def start(self) -> None:
        """Begins sampling; the first sample is taken at once.

        Raises:
            KitError: The chain that is there cannot be continued.
        """
        if self._path.exists():
            scan_chain(self._path, TELEMETRY_KIND, self._summary.add)
        self._writer = ChainWriter(self._path, TELEMETRY_KIND)
        self._open_sources()
        self._append(
            {
                "ev": "start",
                "t_ms": self._clock() // 1_000_000,
                "wall_ms": wall_ms(),
                "interval_s": self._interval_s,
                "gpu_uuid_hash": self._gpu_uuid_hash(),
                "reasons": self._reasons,
            }
        )
        self._sample()
        self._thread = threading.Thread(target=self._loop, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """Ends sampling with one last sample; returns the summary. Again: the same summary."""
        if self._result is not None:
            return self._result
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._sample()
        result = self._summary.to_json()
        result["lost"] = self._lost
        result["core_share"] = self._core_share(result["span_s"])
        result.update({"head": None, "count": 0, "bytes": 0})
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            writer = self._writer
            result.update({"head": writer.head, "count": writer.count, "bytes": writer.bytes})
        if self._nvml is not None:
            self._nvml.attempt("close", self._nvml.close)
        self._result = result
        return result

    def _core_share(self, span_s: float) -> float | None:
        """What sampling itself used, as a share of one core."""
        return round(self._cpu_s / span_s, 6) if span_s > 0 else None

    def _loop(self) -> None:
        due = time.monotonic() + self._interval_s
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            self._sample()
            self._cpu_s = time.thread_time()
            # A late sample does not bunch up the next ones.
            due = max(due + self._interval_s, time.monotonic())

    def _sample(self) -> None:
        record: Record = {"ev": "sample", "t_ms": self._clock() // 1_000_000, "wall_ms": wall_ms()}
        record.update(self._read_host())
        if self._nvml is not None:
            record.update(self._read_gpu(self._nvml))
        self._append(record)

    def _append(self, record: Record) -> None:
        assert self._writer is not None
        try:
            self._writer.append(record)
        except OSError:
            self._lost += 1
            return
        self._summary.add(record)

    def _open_sources(self) -> None:
        try:
            import psutil  # type: ignore[import-untyped]
        except ImportError:
            self._reasons["host"] = "psutil is not installed"
        else:
            self._host = psutil
            psutil.cpu_percent()  # the first answer is meaningless
        if self._nvml is None:
            try:
                self._nvml = open_nvml()
            except KitError as error:
                self._reasons["gpu"] = error.message
        if self._nvml is not None:
            handles = self._nvml.attempt("gpu", self._nvml.handles)
            if handles:
                self._handle = handles[0]
            else:
                self._reasons["gpu"] = self._nvml.reasons.get("gpu", "no GPU is visible")
                self._nvml = None
        self._rapl = tuple(zone / "energy_uj" for zone in _RAPL.glob("intel-rapl:?"))
        if self._read_rapl() is None:
            self._reasons["rapl"] = "no RAPL counter can be read"

    def _gpu_uuid_hash(self) -> str | None:
        if self._nvml is None:
            return None
        uuid = self._nvml.read("uuid", "nvmlDeviceGetUUID", self._handle)
        return None if uuid is None else uuid_hash(uuid)

    def _read_host(self) -> Record:
        record: Record = {"load": round(os.getloadavg()[0], 2)}
        if self._host is not None:
            memory = self._host.virtual_memory()
            record["cpu_util"] = self._host.cpu_percent()
            record["ram_used_bytes"] = memory.total - memory.available
        rapl = self._read_rapl()
        if rapl is not None:
            record["rapl_j"] = rapl
        return record

    def _read_rapl(self) -> float | None:
        """Joules of all CPU packages since some moment in the past."""
        total = 0.0
        found = False
        for counter in self._rapl:
            with contextlib.suppress(OSError, ValueError):
                total += int(counter.read_text()) / 1e6
                found = True
        return round(total, 3) if found else None

    def _read_gpu(self, nvml: Nvml) -> Record:
        handle = self._handle
        memory = nvml.read("memory", "nvmlDeviceGetMemoryInfo", handle)
        use = nvml.read("use", "nvmlDeviceGetUtilizationRates", handle)
        power = nvml.read("power", "nvmlDeviceGetPowerUsage", handle)
        energy = nvml.read("energy", "nvmlDeviceGetTotalEnergyConsumption", handle)
        sm, mem = nvml.constant("NVML_CLOCK_SM"), nvml.constant("NVML_CLOCK_MEM")
        celsius = nvml.constant("NVML_TEMPERATURE_GPU")
        return {
            "gpu_sm_mhz": nvml.read("sm", "nvmlDeviceGetClockInfo", handle, sm),
            "gpu_mem_mhz": nvml.read("mem", "nvmlDeviceGetClockInfo", handle, mem),
            "gpu_power_w": None if power is None else power / 1000,
            "gpu_temp_c": nvml.read("temp", "nvmlDeviceGetTemperature", handle, celsius),
            "gpu_used_bytes": None if memory is None else memory.used,
            "gpu_util": None if use is None else use.gpu,
            "gpu_throttle": nvml.read("throttle", "nvmlDeviceGetCurrentClocksEventReasons", handle),
            "gpu_energy_j": None if energy is None else energy / 1000,
        }

"""Telemetry: what the machine did while a run went on, once a second, in a chain of its own.

With NVML: clocks, power, temperature, memory, utilisation, throttle reasons and the energy counter
of the first GPU; always the CPU's use, memory and load; RAPL energy where the kernel lets it be
read. One thread, well under half a percent of a core. Losing samples (a full disk, a card that
fell off the bus) is counted and never stops a run.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.hardware.nvml import Nvml, open_nvml, uuid_hash
from kit.telemetry_summary import TELEMETRY_KIND, Record, Summary
from kit.timing import boottime_ns, wall_ms
from kit.trust.chain import scan_chain
from kit.trust.chain_writer import ChainWriter

_RAPL = Path("/sys/class/powercap")


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

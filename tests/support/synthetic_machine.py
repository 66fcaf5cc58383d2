"""An RTX 4090's machine that never was: its fingerprint and its clocks, from public figures."""

from __future__ import annotations

import random
from typing import Any

from kit.hardware.fingerprint import classify

UUID_HASH = "sha256:" + "4" * 64
GIB = 2**30


def gpu_4090(**changes: Any) -> dict[str, Any]:
    """What NVML says of a stock card."""
    facts: dict[str, Any] = {
        "name": "NVIDIA GeForce RTX 4090",
        "uuid_hash": UUID_HASH,
        "pci_id": "10de:2684",
        "board": "1043:889d",
        "vbios": "95.02.18.80.c1",
        "architecture": 8,
        "capability": [8, 9],
        "cuda_cores": 16384,
        "memory_bytes": 25757220864,
        "memory_used_bytes": 400_000_000,
        "memory_bus_bits": 384,
        "bar1_bytes": 34359738368,
        "pcie_generation": 4,
        "pcie_width": 16,
        "sm_clock_max_mhz": 3105,
        "memory_clock_max_mhz": 10501,
        "sm_offset_mhz": 0,
        "memory_offset_mhz": 0,
        "power_limit_w": 450.0,
        "power_default_w": 450.0,
        "power_limits_w": [150.0, 600.0],
        "temperature_c": 41,
        "ecc": False,
        "mig": None,
        "display_active": False,
        "processes": 0,
        "foreign_processes": 0,
        "reasons": {"mig": "Not Supported"},
    }
    return {**facts, **changes}


def probe_4090(rng: random.Random, **changes: Any) -> dict[str, Any]:
    """What the probes measure on one, from the bands."""
    figures: dict[str, Any] = {
        "name": "NVIDIA GeForce RTX 4090",
        "count_visible": 1,
        "capability": [8, 9],
        "sm_count": 128,
        "memory_bytes": 25386352640,
        "l2_bytes": 75497472,
        "torch": "2.13.0",
        "bf16_tflops": round(rng.gauss(165.6, 1.0), 2),
        "fp16_fp32acc_tflops": 165.1,
        "fp16_fp16acc_tflops": 287.5,
        "fp8_tflops": 310.2,
        "int8_tops": 505.0,
        "fp32_tflops": 53.1,
        "fp64_tflops": 1.291,
        "copy_gb_s": round(rng.gauss(910, 4), 1),
        "l2_sweep_gb_s": {"16": 3500.0, "32": 3300.0, "64": 1100.0, "256": 910.0},
        "l2_knee_bytes": 67108864.0,
        "pcie_to_gpu_gb_s": 25.1,
        "pcie_from_gpu_gb_s": 26.2,
        "fp16_accumulation_ratio": 1.7414,
        "fp64_share": 0.0243,
        "elapsed_s": 62.0,
        "reasons": {},
    }
    return {**figures, **changes}


def fingerprint_4090(
    rng: random.Random, gpu: dict[str, Any] | None = None, probe: dict[str, Any] | None = None
) -> dict[str, Any]:
    gpus = [gpu or gpu_4090()]
    measured = probe or probe_4090(rng)
    return {
        "format": 1,
        "host": {
            "cpu_model": "AMD Ryzen 9 7950X 16-Core Processor",
            "cores_logical": 32,
            "cores_allowed": 32,
            "ram_bytes": 67108864000,
            "swap_bytes": 0,
            "kernel": "6.8.0-45-generic",
            "system": "Ubuntu 24.04",
            "architecture": "x86_64",
            "cgroup_cpus": None,
            "cgroup_memory_bytes": None,
            "virtualisation": "none seen",
            "reasons": {},
        },
        "driver": "580.65.06",
        "cuda_driver": "13.0",
        "gpus": gpus,
        "probes": {
            "cpu": {
                "matmul_gflops": round(rng.gauss(1500, 40), 1),
                "copy_gb_s": round(rng.gauss(38, 1), 2),
                "sha256_mb_s": 2100.0,
                "python_mops": 45.0,
                "elapsed_s": 2.1,
                "reasons": {},
            },
            "gpu": measured,
        },
        "class": classify(gpus, measured),
        "reasons": {},
    }


def reclassify(fingerprint: dict[str, Any]) -> None:
    """What an honest kit writes after a figure of the fingerprint changed."""
    fingerprint["class"] = classify(fingerprint["gpus"], fingerprint["probes"]["gpu"])


class Clock:
    """A machine's clocks, with their real flaws: drift, granularity, a stamp a little later."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.t_s = 0.02
        self.wall_ms = 1_790_000_000_000
        self.boot_s = 0.0
        self.slept_s = 0.0
        self.wall_step_s = 0.0

    def advance(self, seconds: float) -> None:
        self.t_s += seconds

    def rtc_s(self) -> int:
        """Whole seconds of a hardware clock that runs a little fast."""
        return int(self.wall_ms / 1000 + self.t_s * (1 + 4e-5)) + 1

    def stamp(self) -> dict[str, Any]:
        self.t_s += abs(self.rng.gauss(8e-6, 3e-6))
        since = self.t_s - self.boot_s
        raw = (since - self.slept_s) * (1 + 2e-6)
        return {
            "t_ns": int(self.t_s * 1e9),
            "wall_ms": int(self.wall_ms + (self.t_s * (1 + 1e-5) + self.wall_step_s) * 1000),
            "clocks": {
                "raw_ns": int(raw * 1e9),
                "syscall_ns": int(raw * 1e9) + self.rng.randrange(300, 90_000),
                "uptime_ms": int(since * 100) * 10,
            },
        }

"""GPU classes against public figures, NVML against a fake one, host facts against fake files."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import synthetic
from support.synthetic_machine import gpu_4090

from kit.errors import PrerequisiteError
from kit.hardware import gpu_class, gpu_facts, host_facts, probe_cpu, probe_gpu
from kit.hardware.fingerprint import classify, fingerprint
from kit.hardware.gpu_class import kinds
from kit.hardware.gpu_probe import l2_knee_bytes
from kit.hardware.nvml import Nvml, uuid_hash

GIB = 2**30
MIB = 2**20

# Public figures: kind, capability, SMs, memory, BF16 TFLOP/s, FP16-accumulation ratio, FP64 share.
PUBLIC = [
    *[
        ("4090", (8, 9), 128, 24, bf16, ratio, 0.0258)
        for bf16, ratio in zip(
            (160.5, 163.2, 165.2, 166.6, 169.4, 173.3),
            (1.72, 1.8, 2.0, 1.9, 1.75, 1.72),
            strict=True,
        )
    ],
    *[("4090-48G", (8, 9), 128, 48, bf16, 1.8, 0.0258) for bf16 in (161.0, 164.0, 168.0)],
    ("4090D", (8, 9), 114, 24, 146.0, 2.0, 0.0258),
    ("4090D", (8, 9), 114, 48, 151.0, 2.0, 0.0258),
    ("4090-laptop", (8, 9), 76, 16, 80.0, 1.8, 0.0258),
    ("L40S", (8, 9), 142, 48, 269.0, 1.0, 0.0156),
    ("5090", (12, 0), 170, 32, 222.0, 2.0, 0.0156),
    ("5090", (12, 0), 170, 32, 242.0, 2.0, 0.0156),
    ("H100", (9, 0), 132, 80, 784.0, 1.0, 0.48),
    ("H100", (9, 0), 132, 80, 798.0, 1.0, 0.48),
    ("H100", (9, 0), 114, 80, 496.0, 1.0, 0.5),
    ("A100", (8, 0), 108, 80, 234.0, 1.0, 0.5),
    ("A100", (8, 0), 108, 40, 265.0, 1.0, 0.5),
    ("3090", (8, 6), 82, 24, 76.0, 2.0, 0.0156),
]


def measured(row: tuple[Any, ...]) -> dict[str, Any]:
    _, capability, sm_count, memory_gib, bf16, ratio, fp64 = row
    return {
        "capability": list(capability),
        "sm_count": sm_count,
        "memory_bytes": int(memory_gib * GIB * 0.985),
        "bf16_tflops": bf16,
        "fp16_accumulation_ratio": ratio,
        "fp64_share": fp64,
    }


@pytest.mark.parametrize("row", PUBLIC, ids=lambda row: f"{row[0]}-{row[4]}")
def test_public_figures_give_the_card_they_came_from(row: tuple[Any, ...]) -> None:
    found = gpu_class(measured(row))
    assert found.name == row[0], found.reasons


@pytest.mark.parametrize("row", [row for row in PUBLIC if not row[0].startswith("4090")])
def test_no_other_card_is_a_4090_by_name_and_speed(row: tuple[Any, ...]) -> None:
    disguised = {**measured(row), "memory_bytes": 25386352640, "bf16_tflops": 165.0}
    assert gpu_class(disguised).name != "4090"


def test_a_4090_at_low_power_is_still_one() -> None:
    assert (
        gpu_class({**measured(PUBLIC[0]), "bf16_tflops": 120.0, "copy_gb_s": 700.0}).name == "4090"
    )


def test_without_a_measured_ratio_no_name_is_given() -> None:
    told = {"capability": [8, 9], "memory_bytes": 25386352640, "sm_count": 128}
    found = gpu_class(told)
    assert found.name == "other" and "no ratio" in found.reasons[0]
    assert gpu_class({}).name == "other"


def test_kinds_differ_in_something_a_slowed_card_cannot_hide() -> None:
    for one in kinds():
        for other in kinds():
            if one.name < other.name:
                assert (
                    one.capability != other.capability
                    or not set(one.sm_count) & set(other.sm_count)
                    or one.memory_gib != other.memory_gib
                )


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """The functions of NVML that the kit calls, for a stock 4090."""

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    power_mw = 412_000
    energy_mj = 1_000_000

    def nvmlInit(self) -> None:
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA GeForce RTX 4090"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return "GPU-12345678-1234-1234-1234-123456789abc"

    def nvmlDeviceGetPciInfo_v3(self, handle: int) -> Any:
        return SimpleNamespace(pciDeviceId=0x268410DE, pciSubSystemId=0x889D1043)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=25757220864, used=400_000_000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=99, memory=60)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return (8, 9)

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:
        return 450_000

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: int) -> list[int]:
        return [150_000, 600_000]

    def nvmlDeviceGetSerial(self, handle: int) -> str:
        raise AssertionError("a serial number was asked for")

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1)]

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        return 2520 if clock == 1 else 10251

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self.power_mw

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 66

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return 0x4

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self.energy_mj

    def nvmlDeviceGetEccMode(self, handle: int) -> Any:
        raise FakeNvmlError("Not Supported")


def test_nvml_facts_are_read_and_what_is_not_has_its_reason() -> None:
    found = gpu_facts(Nvml(FakeNvml()))
    assert (found["driver"], found["cuda_driver"]) == ("580.65.06", "13.0")
    (gpu,) = found["gpus"]
    assert (gpu["pci_id"], gpu["board"]) == ("10de:2684", "1043:889d")
    assert gpu["power_limit_w"] == 450.0 and gpu["power_limits_w"] == [150.0, 600.0]
    assert (gpu["processes"], gpu["foreign_processes"]) == (2, 1)
    assert gpu["ecc"] is None and gpu["reasons"]["ecc"] == "Not Supported"
    assert gpu["vbios"] is None and gpu["reasons"]["vbios"]
    for key, value in gpu.items():
        assert value is not None or key in gpu["reasons"] or key == "board"


def test_the_uuid_leaves_only_as_a_salted_hash() -> None:
    uuid = FakeNvml().nvmlDeviceGetUUID(0)
    text = json.dumps(gpu_facts(Nvml(FakeNvml())))
    assert uuid not in text and uuid.removeprefix("GPU-") not in text
    assert uuid_hash(uuid) in text
    assert uuid_hash(uuid) != uuid_hash(uuid[:-1] + "d")


def test_without_nvml_everything_is_null_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["kit.hardware.fingerprint"]

    def absent() -> Nvml:
        raise PrerequisiteError("no NVIDIA driver answers")

    monkeypatch.setattr(module, "open_nvml", absent)
    found = gpu_facts()
    assert found["gpus"] is None and found["reasons"] == {"gpus": "no NVIDIA driver answers"}
    assert classify(None, None)["name"] == "none"


def test_a_fingerprint_names_nobody() -> None:
    import getpass
    import socket

    text = json.dumps(fingerprint(probes=False))
    for secret in (socket.gethostname(), getpass.getuser(), str(Path.home()), str(Path.cwd())):
        assert f'"{secret}"' not in text
    assert fingerprint(probes=False)["reasons"]["probes.cpu"]


def test_host_facts_come_from_proc_and_cgroups(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "model name\t: AMD Ryzen 9 7950X\nflags\t\t: fpu hypervisor sse\n",
        "proc/meminfo": "MemTotal:       65536000 kB\nSwapTotal: 0 kB\n",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04"\n',
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "8589934592\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    facts = host_facts(tmp_path)
    assert facts["cpu_model"] == "AMD Ryzen 9 7950X"
    assert facts["ram_bytes"] == 65536000 * 1024
    assert (facts["cgroup_cpus"], facts["cgroup_memory_bytes"]) == (1.5, 8 * GIB)
    assert facts["virtualisation"] == "virtual machine"
    assert facts["system"] == "Ubuntu 24.04"


def test_host_facts_that_cannot_be_read_are_null_with_a_reason(tmp_path: Path) -> None:
    facts = host_facts(tmp_path)
    for key, value in facts.items():
        assert value is not None or facts["reasons"][key]


def test_cpu_probes_measure_something_in_their_time() -> None:
    figures = probe_cpu(slice_s=0.02)
    assert all(figures[key] > 0 for key in ("copy_gb_s", "sha256_mb_s", "python_mops"))
    assert figures["matmul_gflops"] is None or figures["matmul_gflops"] > 0


@pytest.mark.slow
def test_a_gpu_probe_without_a_gpu_says_so() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "CUDA" in probe_gpu()["reasons"]["probe"]


def test_the_l2_knee_is_where_bandwidth_falls_to_memory_speed() -> None:
    sweep = {8: 3800.0, 16: 3700.0, 32: 3300.0, 64: 1000.0, 256: 905.0}
    assert l2_knee_bytes(sweep, 905.0) == 64 * MIB
    assert l2_knee_bytes({256: 900.0}, 905.0) is None
    assert l2_knee_bytes(sweep, None) is None


@pytest.mark.gpu
def test_a_real_gpu_is_measured_and_classed() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    figures = probe_gpu()
    assert figures["bf16_tflops"] > 1, figures["reasons"]
    found = fingerprint()
    assert found["class"]["name"] != "none"


def test_synthetic_fingerprints_are_of_the_kits_own_form() -> None:
    made = synthetic.fingerprint_4090(random.Random(1))
    real = fingerprint(probes=False)
    assert set(made) == set(real)
    assert set(made["host"]) == set(real["host"])
    assert set(gpu_4090()) == set(gpu_facts(Nvml(FakeNvml()))["gpus"][0])

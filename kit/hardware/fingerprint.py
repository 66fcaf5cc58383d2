"""The fingerprint of a machine: host, GPUs, measured rates, and the class they amount to."""

from __future__ import annotations

import os
from typing import Any

from kit.errors import PrerequisiteError
from kit.hardware.gpu_class import gpu_class
from kit.hardware.host import host_facts
from kit.hardware.nvml import Nvml, open_nvml, uuid_hash
from kit.hardware.probes import probe_cpu, probe_gpu

FORMAT = 1


def fingerprint(*, probes: bool = True, device: str = "auto") -> dict[str, Any]:
    """What this machine is, as `fingerprint.json` and `result.hardware` hold it.

    Args:
        probes: Also measure (two seconds on a CPU, at most 90 on a GPU).
        device: `cpu` leaves the GPU unmeasured; `cuda` and `auto` measure it when there is one.
    """
    gpus = gpu_facts()
    cpu = probe_cpu() if probes else None
    gpu: dict[str, Any] | None = None
    reasons: dict[str, str] = {}
    if device == "cpu":
        reasons["probes.gpu"] = "the run uses the CPU"
    elif not gpus["gpus"]:
        reasons["probes.gpu"] = "no GPU is visible"
    elif not probes:
        reasons["probes.gpu"] = "not measured (probes are off)"
    else:
        gpu = probe_gpu()
    if cpu is None:
        reasons["probes.cpu"] = "not measured (probes are off)"
    return {
        "format": FORMAT,
        "host": host_facts(),
        **gpus,
        "probes": {"cpu": cpu, "gpu": gpu},
        "class": classify(gpus["gpus"], gpu),
        "reasons": {**gpus["reasons"], **reasons},
    }


def classify(gpus: list[dict[str, Any]] | None, probe: dict[str, Any] | None) -> dict[str, Any]:
    """`{"name", "reasons"}` of the first GPU from what it says and what was measured of it."""
    if not gpus:
        return {"name": "none", "reasons": ["no GPU is visible"]}
    first = gpus[0]
    told = {"memory_bytes": first["memory_bytes"], "capability": first["capability"]}
    measured = {key: value for key, value in (probe or {}).items() if value is not None}
    found = gpu_class({**told, **measured})
    return {"name": found.name, "reasons": found.reasons}


def gpu_facts(nvml: Nvml | None = None) -> dict[str, Any]:
    """Identity and state of every GPU that NVML shows.

    Returns:
        `driver`, `cuda_driver`, `gpus` (a list; null when NVML does not answer) and `reasons`.
    """
    opened = nvml is None
    if nvml is None:
        try:
            nvml = open_nvml()
        except PrerequisiteError as error:
            return {
                "driver": None,
                "cuda_driver": None,
                "gpus": None,
                "reasons": {"gpus": error.message},
            }
    try:
        handles = nvml.attempt("gpus", nvml.handles)
        cuda = nvml.read("cuda_driver", "nvmlSystemGetCudaDriverVersion_v2")
        facts: dict[str, Any] = {
            "driver": nvml.read("driver", "nvmlSystemGetDriverVersion"),
            "cuda_driver": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            "gpus": None,
            "reasons": {},
        }
        facts["reasons"] = dict(nvml.reasons)
        if handles is not None:
            facts["gpus"] = [_one_gpu(nvml, handle) for handle in handles]
        return facts
    finally:
        if opened:
            nvml.close()


def _one_gpu(nvml: Nvml, handle: Any) -> dict[str, Any]:
    nvml.reasons.clear()
    read = nvml.read
    uuid = read("uuid_hash", "nvmlDeviceGetUUID", handle)
    pci = read("pci_id", "nvmlDeviceGetPciInfo_v3", handle)
    memory = read("memory_bytes", "nvmlDeviceGetMemoryInfo", handle)
    bar1 = read("bar1_bytes", "nvmlDeviceGetBAR1MemoryInfo", handle)
    capability = read("capability", "nvmlDeviceGetCudaComputeCapability", handle)
    limits = read("power_limits_w", "nvmlDeviceGetPowerManagementLimitConstraints", handle)
    ecc = read("ecc", "nvmlDeviceGetEccMode", handle)
    mig = read("mig", "nvmlDeviceGetMigMode", handle)
    processes = read("processes", "nvmlDeviceGetComputeRunningProcesses_v3", handle)
    sm, memory_clock = nvml.constant("NVML_CLOCK_SM"), nvml.constant("NVML_CLOCK_MEM")
    facts: dict[str, Any] = {
        "name": read("name", "nvmlDeviceGetName", handle),
        "uuid_hash": None if uuid is None else uuid_hash(uuid),
        # NVML packs device and vendor as 0xDDDDVVVV.
        "pci_id": None
        if pci is None
        else f"{pci.pciDeviceId & 0xFFFF:04x}:{pci.pciDeviceId >> 16:04x}",
        "board": None
        if pci is None
        else f"{pci.pciSubSystemId & 0xFFFF:04x}:{pci.pciSubSystemId >> 16:04x}",
        "vbios": read("vbios", "nvmlDeviceGetVbiosVersion", handle),
        "architecture": read("architecture", "nvmlDeviceGetArchitecture", handle),
        "capability": None if capability is None else list(capability),
        "cuda_cores": read("cuda_cores", "nvmlDeviceGetNumGpuCores", handle),
        "memory_bytes": None if memory is None else memory.total,
        "memory_used_bytes": None if memory is None else memory.used,
        "memory_bus_bits": read("memory_bus_bits", "nvmlDeviceGetMemoryBusWidth", handle),
        "bar1_bytes": None if bar1 is None else bar1.bar1Total,
        "pcie_generation": read("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration", handle),
        "pcie_width": read("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth", handle),
        "sm_clock_max_mhz": read("sm_clock_max_mhz", "nvmlDeviceGetMaxClockInfo", handle, sm),
        "memory_clock_max_mhz": read(
            "memory_clock_max_mhz", "nvmlDeviceGetMaxClockInfo", handle, memory_clock
        ),
        "sm_offset_mhz": read("sm_offset_mhz", "nvmlDeviceGetGpcClkVfOffset", handle),
        "memory_offset_mhz": read("memory_offset_mhz", "nvmlDeviceGetMemClkVfOffset", handle),
        "power_limit_w": _watts(read("power_limit_w", "nvmlDeviceGetPowerManagementLimit", handle)),
        "power_default_w": _watts(
            read("power_default_w", "nvmlDeviceGetPowerManagementDefaultLimit", handle)
        ),
        "power_limits_w": None if limits is None else [_watts(limit) for limit in limits],
        "temperature_c": read(
            "temperature_c",
            "nvmlDeviceGetTemperature",
            handle,
            nvml.constant("NVML_TEMPERATURE_GPU"),
        ),
        "ecc": None if ecc is None else bool(ecc[0]),
        "mig": None if mig is None else bool(mig[0]),
        "display_active": _flag(read("display_active", "nvmlDeviceGetDisplayActive", handle)),
        # How many, and how many that are not ours; never which.
        "processes": None if processes is None else len(processes),
        "foreign_processes": None
        if processes is None
        else sum(process.pid != os.getpid() for process in processes),
    }
    facts["reasons"] = dict(nvml.reasons)
    return facts


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 1)


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)

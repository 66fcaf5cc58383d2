"""Facts about the host that decide how fast it is, and none that say whose it is."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_UNLIMITED_BYTES = 2**60  # cgroup v1 writes "no limit" as a number near 2**63


def host_facts(root: Path = Path("/")) -> dict[str, Any]:
    """CPU, memory, kernel, limits and virtualisation of this machine.

    Args:
        root: Where `proc` and `sys` lie; tests give their own.
    """
    cpu = _cpuinfo(root)
    memory = _meminfo(root)
    facts: dict[str, Any] = {
        "cpu_model": cpu.get("model name") or cpu.get("Model"),
        "cores_logical": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "ram_bytes": memory.get("MemTotal"),
        "swap_bytes": memory.get("SwapTotal"),
        "kernel": platform.release(),
        "system": _system(root),
        "architecture": platform.machine(),
        "cgroup_cpus": _cgroup_cpus(root),
        "cgroup_memory_bytes": _cgroup_memory(root),
        "virtualisation": _virtualisation(root, cpu),
    }
    why = {
        "cpu_model": "/proc/cpuinfo names no model",
        "ram_bytes": "/proc/meminfo cannot be read",
        "swap_bytes": "/proc/meminfo cannot be read",
        "system": "/etc/os-release cannot be read",
        "cgroup_cpus": "no limit is set, or the control group cannot be read",
        "cgroup_memory_bytes": "no limit is set, or the control group cannot be read",
    }
    facts["reasons"] = {
        key: why.get(key, "not known") for key, value in facts.items() if value is None
    }
    return facts


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _cpuinfo(root: Path) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            pairs.setdefault(key.strip(), value.strip())
    return pairs


def _meminfo(root: Path) -> dict[str, int]:
    values: dict[str, int] = {}
    for line in _read(root / "proc/meminfo").splitlines():
        fields = line.replace(":", " ").split()
        if len(fields) >= 2 and fields[1].isdigit():
            values[fields[0]] = int(fields[1]) * (1024 if fields[2:] == ["kB"] else 1)
    return values


def _system(root: Path) -> str | None:
    for line in _read(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return None


def _cgroup_cpus(root: Path) -> float | None:
    quota, _, period = _read(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    try:
        return round(int(quota) / int(period), 3) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _cgroup_memory(root: Path) -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(root / "sys/fs/cgroup" / name).strip()
        if text.isdigit() and int(text) < _UNLIMITED_BYTES:
            return int(text)
    return None


def _virtualisation(root: Path, cpu: dict[str, str]) -> str:
    if (root / "proc/xen").exists():
        return "xen"
    if "microsoft" in _read(root / "proc/version").lower():
        return "wsl"
    if "hypervisor" in cpu.get("flags", "").split():
        return "virtual machine"
    return "none seen"

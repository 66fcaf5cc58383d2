"""What around a run could bend its result: network traffic, preloaded libraries, namespaces."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from kit.run.separation import trainer_user
from kit.timing import uptime_ms

_LOOPBACK = "lo"


def describe_environment() -> dict[str, Any]:
    """What can be read of this process's surroundings; None where it cannot be read.

    Returns:
        rx_bytes, tx_bytes: Traffic so far on all interfaces but the loopback.
        ld_preload: Whether a preloaded library could have changed what libc answers.
        time_namespace: Offsets of this time namespace, "none" when all are zero.
        container: The kind of container around this process, as far as it shows.
        separate_trainer: Whether stages run as a user who cannot write log, result and keys.
        clocks_from: Name of the file that each source of the clocks comes from.
        rtc_s: Seconds since 1970 by the hardware clock, which survives a reboot.
    """
    received, sent = _traffic()
    return {
        "rx_bytes": received,
        "tx_bytes": sent,
        "ld_preload": preloaded() or _faketime_mapped(),
        "time_namespace": time_namespace(),
        "container": _container(),
        "separate_trainer": trainer_user() is not None,
        "clocks_from": clock_sources(),
        "rtc_s": rtc_s(),
    }


def preloaded() -> bool:
    """Whether a library was preloaded, also when the variable is gone from `os.environ` since."""
    try:
        begun_with = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        begun_with = []
    variables = (b"LD_PRELOAD=", b"LD_AUDIT=")
    return bool(os.environ.get("LD_PRELOAD") or os.environ.get("LD_AUDIT")) or any(
        entry.startswith(variables) and entry.partition(b"=")[2] for entry in begun_with
    )


def clock_sources() -> dict[str, str | None]:
    """The files that answer when the clocks are read, by name; None where it cannot be told.

    `clock_gettime` and `syscall` are functions: the file is the one mapped at their address, which
    a preloaded or audited library cannot hide. `/proc/uptime` is a file: of the kernel's own `proc`
    file system, or of whatever was mounted over it.
    """
    found: dict[str, str | None] = {name: _file_of(name) for name in ("clock_gettime", "syscall")}
    found["/proc/uptime"] = _mounted_at("/proc/uptime")
    return found


def _file_of(function: str) -> str | None:
    """The base name of the file whose code is called under this name."""
    try:
        address = ctypes.cast(getattr(ctypes.CDLL(None), function), ctypes.c_void_p).value or 0
        lines = Path("/proc/self/maps").read_text().splitlines()
    except (OSError, AttributeError, ValueError):
        return None
    for line in lines:
        fields = line.split(maxsplit=5)
        begin, _, end = fields[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            return Path(fields[5]).name if len(fields) > 5 else "anonymous memory"
    return None


def _mounted_at(path: str) -> str | None:
    """The type of the file system that `path` lies on: the innermost mount point wins."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    best, kind = "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4]
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def rtc_s() -> int | None:
    """Seconds since 1970 by the hardware clock; None where it cannot be read."""
    try:
        return int(Path("/sys/class/rtc/rtc0/since_epoch").read_text())
    except (OSError, ValueError):
        return None


def since_boot_s() -> float | None:
    """Seconds since this machine was started; None where it cannot be read."""
    found = uptime_ms()
    return None if found is None else found / 1000


def _traffic() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    except OSError:
        return None, None
    received = sent = 0
    for line in lines:
        name, _, numbers = line.partition(":")
        columns = numbers.split()
        if name.strip() != _LOOPBACK and len(columns) >= 9:
            received += int(columns[0])
            sent += int(columns[8])
    return received, sent


def _faketime_mapped() -> bool:
    try:
        return "faketime" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


def time_namespace() -> str | None:
    """Offsets of this time namespace; "none" when all are zero, None where it cannot be read."""
    try:
        rows = Path("/proc/self/timens_offsets").read_text().splitlines()
    except OSError:
        return None
    shifted = [row for row in rows if any(value != "0" for value in row.split()[1:])]
    return "; ".join(" ".join(row.split()) for row in shifted) or "none"


def _container() -> str | None:
    if Path("/.dockerenv").exists():
        return "docker"
    # With --read-only, Podman hides its file behind a tmpfs; it always sets the variable.
    named = os.environ.get("container")  # noqa: SIM112
    if Path("/run/.containerenv").exists() or named == "podman":
        return "podman"
    return None

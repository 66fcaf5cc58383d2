"""The clocks a run is timed by, read several ways so that a slowed one shows.

The run's own clock is CLOCK_BOOTTIME: monotonic like CLOCK_MONOTONIC, but it also counts the time a
machine sleeps, because the rules never pause the clock. Beside it each sample holds
CLOCK_MONOTONIC_RAW twice, through libc (which a preloaded library can slow down) and through the
system call itself (which it cannot), /proc/uptime and the wall clock.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

_SYS_CLOCK_GETTIME = {"x86_64": 228, "aarch64": 113}  # numbers of the system call
_UPTIME = "/proc/uptime"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def boottime_ns() -> int:
    """Nanoseconds since boot, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ms() -> int:
    """Milliseconds since 1970 UTC: a label, never the measure of an interval."""
    return time.time_ns() // 1_000_000


def utc_now() -> str:
    """Now in UTC, RFC 3339, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_from_ms(milliseconds: int) -> str:
    """A wall-clock label in RFC 3339."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def raw_syscall_ns() -> int | None:
    """CLOCK_MONOTONIC_RAW through the system call, past every preloaded library; None elsewhere."""
    number = _SYS_CLOCK_GETTIME.get(platform.machine())
    if number is None:
        return None
    spec = _Timespec()
    if _libc().syscall(number, time.CLOCK_MONOTONIC_RAW, ctypes.byref(spec)) != 0:
        return None
    return int(spec.tv_sec) * 1_000_000_000 + int(spec.tv_nsec)


def uptime_ms() -> int | None:
    """Milliseconds of /proc/uptime, in its own steps of 10 ms."""
    try:
        return round(float(os.pread(_uptime_file(), 64, 0).split()[0]) * 1000)
    except (OSError, ValueError, IndexError):
        return None


@cache
def _uptime_file() -> int:
    """Kept open: every event asks, with caches that the trainer has just used for itself."""
    return os.open(_UPTIME, os.O_RDONLY | os.O_CLOEXEC)


def boot_id() -> str | None:
    """The kernel's id of this boot; never published, only compared and hashed."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None


class ClockSample(NamedTuple):
    """All clocks at one moment; `None` where this system has no such clock."""

    boottime_ns: int
    raw_ns: int
    syscall_ns: int | None
    uptime_ms: int | None
    wall_ms: int

    @classmethod
    def now(cls) -> ClockSample:
        return cls(
            boottime_ns=boottime_ns(),
            raw_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW),
            syscall_ns=raw_syscall_ns(),
            uptime_ms=uptime_ms(),
            wall_ms=wall_ms(),
        )

    def since(self, origin: ClockSample) -> dict[str, int | None]:
        """Each clock's own count since `origin`, as an event stores it."""
        return {
            "raw_ns": self.raw_ns - origin.raw_ns,
            "syscall_ns": _difference(self.syscall_ns, origin.syscall_ns),
            "uptime_ms": _difference(self.uptime_ms, origin.uptime_ms),
        }

    def to_json(self) -> dict[str, int | None]:
        return {
            "boottime_ns": self.boottime_ns,
            "raw_ns": self.raw_ns,
            "syscall_ns": self.syscall_ns,
            "uptime_ms": self.uptime_ms,
            "wall_ms": self.wall_ms,
        }

    @classmethod
    def from_json(cls, value: dict[str, int | None]) -> ClockSample:
        boottime, raw, wall = value["boottime_ns"], value["raw_ns"], value["wall_ms"]
        assert boottime is not None and raw is not None and wall is not None
        return cls(boottime, raw, value["syscall_ns"], value["uptime_ms"], wall)


def _difference(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier


def clock_text(seconds: float) -> str:
    """`1:02:03`, `2:03`: how a clock shows it."""
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{sign}{hours}:{minutes:02}:{left:02}" if hours else f"{sign}{minutes}:{left:02}"


def duration(seconds: float) -> str:
    """`23 h 12 min`, `15 min 21 s`, `38.1 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s".replace("-", "\N{MINUS SIGN}")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    whole, minutes = divmod(round(seconds / 60), 60)
    return f"{whole:,} h {minutes} min"

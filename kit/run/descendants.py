"""Everything a stage started ends with it, in whatever session or group it hides.

Linux hands an orphan to its nearest ancestor that asked for orphans (prctl(2),
PR_SET_CHILD_SUBREAPER) instead of to process 1. While a stage runs the supervisor is that
ancestor, so a child that the stage detached (`setsid`, a double fork) becomes a child of the
supervisor, which finds it in /proc and kills it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kit.errors import PrerequisiteError

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_LIBC = ctypes.CDLL(None, use_errno=True)
_END_WITHIN_S = 5.0


class Process(NamedTuple):
    """A process, told apart from a later one with the same number by its start time."""

    pid: int
    started: int  # clock ticks since boot


@contextlib.contextmanager
def adopt_orphans() -> Iterator[frozenset[Process]]:
    """Makes this process the parent of its descendants' orphans; yields the children it has now."""
    before = ctypes.c_int(0)
    if hasattr(_LIBC, "prctl"):  # Linux
        _LIBC.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield frozenset(children_by_parent().get(os.getpid(), ()))
    finally:
        if hasattr(_LIBC, "prctl"):
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def end_descendants(keep: frozenset[Process]) -> None:
    """Kills and reaps every descendant of this process but the children `keep` and theirs.

    Raises:
        PrerequisiteError: Some of them still run after five seconds.
    """
    give_up = time.monotonic() + _END_WITHIN_S
    while left := _descendants(keep):
        if time.monotonic() > give_up:
            raise PrerequisiteError(
                f"{len(left)} processes that the stage started do not end",
                hint="End them, then `n4090-kit run --resume`.",
            )
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        time.sleep(0.002)


def _descendants(keep: frozenset[Process]) -> list[Process]:
    children = children_by_parent()
    found = [child for child in children.get(os.getpid(), ()) if child not in keep]
    for process in found:  # grows while it is read
        found += children.get(process.pid, ())
    return found


def children_by_parent() -> dict[int, list[Process]]:
    """Processes by their parent's number, zombies included."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # After the name, which may hold anything: state, parent, …, start time (proc(5)).
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(Process(int(entry.name), int(fields[19])))
    return children

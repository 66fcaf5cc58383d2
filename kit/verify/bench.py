"""How fast and how small `verify` is: on a whole day's run, on a short one, and on 4 GB of weights.

Each verification is timed as a person meets it: a fresh process, from its start to its exit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kit.errors import KitError
from kit.trust.digest import DigestCache, sha256_file
from kit.verify.synthetic import gpu_run

DAY_STEPS, DAY_STEP_S, DAY_BATCH = 20_000, 3.95, 131_072
_BLOCK_BYTES = 2**20


class Timing(NamedTuple):
    """One process: seconds from start to exit, its CPU seconds, and the most memory it held."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


class Hashing(NamedTuple):
    """Seconds for the same bytes: the kit's, hashlib's in memory, reading alone, cached."""

    bytes: int
    kit_s: float
    sha256_s: float
    read_s: float
    cached_s: float


def make_day(folder: Path, steps: int = DAY_STEPS) -> dict[str, int]:
    """Writes a run of a whole day into `folder`, its checkpoints only by digest; what it holds."""
    draft = gpu_run(steps=steps, step_s=DAY_STEP_S, batch=DAY_BATCH)
    draft.write(folder)
    shutil.rmtree(folder / "checkpoints")
    return {
        "events": len(draft.events),
        "step_events": len(draft.of("step")),
        "telemetry_rows": len(draft.telemetry),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def time_verify(result: Path, options: Sequence[str] = (), repeats: int = 3) -> Timing:
    """The fastest of `repeats` runs of `n4090-kit verify RESULT`.

    Raises:
        KitError: It did not pass.
    """
    command = [sys.executable, "-m", "kit.cli.main", "verify", str(result), *options]
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.stderr.close()
        child.returncode = os.waitstatus_to_exitcode(status)
        elapsed = time.perf_counter() - began
        if child.returncode:
            raise KitError(f"verify ended with {child.returncode}: {said.decode()[-300:]}")
        cpu = usage.ru_utime + usage.ru_stime
        found.append(Timing(elapsed, cpu, usage.ru_maxrss * 1024))
    return min(found)


def time_hashing(folder: Path, size: int) -> Hashing:
    """Hashes a file of `size` bytes in `folder` in each way; the file is removed again."""
    path = folder / "weights.bin"
    block = os.urandom(_BLOCK_BYTES)
    with path.open("wb") as file:
        for _ in range(size // _BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    cache = DigestCache(folder / "digests.json")
    try:
        _forget(path)
        read_s = _timed(lambda: _read(path))
        plain_s = _timed(lambda: _sha256_in_memory(block, size // _BLOCK_BYTES))
        _forget(path)
        kit_s = _timed(lambda: sha256_file(path, cache=cache))
        cached_s = _timed(lambda: sha256_file(path, cache=cache))
    finally:
        path.unlink()
    return Hashing(size // _BLOCK_BYTES * _BLOCK_BYTES, kit_s, plain_s, read_s, cached_s)


def _timed(work: object) -> float:
    assert callable(work)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _sha256_in_memory(block: bytes, count: int) -> None:
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(block)


def _read(path: Path) -> None:
    buffer = bytearray(4 * _BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _forget(path: Path) -> None:
    """Asks the kernel to drop the file from its cache, so that the disk is read."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)

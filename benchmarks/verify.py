"""How fast and how small `verify` is: on a whole day's run, on a short one, and on 4 GB of weights.

Each verification is timed as a person meets it: a fresh process, from its start to its exit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
from support.synthetic import gpu_run

from kit.errors import KitError
from kit.trust.digest import DigestCache, sha256_file

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


@click.command("verify")
@click.option(
    "--steps",
    default=20_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Steps of the generated day.",
)
@click.option(
    "--repeats",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="The fastest counts.",
)
@click.option(
    "--gb",
    default=4.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="GB to hash; 0 leaves that out.",
)
@click.option(
    "--result",
    type=click.Path(exists=True, path_type=Path),
    help="A short run to time as well; by default one is generated.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bench_verify(steps: int, repeats: int, gb: float, result: Path | None, as_json: bool) -> None:
    """Time `verify` on a generated 24 h run, on a short run, and on GBs of weights.

    Fresh processes, start-up included. The day has 20,000 steps and a telemetry row a second.
    """
    with tempfile.TemporaryDirectory(prefix="n4090-bench-") as name:
        folder = Path(name)
        click.echo(f"generating a day of {steps:,} steps …", err=True)
        contents = make_day(folder / "day", steps)
        day = time_verify(folder / "day", repeats=repeats)
        if result is None:
            result = gpu_run(steps=24).write(folder / "short")
        short = time_verify(result, repeats=repeats)
        hashing = time_hashing(folder, int(gb * 1e9)) if gb else None
    if as_json:
        document = {
            "day": {**contents, **day._asdict()},
            "short": short._asdict(),
            "hashing": hashing and hashing._asdict(),
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(
        f"a day ({contents['telemetry_rows']:,} telemetry rows, {contents['step_events']:,} steps, "
        f"{contents['bytes'] / 1e6:.0f} MB): {day.wall_s:.2f} s ({day.cpu_s:.2f} s of CPU), "
        f"peak {day.peak_bytes / 1e6:.0f} MB"
    )
    click.echo(f"a short run: {short.wall_s:.2f} s ({short.cpu_s:.2f} s of CPU)")
    if hashing:
        rate = hashing.bytes / 1e9
        click.echo(
            f"hashing {rate:.1f} GB: {rate / hashing.kit_s:.2f} GB/s; sha256 in memory "
            f"{rate / hashing.sha256_s:.2f}, reading alone {rate / hashing.read_s:.2f}; "
            f"again, cached: {hashing.cached_s * 1000:.1f} ms"
        )


if __name__ == "__main__":
    bench_verify()

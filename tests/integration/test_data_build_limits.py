"""`data build` as a process: killed outright, on a disk that is too small, in bounded memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("duckdb")
pytest.importorskip("datatrove")

from reference.data.bench import made_texts, peak_bytes
from reference.data.manifest import read_manifest

SPEC = """
name = "own"
part_mb = {part_mb}
[[source]]
name = "own"
path = "{path}"
filters = false
[shards]
text_mb = {text_mb}
[normalize]
max_document_mb = 1
[dedup]
near = {near}
"""


def build(spec: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kit.cli.main", "data", "build", str(spec), "--out", str(out)]
    return subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def write_spec(root: Path, part_mb: float, text_mb: float, near: str = "true") -> Path:
    path = root / "spec.toml"
    path.write_text(
        SPEC.format(path=root / "in", part_mb=part_mb, text_mb=text_mb, near=near), "utf-8"
    )
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    table = pa.table({"text": made_texts(600)})
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=5)
    return tmp_path


def test_killed_outright_it_goes_on_at_the_last_finished_part(texts: Path) -> None:
    spec = write_spec(texts, 0.01, 0.3)
    whole = build(spec, texts / "whole", "--workers", "1")
    assert whole.communicate()[1] is not None and whole.returncode == 0
    killed = build(spec, texts / "killed", "--workers", "2")
    parts = texts / "killed" / ".build" / "parts"
    deadline = time.monotonic() + 120
    while len(before := list(parts.glob("*.json"))) < 3 and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not list((texts / "killed").glob("*.parquet"))
    times = {path: path.stat().st_mtime_ns for path in before}
    again = build(spec, texts / "killed", "--workers", "1", "--keep-work")
    assert again.communicate()[1] is not None and again.returncode == 0
    assert read_manifest(texts / "killed")["digest"] == read_manifest(texts / "whole")["digest"]
    assert {path: path.stat().st_mtime_ns for path in before} == times


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_message_and_the_same_call_goes_on(texts: Path) -> None:
    small = texts / "small"
    small.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.decode().strip()}")
    try:
        spec = write_spec(texts, 0.1, 0.3)
        full = build(spec, small / "out", "--workers", "1")
        said = full.communicate()[1]
        assert full.returncode == 2, said
        assert f"the disk under {small / 'out'} is full" in said and "Traceback" not in said
        assert not list((small / "out").glob("*.parquet"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        again = build(spec, small / "out", "--workers", "1")
        assert again.communicate()[1] is not None and again.returncode == 0
        assert sum(shard["rows"] for shard in read_manifest(small / "out")["shards"]) == 600
    finally:
        subprocess.run(["umount", str(small)], check=True)


def peak_of_build(root: Path, megabytes: int) -> int:
    """Peak memory of a build of that much text in one process."""
    (root / "in").mkdir(parents=True)
    base = (" ".join(made_texts(20)) * 4)[:100_000]
    spread = np.arange(megabytes * 10)
    with pq.ParquetWriter(root / "in" / "a.parquet", pa.schema([("text", pa.string())])) as file:
        for group in np.array_split(spread, max(1, megabytes // 8)):  # groups of 8 MB
            file.write_table(pa.table({"text": [f"{number} {base}" for number in group]}))
    process = build(
        write_spec(root, 8, 8, "false"), root / "out", "--workers", "1", "--memory", "320MB"
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_bytes(process.pid))
        time.sleep(0.01)
    assert process.returncode == 0, process.communicate()[1]
    process.communicate()
    manifest = read_manifest(root / "out")
    assert sum(shard["text_bytes"] for shard in manifest["shards"]) > megabytes * 1_000_000
    return peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    small, large = (peak_of_build(tmp_path / str(size), size) for size in (16, 160))
    assert large < 320_000_000
    assert large - small < 40_000_000

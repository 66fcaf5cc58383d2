"""The cache of CUDA environments when a process was killed, the disk is full, or locks are old."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import nullgpu_environment
import pytest
from nullgpu_environment import (
    KEPT_PER_PYTHON,
    NEEDED_BYTES,
    Unavailable,
    cache_folder,
    environment,
    locked,
)


class Disk(NamedTuple):
    free: int


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; what would be installed is an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(command: list[str]) -> str:
        if "venv" in command:
            Path(command[-1]).mkdir()
        return "3.11"

    monkeypatch.setattr(nullgpu_environment, "_run", run)
    free(monkeypatch, NEEDED_BYTES)
    return cache_folder()


def free(monkeypatch: pytest.MonkeyPatch, *free_bytes: int) -> None:
    """Answers of the disk, the last for good."""
    answers = list(free_bytes)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: Disk(answers.pop(0) if len(answers) > 1 else answers[0])
    )


def older(cache: Path, name: str, made_at: int | None) -> Path:
    """An environment of another lock, whole since `made_at`, or half made."""
    folder = cache / name
    (folder / "venv").mkdir(parents=True)
    if made_at is not None:
        (folder / "complete").touch()
        os.utime(folder / "complete", (made_at, made_at))
    return folder


def test_what_a_killed_process_left_half_made_is_made_again(cache: Path) -> None:
    folder = environment().parent
    (folder / "complete").unlink()
    (folder / "venv/half").touch()
    assert environment().parent == folder
    assert (folder / "complete").exists() and not (folder / "venv/half").exists()


def test_half_made_environments_of_older_locks_go_unless_one_is_being_made(cache: Path) -> None:
    left, made_now = (older(cache, f"python3.1{n}-torchlocked-0{n}", None) for n in (1, 2))
    with locked(made_now):
        environment()
        assert not left.exists() and made_now.exists()


def test_the_newest_environments_stay(cache: Path) -> None:
    times = {older(cache, f"python3.11-torchlocked-{n}", 1000 + n): n for n in range(4)}
    other = older(cache, "python3.11-torch2.12.0-0", 1)
    environment()
    kept = [n for folder, n in times.items() if folder.exists()]
    assert kept == list(range(4))[1 - KEPT_PER_PYTHON :], "and the one that was made"
    assert other.exists()


def test_a_full_disk_is_said_and_leaves_nothing(cache: Path, monkeypatch) -> None:
    free(monkeypatch, 3 << 30)
    with pytest.raises(Unavailable, match="has 3 GiB free; making the environment takes 14 GiB"):
        environment()
    assert not list(cache.glob("python*"))


def test_older_environments_make_room(cache: Path, monkeypatch) -> None:
    earlier = older(cache, "python3.11-torchlocked-0", 1000)
    free(monkeypatch, 3 << 30, NEEDED_BYTES)
    assert environment().exists() and not earlier.exists()


def test_a_disk_that_fills_up_on_the_way_is_said(cache: Path, monkeypatch) -> None:
    def no_space(command: list[str]) -> str:
        if "install" in command:
            raise subprocess.CalledProcessError(
                1, command, stderr="ERROR: [Errno 28] No space left"
            )
        return "3.11"

    monkeypatch.setattr(nullgpu_environment, "_run", no_space)
    with pytest.raises(Unavailable, match="No space left"):
        environment()
    assert not list(cache.glob("python*"))


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match="cannot be made"):
        environment()

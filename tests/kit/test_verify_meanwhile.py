"""A second process that reads telemetry finds what the first would, and may die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kit.verify import evidence, verify_result
from kit.verify.meanwhile import Meanwhile
from kit.verify.synthetic import gpu_run

needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one core: nothing is read ahead"
)


def _process(number: int) -> int:
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 1:
        raise ValueError("told by the first process, not here")
    if number == 2:
        time.sleep(60)
    return os.getpid()


def test_it_is_another_process() -> None:
    assert Meanwhile(_process, 3).result() not in (None, os.getpid())


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_one_that_dies_gives_nothing_and_says_nothing(
    how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert Meanwhile(_process, ["killed", "failed"].index(how)).result() is None
    assert capfd.readouterr() == ("", "")


def test_one_that_nobody_asks_ends() -> None:
    began = time.monotonic()
    Meanwhile(_process, 2).end()
    assert time.monotonic() - began < 10


@needs_two_cores
@pytest.mark.parametrize("damage", [b"", b'{"ev":"sample"}\n', b"torn"])
@pytest.mark.parametrize("dies", [False, True])
def test_both_ways_give_the_same_report(
    damage: bytes, dies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = gpu_run(steps=24).write(tmp_path / "run")
    folder = run if run.is_dir() else run.parent
    with (folder / "telemetry.jsonl").open("ab") as file:
        file.write(damage)
    plain = verify_result(folder)

    made: list[Any] = []

    def meanwhile(work: Any, argument: Any) -> Meanwhile[Any]:
        made.append(Meanwhile(_process, 0) if dies else Meanwhile(work, argument))
        return made[-1]

    monkeypatch.setattr(evidence, "_LONG_BYTES", 0)
    monkeypatch.setattr(evidence, "Meanwhile", meanwhile)
    ahead = verify_result(folder)
    assert len(made) == 1
    assert ahead.findings == plain.findings
    assert (ahead.status("V04") == "pass") == (damage == b"")


def test_a_short_telemetry_is_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "Meanwhile", pytest.fail)
    assert verify_result(gpu_run(steps=24).write(tmp_path / "run")).status("V04") == "pass"

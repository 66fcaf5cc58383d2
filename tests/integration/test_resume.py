"""Killed at any moment and resumed, a run gives the same losses and files to the bit (CPU)."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.events import Eval
from kit.run_log import RunLog

TINY = Path(__file__).parent.parent / "assets" / "tiny.toml"
SEED = int(os.environ.get("N4090_TEST_SEED", random.SystemRandom().randrange(10**6)))


def launch(work: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "kit.cli.main",
        "run",
        "--no-probe",
        "--work",
        work,
        *arguments,
    ]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on interruptions: losses, evaluations, and the digests of all files."""
    log = RunLog.read(run)
    assert log.chain.problems == []
    evaluations = {
        (stage, event.data.name, event.data.step): event.data.value
        for stage in ("pretrain", "sft")
        for event in log.of(stage, Eval)
    }
    return {
        "pretrain": [event.data.loss for event in log.steps("pretrain")],
        "sft": [event.data.loss for event in log.steps("sft")],
        "evaluations": evaluations,
        "files": {stage: part.digest for stage, part in log.artifacts.items()},
    }


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any], dict[str, float]]:
    """An uninterrupted run: its data, its outcome, and the seconds of its stages."""
    work = tmp_path_factory.mktemp("whole")
    finish(launch(work, "--recipe", TINY))
    [run] = (work / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    seconds = {part["stage"]: part["elapsed_s"] for part in result["timing"]["stages"]}
    found = outcome(run)
    assert len(found["pretrain"]) == 40
    assert len(found["sft"]) == 15
    assert found["pretrain"][-1] < found["pretrain"][0] - 1
    return work / "data", found, seconds


@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        ("tokenizer", "trainer"),
        ("tokenizer", "supervisor"),
        ("pretrain", "trainer"),
        ("pretrain", "supervisor"),
        ("sft", "trainer"),
        ("sft", "supervisor"),
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(whole, tmp_path, stage, victim) -> None:
    data, expected, seconds = whole
    chance = random.Random(f"{SEED} {stage} {victim}")
    process, log = begin(tmp_path, data, stage)
    time.sleep(chance.uniform(0, seconds[stage]))
    if victim == "supervisor":
        process.kill()
    else:
        kill_trainer(process.pid)
    process.communicate(timeout=240)
    if process.returncode:  # else there was no trainer to kill, and the run is complete
        finish(launch(tmp_path, "--resume", log.parent))
    assert outcome(log.parent) == expected, f"N4090_TEST_SEED={SEED}"


def test_a_stop_in_the_middle_of_training_loses_no_step(whole, tmp_path) -> None:
    data, expected, _ = whole
    process, log = begin(tmp_path, data, "pretrain")
    wait_for(lambda: '"ev":"step"' in log.read_text())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    finish(launch(tmp_path, "--resume", log.parent))
    result = json.loads((log.parent / "result.json").read_text())
    assert result["training"]["steps_done_again"] == 0
    assert outcome(log.parent) == expected


def test_steps_that_the_log_lost_are_done_again(whole, tmp_path) -> None:
    """A kill loses reports in the pipe, a power cut the log's last lines; checkpoints stay."""
    data, expected, _ = whole
    process, log = begin(tmp_path, data, "pretrain")
    states = log.parent / "checkpoints" / "pretrain" / "state"
    wait_for(lambda: log.read_text().count('"ev":"checkpoint"') >= 2)
    process.kill()
    process.communicate()
    newest = max(int(path.stem.removeprefix("step-")) for path in states.glob("step-*.sha256"))
    lines = log.read_bytes().splitlines(keepends=True)
    events = list(map(json.loads, lines))
    last = max(n for n, event in enumerate(events) if 0 <= step_of(event) <= newest - 2)
    log.write_bytes(b"".join(lines[: last + 1]))
    finish(launch(tmp_path, "--resume", log.parent))
    assert outcome(log.parent) == expected


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, tmp_path) -> None:
    data, expected, _ = whole
    process, log = begin(tmp_path, data, "pretrain")
    states = log.parent / "checkpoints" / "pretrain" / "state"
    wait_for(lambda: len(list(states.glob("step-*.sha256"))) >= 2)
    process.kill()
    process.communicate()
    newest = max(path for path in states.glob("step-*.pt") if path.with_suffix(".sha256").exists())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    finish(launch(tmp_path, "--resume", log.parent))
    assert outcome(log.parent) == expected


def begin(work: Path, data: Path, stage: str) -> tuple[subprocess.Popen[str], Path]:
    """A run of its own on the same data that has come to `stage`, and its log."""
    shutil.copytree(data, work / "data")
    process = launch(work, "--recipe", TINY)
    mark = f'"stage":"{stage}"' + '},"ev":"stage_start"'
    wait_for(lambda: any(mark in log.read_text() for log in work.glob("runs/*/events.jsonl")))
    [log] = work.glob("runs/*/events.jsonl")
    return process, log


def wait_for(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.005)


def step_of(event: dict[str, Any]) -> int:
    step: int = event["data"]["step"] if event["ev"] == "step" else -1
    return step


def kill_trainer(supervisor: int) -> None:
    """Kills the supervisor's child, if it has one at this moment."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)

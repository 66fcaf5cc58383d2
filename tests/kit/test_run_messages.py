"""What a person reads before and after a run: lines that work as printed, one speed, chance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tamper

from kit.cli import invocation, progress
from kit.cli.chance import expected_at_chance, measured_at_chance
from kit.cli.run import summary
from kit.recipe import load_recipe
from kit.speed import stage_speed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("day") / "a run"  # the space needs quotes
    tamper.gpu_run().write(folder)
    return folder


@pytest.fixture
def result(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "result.json").read_text())
    return document


@pytest.fixture
def path_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    invocation.program.cache_clear()


def test_the_next_line_works_as_printed(
    run: Path,
    result: dict[str, Any],
    path_without_us: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(run.parent)
    progress.print_summary(result, run / "result.json")
    shown = capsys.readouterr().out.splitlines()
    line = next(line for line in shown if line.startswith("next:")).removeprefix("next:")
    done = subprocess.run(["/bin/sh", "-c", f"{line} --json"], capture_output=True, text=True)
    assert json.loads(done.stdout)["verdict"] == "consistent", done.stderr
    invocation.program.cache_clear()


def test_lines_in_hints_begin_with_what_starts_the_program(path_without_us: None) -> None:
    start = invocation.program()
    assert start != "n4090-kit"
    text = "Run `n4090-kit doctor`, then go on:\n  n4090-kit run --resume R (n4090-kit 0.1)"
    assert invocation.runnable(text).count(start) == 2
    assert "(n4090-kit 0.1)" in invocation.runnable(text)
    invocation.program.cache_clear()


def test_a_command_on_path_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    invocation.program.cache_clear()
    assert invocation.program() == "n4090-kit"
    invocation.program.cache_clear()


def test_speed_is_tokens_over_the_stages_seconds(
    run: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    speed = result["training"]["tokens"] / result["timing"]["pretrain_s"]
    assert stage_speed(result) == speed
    machine = summary(result, run)
    assert machine["tokens_per_s"] == speed
    assert machine["median_step_tokens_per_s"] == result["training"]["tokens_per_s"]
    progress.print_summary(result, run / "result.json")
    text = capsys.readouterr().out
    assert f"{speed:,.0f} tokens/s over the whole stage" in text and "median step" in text


def test_chance_is_said_before_a_small_run_and_after_an_interval_that_holds_zero() -> None:
    assert "guessing" in (expected_at_chance(load_recipe("nano")) or "")
    assert expected_at_chance(load_recipe("reference")) is None
    assert expected_at_chance(load_recipe("smoke")) is None
    assert measured_at_chance({"interval": [-0.01, 0.03]}) is not None
    assert measured_at_chance({"interval": [0.01, 0.03]}) is None
    assert measured_at_chance({"interval": None}) is None

"""The trainer's commands, called wrongly: one message, what to do, the right exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from reference.bench.commands import bench_kernels, bench_levers
from reference.chat.commands import generate
from reference.command_errors import explained
from reference.commands import bench_train, chat
from reference.data.commands import bench_data
from reference.errors import TrainerError
from reference.lab.commands import ablate, plan, report

STUDY = Path(__file__).parents[2] / "reference" / "studies" / "cpu-ladder.toml"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (bench_train, []),
        (bench_kernels, []),
        (bench_levers, []),
        (chat, ["."]),
        (generate, [".", "a"]),
        (ablate, [str(STUDY), "--data", "."]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_gpu_that_is_not_there_is_one_error(command, arguments) -> None:
    done = CliRunner().invoke(command, [*arguments, "--device", "cuda"])
    assert done.exit_code == 3, done.output
    assert done.stderr.startswith("error: a CUDA device is asked for, and torch sees none\n")
    assert "hint: Check `nvidia-smi`" in done.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (bench_train, ["--recipe", "nope"], "error: there is no recipe `nope`"),
        (bench_levers, ["--recipe", "nope"], "error: there is no recipe `nope`"),
        (bench_kernels, ["--depths", "12,0"], "numbers with commas"),
        (bench_data, ["--texts", "{folder}"], "holds no documents"),
        (plan, ["--gpu", "rtx9999", "--no-files"], "`n4090-kit plan --bench bench.json`"),
        (plan, ["--out", "{folder}"], "is a directory"),
        (report, ["{folder}", "--study", "{folder}"], "holds no findings.json"),
        (ablate, [str(STUDY), "--out", "{file}"], "is a file"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path: Path, command, arguments, said: str) -> None:
    (tmp_path / "file").touch()
    fitted = [text.format(folder=tmp_path, file=tmp_path / "file") for text in arguments]
    done = CliRunner().invoke(command, fitted)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_a_plan_for_a_minute_is_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(plan, ["--hours", "0.02", "--no-files", "--json"])
    assert done.exit_code == 0, done.output


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, explained("lab"):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")
    assert left.value.code == 3
    assert capsys.readouterr().err == (
        "error: package scipy is missing\n\nhint: in the checkout: pip install '.[lab]'\n"
    )


def test_an_error_without_advice_has_no_empty_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, explained():
        raise TrainerError("bad_input", "no")
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: no\n"

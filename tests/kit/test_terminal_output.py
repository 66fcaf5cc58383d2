"""What fits a terminal of 80 columns, and what a person sees while waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kit.cli import doctor as doctor_command
from kit.cli.main import cli

EVALUATION = Path(__file__).parents[2] / "submissions/evaluations/smollm2-135m-core.json"


@pytest.mark.parametrize("command", ["compare", "chart"])
def test_tables_of_evaluations_fit_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numpy")
    monkeypatch.setenv("COLUMNS", "80")
    files = [str(EVALUATION)] * (2 if command == "compare" else 1)
    done = CliRunner().invoke(cli, ["eval", command, *files])
    assert done.exit_code == 0, done.exception
    lines = done.output.splitlines()
    assert max(map(len, (line.rstrip() for line in lines))) <= 80
    assert "…" not in done.output
    assert "bigbench_language_identification" in done.output


def groups(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return []
    context = click.Context(command)
    found = [path]
    for name in command.list_commands(context):
        try:
            inner = command.get_command(context, name)
        except ModuleNotFoundError:
            continue
        if inner is not None:
            found += groups(inner, (*path, name))
    return found


def test_help_lines_are_whole() -> None:
    for path in groups(cli):
        done = CliRunner().invoke(cli, [*path, "--help"])
        cut = [line for line in done.output.splitlines() if line.endswith("...")]
        assert not [line for line in cut if "[ARGS]" not in line], (path, cut)


def test_doctor_says_each_reason_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def verdict(why: list[str]) -> dict[str, Any]:
        return {"can_run": not why, "why": why, "to_fetch": []}

    verdicts = {"a": verdict(["no GPU"]), "b": verdict(["no GPU"]), "c": verdict([])}
    monkeypatch.setattr(doctor_command, "_verdicts", lambda work: verdicts)
    monkeypatch.setattr(doctor_command.doctor_container, "outside", lambda gpu_seen: [])
    text = CliRunner().invoke(cli, ["doctor"]).output
    assert text.count("no GPU") == 1 and "a, b: no GPU" in text


def test_bits_per_byte_report_progress_and_equal_the_whole() -> None:
    pytest.importorskip("torch")
    from kit.core_eval.bpb import evaluate_bpb
    from kit.core_eval.loaders import from_recipe

    assets = Path(__file__).parents[1] / "assets" / "core"
    model = from_recipe("tiny_model.py:PrefixModel", assets)()
    texts = [f"a text about {i} things, and no more" for i in range(130)]
    seen: list[int] = []
    found = evaluate_bpb(
        model, iter(texts), seq_len=8, progress=lambda so_far: seen.append(so_far.texts)
    )
    assert seen == sorted(seen) and seen[-1] == 130 and len(seen) > 1
    parts = [evaluate_bpb(model, [text], seq_len=8) for text in texts]
    assert found.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-5)
    assert found.tokens == sum(part.tokens for part in parts)

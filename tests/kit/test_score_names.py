"""The word and the task `core` name all items of all 22 tasks of the bundle, and nothing else."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tamper
from click.testing import CliRunner

from kit.board import card
from kit.board.layout import SubmissionPath
from kit.board.model_index import model_index
from kit.board.row import submission_row
from kit.board.site.detail import _facts as headings
from kit.board.site.view import index_row
from kit.board.statistics import figures_of
from kit.cli import progress
from kit.cli.main import cli
from kit.cli.run import summary
from kit.core_eval.naming import is_core, score_name
from kit.result_form import Result
from kit.verify import verify_result
from kit.verify.html import page

SMALLER = {
    "partial score": {"partial": True},
    "own-questions score": {"bundle": "custom"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a day that scored all of CORE."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    tamper.gpu_run().write(folder)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.fixture(params=SMALLER)
def smaller(whole: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """The same result, its score a smaller one of each kind."""
    result = copy.deepcopy(whole)
    result["quality"]["core"] |= SMALLER[request.param]
    return result


def published(result: dict[str, Any]) -> dict[str, str]:
    """What a card, a board and a command show of a result."""
    path = SubmissionPath(2026, "me", "0123456789abcdef")
    row = submission_row(path, Result.of(result), {"model": None})
    shown = index_row(row)
    return {
        "model index": model_index(result),
        "card": card.facts_table(result),
        "eval results": card.eval_results(result, "me/board") or "",
        "row": json.dumps({"core": row["core"]}),
        "index": json.dumps([shown.core, shown.data.get("core")]),
        "heading": json.dumps(headings(row)[0]),
        "summary": json.dumps({"core": summary(result, Path())["core"]}),
        "reproduction": json.dumps({"core": figures_of(result)["core"]}),
    }


def test_a_whole_score_is_called_core_everywhere(whole: dict[str, Any]) -> None:
    value = whole["quality"]["core"]["value"]
    for place, text in published(whole).items():
        assert re.search(rf"(?i)\bcore\b|{value:.4f}", text), place
        assert f"{value:.4f}" in text or str(value) in text, place


def test_a_smaller_score_is_called_core_nowhere(smaller: dict[str, Any]) -> None:
    name = score_name(smaller["quality"]["core"])
    shown = published(smaller)
    for place in ("model index", "card", "heading"):
        text = shown.pop(place)
        assert name in text.lower(), place
        assert not re.search(r"(?i)\bcore\b", text), place
    value = smaller["quality"]["core"]["value"]
    for place, text in shown.items():
        assert f"{value:.4f}" not in text and str(value) not in text, place


def test_verify_names_the_score_of_a_smoke_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    tamper.gpu_run().write(folder)
    result = json.loads((folder / "result.json").read_text())
    result["quality"]["core"]["bundle"] = "custom"
    tamper.write_signed(folder, result)
    value = result["quality"]["core"]["value"]
    facts = verify_result(folder).facts
    assert facts["core"] is None
    assert facts["score"] == {"name": "own-questions score", "value": value}
    text = CliRunner().invoke(cli, ["verify", str(folder)]).output
    assert f"own-questions score {value:.4f}" in " ".join(text.split())
    assert f"<dt>own-questions score</dt><dd>{value:.4f}" in page(verify_result(folder))
    progress.print_summary(result, folder / "result.json")
    assert "own-questions score" in capsys.readouterr().out


def test_a_capped_or_shorter_evaluation_is_not_core() -> None:
    tasks = [{}] * 22
    assert is_core({"bundle": "core", "partial": False, "tasks": tasks})
    assert is_core({"bundle": {"kind": "core"}, "partial": False, "tasks": tasks})
    assert not is_core({"bundle": "core", "partial": False, "tasks": tasks[1:]})
    assert not is_core({"bundle": "core", "partial": True, "tasks": tasks})
    assert not is_core(None)

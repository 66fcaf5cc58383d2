"""A day that nobody ran: what its inventor gets for it. SECURITY.md says what it costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.fake_day import fake_day

from kit.board.layout import Layout, SubmissionPath
from kit.board.load import load_board
from kit.board.publish import publish
from kit.trust.sign import result_id
from kit.verify import verify_result

pytestmark = pytest.mark.slow
OWN = ("recipe.toml", "tokenizer", "telemetry.jsonl")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_day().write(tmp_path_factory.mktemp("fake") / "run").parent


def submit(board: Path, run: Path) -> str:
    """Puts the run's text on the board as `forger`, its weights nowhere.

    A day's telemetry lies beside the weights in a submitter's own repository: the board's files
    have a limit.
    """
    row_id = result_id(json.loads((run / "result.json").read_bytes()))
    folder = Layout(board).submission(SubmissionPath("2026", "forger", row_id))
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*OWN))
    (folder / "README.md").write_text("a day\n")
    pin = {"schema_version": 1, "result_id": row_id, "submitter": "forger"}
    (folder / "submission.json").write_text(json.dumps({**pin, "model": None, "files": []}))
    return row_id


def test_an_invented_day_contradicts_nothing_and_is_never_ranked(run: Path, tmp_path: Path) -> None:
    report = verify_result(run)
    assert report.verdict == "consistent", report.refused_by
    assert report.facts["ranked"], "the result claims so; the board decides"
    board = tmp_path / "board"
    board.mkdir()
    row_id = submit(board, run)
    done = publish(board)
    assert done.new, "the submission was judged"
    row = load_board(board).row(row_id)
    assert row["tier"] in ("T0", "T1")
    assert row["rank"] is None
    assert any("self-reported" in reason for reason in row["why_not_ranked"])

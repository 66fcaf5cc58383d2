"""A row's weights scored by the board (T2); scorings and replays of somebody else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kit.board.load import load_board
from kit.board.publish import publish as publish_board

ASSETS = Path(__file__).parent.parent / "assets"


@pytest.mark.slow
def test_the_board_scores_a_row_and_others_check_and_replay_it(n4090: Any, tmp_path: Path) -> None:
    text = (ASSETS / "tiny.toml").read_text()
    text = re.sub(r"(?m)^stages = .*", 'stages = ["tokenizer", "pretrain", "core"]', text)
    text = re.sub(r"(?m)^num_steps = 40", "num_steps = 12", text)
    recipe, ada, grace = tmp_path / "tiny.toml", tmp_path / "ada", tmp_path / "grace"
    recipe.write_text(text)
    board = tmp_path / "board"
    board.mkdir()
    n4090("run", "-r", recipe, "--work", ada, "--no-probe", "-q")
    [run] = (ada / "runs").iterdir()
    [shards] = (ada / "data").glob("*/pretrain")
    n4090("submit", run, "--board", board, "--as", "ada")
    publish = ("board", "publish", "--board", board, "--work", tmp_path)
    n4090(*publish)
    [row] = load_board(board).rows
    assert row["tier"] == "T1"
    [core] = (ada / "data").glob("*/core")
    rescore = ("board", "rescore", row["id"], "--board", board, "--work", tmp_path, "--core", core)
    told = n4090(*rescore, "--items", 100, "--yes")
    assert "100 items on" in told.stderr
    row = load_board(board).row(row["id"])
    assert row["tier"] == "T2" and "60 of 60 drawn answers the same" in row["tier_reason"]

    def again(*how: object) -> dict[str, Any]:
        """One statement of grace's, submitted and judged."""
        out = tmp_path / f"{how[0]}.json"
        words = ("reproduce", row["id"], "--board", board, "--as", "grace", "--work", grace)
        words = (*words, *how, "--data", shards, "--core", core, "--device", "cpu")
        n4090(*words, "--out", out, "-q")
        n4090("submit", out, "--board", board)
        n4090(*publish)
        document: dict[str, Any] = json.loads(out.read_text())
        return document

    checked = again("--check-only")
    assert {c["name"]: c["status"] for c in checked["checks"]} == {
        "val_bpb": "pass",
        "score": "pass",
        "answers": "pass",
        "probes": "pass",
    }
    assert checked["found"]["val_bpb"] == pytest.approx(row["val_bpb"], abs=1e-6)

    replayed = again("--replay", 1)
    assert [c["status"] for c in replayed["checks"]] == ["pass"]
    after = load_board(board).row(row["id"])
    # Nobody vouches for grace: both are shown, and neither raises the tier.
    assert after["tier"] == "T2" and len(after["reproductions"]) == 2
    [window] = replayed["evidence"]["windows"]
    key = replayed["by"]["public_key"]
    grace_shown = {"service": "hf", "user": "grace", "created_at": "2020-01-01T00:00:00Z"}
    publish_board(board, accounts=[{**grace_shown, "keys": [key]}])
    assert window["losses"] and load_board(board).row(row["id"])["tier"] == "T3"

    # Other weights under the same name: found out before they are scored.
    [weights] = board.glob("models/ada/*/checkpoints/pretrain/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    words = ("reproduce", row["id"], "--board", board, "--as", "bob", "--work", tmp_path / "bob")
    refused = n4090(*words, "--check-only", "--data", shards, "--core", core, check=3)
    assert "not the file that the log names" in refused.stderr
    n4090(*rescore, "--yes")
    row = load_board(board).row(row["id"])
    assert row["tier"] == "T1" and "not the file that was signed" in row["tier_reason"]

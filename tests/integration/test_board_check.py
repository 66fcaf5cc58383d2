"""Weights scored again and steps done again by somebody else: tiers T2 and T3."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kit.board.load import load_board

ASSETS = Path(__file__).parent.parent / "assets"


@pytest.mark.slow
def test_checking_and_replaying_a_row_raise_its_tier(n4090: Any, tmp_path: Path) -> None:
    text = (ASSETS / "tiny.toml").read_text()
    text = re.sub(r"(?m)^stages = .*", 'stages = ["tokenizer", "pretrain"]', text)
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

    def again(*how: object) -> dict[str, Any]:
        """One statement of grace's, submitted and judged."""
        out = tmp_path / f"{how[0]}.json"
        words = ("reproduce", row["id"], "--board", board, "--as", "grace", "--work", grace)
        n4090(*words, *how, "--data", shards, "--device", "cpu", "--out", out, "-q")
        n4090("submit", out, "--board", board)
        n4090(*publish)
        document: dict[str, Any] = json.loads(out.read_text())
        return document

    checked = again("--check-only")
    assert {c["name"]: c["status"] for c in checked["checks"]} == {
        "val_bpb": "pass",
        "score": "skip",
        "probes": "pass",
    }
    assert checked["found"]["val_bpb"] == pytest.approx(row["val_bpb"], abs=1e-6)
    assert load_board(board).row(row["id"])["tier"] == "T2"

    replayed = again("--replay", 1)
    assert [c["status"] for c in replayed["checks"]] == ["pass"]
    after = load_board(board).row(row["id"])
    assert after["tier"] == "T3" and len(after["reproductions"]) == 2

    # Other weights under the same name: found out before they are scored.
    [weights] = board.glob("models/ada/*/checkpoints/pretrain/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    words = ("reproduce", row["id"], "--board", board, "--as", "bob", "--work", tmp_path / "bob")
    refused = n4090(*words, "--check-only", "--data", shards, check=3)
    assert "not the file that the log names" in refused.stderr

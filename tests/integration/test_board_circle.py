"""The full circle: run, submit, publish, site; somebody else reproduces and disputes.

The board here has scored no weights and knows no accounts, so a reproduction is shown, not counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kit.board.load import load_board
from kit.board.publish import publish as publish_board

# What makes two seeds differ, and a score that a reproduction can be held to.
SEEDED = """            rng = np.random.default_rng(request["seed"])
            table += rng.random(table.shape, np.float32) * 0.01
"""
SCORED = """            emit("eval", name="val_bpb", step=step, value=loss / np.log(2))
"""


def scoring_trainer(folder: Path) -> None:
    """The forty-line trainer, seeded, with a validation figure at its end."""
    path = folder / "bigram_trainer.py"
    text = path.read_text()
    begin = "            import pyarrow.parquet as pq\n"
    end = '        elif request["stage"] == "sft":\n'
    assert begin in text and end in text
    path.write_text(text.replace(begin, begin + SEEDED).replace(end, SCORED + end))


def row_of(board: Path, row_id: str) -> dict[str, Any]:
    return load_board(board).row(row_id)


def test_from_a_run_to_a_row_to_a_reproduction(bigram: Any, n4090: Any, tmp_path: Path) -> None:
    ada, board, out = bigram(), tmp_path / "board", tmp_path / "site"
    scoring_trainer(ada.recipe.parent)
    grace = tmp_path / "grace"
    (grace / "data").mkdir(parents=True)
    (grace / "data" / "stories-4090-20000").symlink_to(ada.work / "data" / "stories-4090-20000")
    board.mkdir()

    n4090("run", "-r", ada.recipe, "--work", ada.work, "--no-probe", "-q")
    n4090("submit", ada.run_folder, "--board", board, "--as", "ada")
    n4090("board", "publish", "--board", board, "--work", tmp_path)
    [row] = load_board(board).rows
    assert (row["tier"], row["state"], row["pooled"]["n"]) == ("T1", "listed", 1)
    n4090("board", "site", "--board", board, "--out", out)
    page = (out / "row" / f"{row['id']}.html").read_text()
    assert "None yet. The two commands above make the first." in page

    again = ["reproduce", row["id"], "--board", board, "--no-probe", "-q"]
    # Nobody's unread code runs, and nobody confirms themselves.
    refused = n4090(*again, "--as", "grace", "--work", grace, check=1)
    assert "trainer of its own" in refused.stderr and not (grace / "runs").exists()
    again += ["--trainer-code", ada.recipe.parent]
    own = n4090(*again, "--as", "ada", "--work", ada.work, check=1)
    assert "somebody else's" in own.stderr
    seed = json.loads((ada.run_folder / "result.json").read_text())["seed"]["value"]
    same = n4090(*again, "--as", "grace", "--work", grace, "--seed", seed, check=1)
    assert "row's own seed" in same.stderr

    n4090(*again, "--as", "grace", "--work", grace)
    [run] = (grace / "runs").iterdir()
    statement = json.loads((run / "reproduction.json").read_text())
    assert statement["verdict"] == "confirmed" and statement["by"]["name"] == "grace"
    n4090("submit", run, "--board", board)
    n4090("board", "publish", "--board", board, "--work", tmp_path)

    after = row_of(board, row["id"])
    # Weights that the board has not scored stay T1, whoever confirms them.
    unscored = "self-reported; the board has not scored its weights yet"
    assert (after["tier"], after["tier_reason"]) == ("T1", unscored)
    [reproduction] = after["reproductions"]
    assert (reproduction["by"], reproduction["verdict"]) == ("grace", "confirmed")
    assert not reproduction["counted"] and after["pooled"]["n"] == 1
    assert "not counted: neither the Hub nor GitHub" in (board / "board-events.jsonl").read_text()
    theirs = row_of(board, statement["result_id"])
    assert (theirs["tier"], theirs["submitter"]) == ("T1", "grace")

    # An account that shows grace's key does not stand in for the board's own scoring.
    shown = {"service": "hf", "user": "grace", "created_at": "2020-01-01T00:00:00Z"}
    publish_board(board, accounts=[{**shown, "keys": [statement["by"]["public_key"]]}])
    assert row_of(board, row["id"])["tier"] == "T1"
    assert (
        "the board has not scored the weights of its own run"
        in (board / "board-events.jsonl").read_text()
    )

    doubt = "<b>Too fast</b> for =this card"
    doubted = ("board", "dispute", row["id"], "--board", board, "--as", "bob", "--reason", doubt)
    n4090(*doubted, "--work", tmp_path / "bob", "--evidence", "V13", "--yes")
    n4090("board", "publish", "--board", board, "--work", tmp_path)
    n4090("board", "site", "--board", board, "--out", out)
    page = (out / "row" / f"{row['id']}.html").read_text()
    assert "&lt;b&gt;Too fast&lt;/b&gt; for =this card" in page and "<b>Too fast" not in page
    assert "<b>Dispute</b> by <bdi>bob</bdi>" in page and "V13" in page
    assert "not counted: neither the Hub nor GitHub" in page and "mean of 2 runs" not in page
    assert f'href="{statement["result_id"]}.html"' in page
    index = (out / "index.html").read_text()
    assert 'data-tier="T1"' in index and 'data-tier="T4"' not in index
    # Done twice, nothing changes.
    n4090("submit", run, "--board", board)
    before = (board / "board-events.jsonl").read_bytes()
    n4090("board", "publish", "--board", board, "--work", tmp_path)
    assert (board / "board-events.jsonl").read_bytes() == before

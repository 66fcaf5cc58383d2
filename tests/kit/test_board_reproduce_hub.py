"""Rows and weights fetched from a Hub: by id, by address, from a pull request; digests decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import board_runs
import pytest
from board_hub import BOARD, TOKENS
from board_hub import hub as hub
from click.testing import CliRunner
from git_hub import GitHub

from kit.board.claim import find_claim, with_weights
from kit.cli.main import cli
from kit.errors import PrerequisiteError
from kit.trust.digest import sha256_file
from kit.trust.sign import result_id

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def call(*arguments: object) -> Any:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, repr(done.exception))
    return done


def test_a_row_on_the_hub_is_fetched_checked_and_its_weights_are_those_signed(
    hub: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = board_runs.gpu_run(tmp_path / "run", "alice")
    result = json.loads((run / "result.json").read_text())
    name = result_id(result)
    call("submit", run, "--board", BOARD, "--yes")
    path = f"submissions/2026/alice/{name}"
    work = tmp_path / "work"
    told: list[str] = []

    pending = f"{hub.url}/datasets/{BOARD}/tree/refs%2Fpr%2F1/{path}"
    claim = find_claim(pending, "", work, told.append)
    assert (claim.id, claim.submitter) == (name, "alice")
    with pytest.raises(PrerequisiteError, match="lacks"):
        find_claim(f"hf://datasets/{BOARD}/{path}", "", work, told.append)

    monkeypatch.setenv("HF_TOKEN", TOKENS["n4090"])
    publish = ("board", "publish", "--board", BOARD, "--work", work)
    call(*publish)
    call(*publish, "--merge")
    call(*publish)
    for given in (name, name[:8], f"2026/alice/{name}"):
        claim = find_claim(given, BOARD, work, told.append)
        assert claim.id == name and claim.model is not None
    assert any(BOARD in line for line in told)

    weighed = with_weights(claim, work, told.append)
    for part in ("tokenizer", "base"):
        artifact = result["checkpoint"][part]
        for file in artifact["files"]:
            here = weighed.folder / artifact["folder"] / file["path"]
            assert sha256_file(here) == file["sha256"]
    assert not (weighed.folder / "checkpoints" / "sft").exists()

    done = call("reproduce", name, "--board", BOARD, "--work", work, "--fetch-only", "-q")
    assert Path(done.stdout.strip()).read_text() == result["recipe"]["text"]
    out = tmp_path / "site"
    call("board", "site", "--board", BOARD, "--work", tmp_path / "other", "--out", out)
    page = (out / "row" / f"{name}.html").read_text()
    assert f"hf download {BOARD} --repo-type dataset" in page
    assert f'href="https://huggingface.co/{claim.model["repository"]}/tree/' in page
    with pytest.raises(PrerequisiteError, match="is not a row"):
        find_claim("ffff", BOARD, work, told.append)

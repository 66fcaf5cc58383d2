"""Other people's text shows nothing but itself, wherever it is shown."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tamper
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kit.board.card import model_card
from kit.board.inspect import Inspection
from kit.board.layout import SubmissionPath
from kit.board.pull_request import PullRequest, comment
from kit.cli.main import cli, print_error
from kit.errors import KitError
from kit.text import HIDDEN, block, cell, markdown, plain
from kit.verify import verify_result
from kit.verify.html import page

# Erases the line, colours, sets a title, C1's CSI, turns text round, hides, breaks lines, ends.
HOSTILE = "\x1b[2K\x1b]0;x\x07\x9b31m\u202eevil\u2066\u200b\u2028\r\nCONSISTENT.\x00\U000e0041"

SERIES = {"training loss": [(0.0, 1.0)], "validation bits per byte": [(0.0, 1.0)]}


def hidden(text: str) -> list[str]:
    """What of `text` is not seen as it is; ends of lines are."""
    odd = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return [c for c in text if c != "\n" and unicodedata.category(c) in odd]


@given(st.text())
def test_no_way_to_show_text_lets_through_what_is_not_seen(text: str) -> None:
    for show in (plain, markdown, cell, block):
        assert not hidden(show(text, 80))
        assert len(plain(text, 80)) <= 80


def test_the_table_for_fast_paths_knows_every_control_and_direction_change() -> None:
    turning = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    for number in range(0x11000):
        character = chr(number)
        if (
            unicodedata.category(character) == "Cc"
            or unicodedata.bidirectional(character) in turning
        ):
            assert number in HIDDEN


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "|calc", "%x", "\t=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert cell(text, 80).startswith("'")


def poison(value: Any) -> Any:
    """Every free text of a document, with the hostile one at its end."""
    if isinstance(value, dict):
        return {key: poison(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poison(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) else value


def hostile_run(folder: Path) -> Path:
    """A run whose machine, notes, reasons and file names are all hostile, signed."""
    draft = tamper.gpu_run(fail_at=33)
    for found in draft.fingerprints():
        found["host"], found["class"] = poison(found["host"]), poison(found["class"])
        found["gpus"] = poison(found["gpus"])
    draft.of("run_stop")[0]["data"]["message"] += HOSTILE
    for event in draft.of("artifacts"):
        event["data"]["folder"] += HOSTILE
    draft.header()["software"] = poison(draft.header()["software"])
    draft.result_edits.append(lambda result: result["claims"].update(reason=HOSTILE))
    return draft.write(folder)


def test_a_hostile_result_is_shown_as_it_is_everywhere(tmp_path: Path) -> None:
    path = hostile_run(tmp_path / "run")
    report = verify_result(path)
    assert report.verdict == "refused"
    for options in ((), ("--all",), ("--json",)):
        done = CliRunner().invoke(cli, ["verify", str(path), *options])
        assert not hidden(done.output), sorted(set(hidden(done.output)))
        assert done.exit_code == 1
    assert not hidden(page(report))
    inspection = Inspection(SubmissionPath("2026", "a", "0" * 16), report, False, HOSTILE, "")
    request = PullRequest(1, "someone", "open", "0" * 40)
    assert not hidden(comment(request, inspection, [(HOSTILE, False, HOSTILE)]))


def test_a_model_card_shows_no_hidden_text(tmp_path: Path) -> None:
    path = hostile_run(tmp_path / "run")
    result = json.loads(path.read_text())
    assert not hidden(model_card(result, SERIES, f"a/{HOSTILE}", f"b/{HOSTILE}", "0" * 16))


def test_an_error_message_shows_no_hidden_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(KitError(f"two\nlines {HOSTILE}", hint=f"run\n  this {HOSTILE}", found=HOSTILE))
    said = capsys.readouterr().err
    assert not hidden(said)
    assert "two\nlines" in said and "\n  this" in said

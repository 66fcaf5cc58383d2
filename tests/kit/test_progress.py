"""What a person sees of a run: the live line moves, not oftener than it is read."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from kit.cli.progress import LiveDisplay, PlainDisplay, make_display
from kit.recipe import load_recipe


def step(number: int) -> dict[str, Any]:
    data = {"step": number, "loss": 2.5, "progress": number / 450, "dt_s": 0.1, "step_tokens": 2048}
    return {"ev": "step", "src": "trainer", "t_ns": 10**9 * number, "data": data}


def shown(every_s: float) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with LiveDisplay(load_recipe("smoke"), console, every_s) as display:
        start = {"stage": "pretrain", "attempt": 0}
        display.observe({"ev": "stage_start", "src": "sup", "t_ns": 0, "data": start})
        for number in range(20):
            display.observe(step(number))
        stop = {"stage": "pretrain", "status": "complete"}
        display.observe({"ev": "stage_stop", "src": "sup", "t_ns": 20 * 10**9, "data": stop})
    return screen.getvalue()


def test_the_live_line_tells_step_loss_speed_and_time_left() -> None:
    text = shown(0.0)
    assert all(f"step {number}/450" in text for number in range(1, 21))
    assert "loss 2.5000" in text and "20,480 tok/s" in text and "ETA" in text


def test_the_live_line_is_drawn_at_times_and_stages_at_once() -> None:
    text = shown(60.0)
    assert text.index("pretrain: started") < text.index("pretrain: complete after 0:20")
    assert [number for number in range(1, 21) if f"step {number}/450" in text] == [20]


def test_what_a_trainer_names_moves_no_cursor_and_wraps_no_line() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60)
    with LiveDisplay(load_recipe("smoke"), console, 0.0) as display:
        data = {"name": "\x1b[2J\x9b5Abpb\n\r" + "\u8a55" * 40, "value": 1.5}
        display.observe({"ev": "eval", "src": "trainer", "t_ns": 1, "data": data})
    drawn = screen.getvalue().split("\x1b[36m")[1].split("\x1b[0m")[0]
    assert "?[2J?5Abpb??" in drawn and drawn.endswith("…")
    assert cell_len(drawn) <= 59 and drawn.isprintable()
    assert screen.getvalue().endswith("\x1b[?25h"), "the cursor is seen again"


def test_lines_above_the_live_one_stand_alone() -> None:
    """As a terminal shows them: each erased line gone, the cursor at its begin."""
    text = shown(0.0)
    seen = [line.rsplit("\r\x1b[2K", 1)[-1] for line in text.split("\n")]
    assert seen[0].endswith("pretrain: started")
    assert seen[1] == "pretrain: complete after 0:20"


@pytest.mark.parametrize(("kind", "moves"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_erases_nothing_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, kind: str, moves: bool
) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    display = make_display(load_recipe("smoke"), quiet=False)
    assert isinstance(display, PlainDisplay) and isinstance(display, LiveDisplay) is moves

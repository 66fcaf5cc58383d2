"""What a person sees of a run: the live line moves, not oftener than it is read."""

from __future__ import annotations

import io
import os
import select
import termios
import threading
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from kit.cli import screen
from kit.cli.progress import LiveDisplay, PlainDisplay, make_display
from kit.cli.screen import Screen
from kit.events import Clocks, Data, Eval, Event, StageStart, StageStop, Step
from kit.recipe import load_recipe


def event(data: Data, t_ns: int) -> Event[Data]:
    src = "trainer" if data.by == "stage" else "sup"
    return Event(0, "", t_ns, 0, Clocks(0, None, None), src, data)


def step(number: int) -> Event[Data]:
    told = Step(number, 0, 2.5, progress=number / 450, dt_s=0.1, step_tokens=2048)
    return event(told, 10**9 * number)


def shown(every_s: float) -> str:
    shown_on = io.StringIO()
    console = Console(file=shown_on, force_terminal=True, width=120)
    with LiveDisplay(load_recipe("smoke"), console, every_s) as display:
        display.observe(event(StageStart("pretrain", 0), 0))
        for number in range(20):
            display.observe(step(number))
        display.observe(event(StageStop("pretrain", 0, "complete"), 20 * 10**9))
    return shown_on.getvalue()


def test_the_live_line_tells_step_loss_speed_and_time_left() -> None:
    text = shown(0.0)
    assert all(f"step {number}/450" in text for number in range(1, 21))
    assert "loss 2.5000" in text and "20,480 tok/s" in text and "ETA" in text


def test_the_live_line_is_drawn_at_times_and_stages_at_once() -> None:
    text = shown(60.0)
    assert text.index("pretrain: started") < text.index("pretrain: complete after 0:20")
    assert [number for number in range(1, 21) if f"step {number}/450" in text] == [20]


def test_what_a_trainer_names_moves_no_cursor_and_wraps_no_line() -> None:
    shown_on = io.StringIO()
    console = Console(file=shown_on, force_terminal=True, width=60)
    with LiveDisplay(load_recipe("smoke"), console, 0.0) as display:
        display.observe(event(Eval("\x1b[2J\x9b5Abpb\n\r" + "\u8a55" * 40, 1.5), 1))
    drawn = shown_on.getvalue().split("\x1b[36m")[1].split("\x1b[0m")[0]
    assert "?[2J?5Abpb??" in drawn and drawn.endswith("…")
    assert cell_len(drawn) <= 59 and drawn.isprintable()
    assert shown_on.getvalue().endswith("\x1b[?25h"), "the cursor is seen again"


def test_lines_above_the_live_one_stand_alone() -> None:
    """As a terminal shows them: each erased line gone, the cursor at its begin."""
    text = shown(0.0)
    seen = [line.rsplit("\r\x1b[2K", 1)[-1] for line in text.split("\n")]
    assert seen[0].endswith("pretrain: started")
    assert seen[1] == "pretrain: complete after 0:20"


@pytest.fixture(params=["opened anew", "as it is"])
def opening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's terminal cannot be opened again."""
    if request.param == "as it is":
        monkeypatch.setattr(screen, "_opened_anew", lambda file: None)


def test_a_paused_terminal_holds_up_no_run(opening: None) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        console = Console(file=Screen(terminal), width=90)
        display = LiveDisplay(load_recipe("smoke"), console, 0.0)
        display.observe(step(1))
        assert b"step 2" in read_all(master)
        termios.tcflow(terminal, termios.TCOOFF)  # what Ctrl-S does
        begin = event(StageStart("sft", 0), 0)
        begun = in_time(lambda: [display.observe(one) for one in (step(2), begin, step(3))])
        termios.tcflow(terminal, termios.TCOON)
        assert begun
        display.observe(step(4))
        seen = read_all(master)
        assert b"step 5" in seen and b"started" not in seen
        with display:
            display.observe(step(5))
        assert read_all(master).endswith(b"\x1b[?25h"), "the cursor is seen again"
    os.close(master)


def test_a_pager_that_is_not_read_on_holds_up_no_run(opening: None) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with os.fdopen(write_end, "w") as pipe:
        display = PlainDisplay(load_recipe("smoke"), Screen(pipe))
        full = in_time(lambda: [display.say("x" * 99) for _ in range(2000)])
        content = os.read(read_end, 2**20)
        while not full and os.read(read_end, 2**20):
            pass
        assert full and content.endswith(b"x\n") and 500 < len(content.splitlines()) < 2000
        display.say("again")
        assert os.read(read_end, 100) == b"again\n"
    os.close(read_end)


def read_all(descriptor: int) -> bytes:
    """What has been written; a terminal hands it on in pieces, and a moment later."""
    content = b""
    while select.select([descriptor], [], [], 0.2)[0]:
        content += os.read(descriptor, 4096)
    return content


def in_time(call: Callable[[], object]) -> bool:
    """Whether `call` ends; where it waits for somebody it never does."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


def test_a_line_stays_short_however_much_a_trainer_names() -> None:
    display = PlainDisplay(load_recipe("smoke"))
    for number in range(1000):
        display.reading.take(event(Eval(f"{number} " * 500, 1.5), 1))
    display.reading.take(step(7))
    assert len(display.reading.line()) < 1500


@pytest.mark.parametrize(("kind", "moves"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_erases_nothing_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, kind: str, moves: bool
) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    display = make_display(load_recipe("smoke"), quiet=False)
    assert isinstance(display, PlainDisplay) and isinstance(display, LiveDisplay) is moves

"""What a person sees of a run: the live line moves, not oftener than it is read."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from kit.cli.progress import LiveDisplay
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

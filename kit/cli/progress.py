"""What a person sees while a run goes on, and the table at its end.

On a terminal one live line tells stage, step, loss, speed, MFU and the time left; elsewhere plain
lines come at a readable pace. Both are fed by the events the log stores, nothing else. What would
have to wait, because a terminal is paused or a pager is not read on, is not shown: the run goes on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any, Protocol, Self, TextIO, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kit.cli.chance import measured_at_chance
from kit.cli.invocation import program, shown_path
from kit.cli.screen import Screen
from kit.core_eval.naming import score_name
from kit.events import Data, Eval, Event, Model, Progress, RunStart, StageStart, StageStop, Step
from kit.recipe import Recipe
from kit.speed import stage_speed
from kit.text import HIDDEN
from kit.timing import clock_text

PLAIN_EVERY_S = 10.0
LIVE_EVERY_S = 1.0
_ERASE = "\r\x1b[2K"
_CONTROLS = dict.fromkeys(HIDDEN, "?")
_MAX_PARTS, _MAX_PART = 12, 60  # of the line, and characters of one: the trainer may name many
SMOOTHING = 0.1  # weight of the newest step in the shown speed


class Display(Protocol):
    def begin(self, run: str, key_created: bool) -> None: ...
    def observe(self, event: Event[Data]) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def make_display(recipe: Recipe, *, quiet: bool) -> Display:
    """The display that fits: none, plain lines, or a live line on a terminal."""
    if quiet:
        return QuietDisplay()
    screen = Screen(sys.stderr)
    console = Console(file=cast(TextIO, screen))
    if screen.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(recipe, console)
    return PlainDisplay(recipe, screen)


class Reading:
    """The state of a run as its events tell it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stage = "preflight"
        self.run_start_ns: int | None = None
        self.stage_start_ns = 0
        self.now_ns = 0
        self.fraction: float | None = None
        self.parts: dict[str, str] = {}
        self._tokens_per_s: float | None = None
        self._flops_per_token: float | None = None
        self._flops: float | None = None  # the trainer's sum, where a token's cost changes
        self._peak_flops: float | None = None

    def take(self, event: Event[Data]) -> None:
        self.now_ns = event.t_ns
        match event.data:
            case RunStart():
                self.run_start_ns = event.t_ns
            case StageStart(stage=stage):
                self.stage, self.stage_start_ns = stage, event.t_ns
                self.fraction, self.parts, self._tokens_per_s = None, {}, None
            case Model() as model:
                self._flops_per_token = model.flops_per_token
                self._peak_flops = model.peak_flops
            case Step() as step:
                self._take_step(step)
            case Progress(done=done, total=total, unit=unit) if total:
                self.fraction = done / total
                self.parts["done"] = f"{done}/{total} {(unit or '')[:_MAX_PART]}".strip()
            case Eval(name=name, value=float() | int() as value):
                name = name[:_MAX_PART]
                if name in self.parts or len(self.parts) < _MAX_PARTS:
                    self.parts[name] = f"{name} {value:.4f}"

    def _take_step(self, data: Step) -> None:
        section = self.recipe.document.get(self.stage, {})
        total = None if section.get("hours") else section.get("num_steps") or None
        self.parts["step"] = f"step {data.step + 1}" + (f"/{total}" if total else "")
        self.parts["loss"] = f"loss {data.loss:.4f}"
        if data.progress is not None:
            self.fraction = data.progress
        duration, count = data.dt_s, data.step_tokens
        if duration and count:
            speed = count / duration
            old = self._tokens_per_s
            self._tokens_per_s = speed if old is None else old + SMOOTHING * (speed - old)
            self.parts["speed"] = f"{self._tokens_per_s:,.0f} tok/s"
            per_token, before, self._flops = self._flops_per_token, self._flops, data.flops
            if self._flops is not None and before is not None:
                per_token = (self._flops - before) / count
            if per_token and self._peak_flops and (self._flops is None or before is not None):
                mfu = self._tokens_per_s * per_token / self._peak_flops
                self.parts["mfu"] = f"MFU {mfu:.1%}"

    def line(self) -> str:
        """Stage, figures, time to the stage's end and time left of the budget."""
        parts = [f"{self.stage:<9}", *self.parts.values()]
        elapsed_s = (self.now_ns - self.stage_start_ns) / 1e9
        left_s = None
        if self.run_start_ns is not None:
            left_s = self.recipe.budget_s - (self.now_ns - self.run_start_ns) / 1e9
        if self.fraction and 0 < self.fraction < 1 and elapsed_s > 1:
            ahead_s = elapsed_s / self.fraction - elapsed_s
            late = left_s is not None and ahead_s > left_s
            parts.append(f"ETA {clock_text(ahead_s)}" + (", too late" if late else ""))
        if left_s is not None:
            parts.append(f"budget left {clock_text(left_s)}")
        # The trainer names some of them: no terminal may take a name for a command.
        return "  ".join(parts).translate(_CONTROLS)


class QuietDisplay:
    def begin(self, run: str, key_created: bool) -> None:
        return

    def observe(self, event: Event[Data]) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class PlainDisplay(QuietDisplay):
    """A line when a stage begins or ends, and one every ten seconds between."""

    def __init__(self, recipe: Recipe, screen: Screen | TextIO | None = None) -> None:
        self.reading = Reading(recipe)
        self._screen = screen or sys.stderr
        self._next = 0.0

    def begin(self, run: str, key_created: bool) -> None:
        self.say(f"run {run}")
        if key_created:
            self.say(
                "no signing key given (--key): made one, which links the runs of this work folder"
            )

    def say(self, text: str) -> None:
        self._screen.write(text + "\n")
        self._screen.flush()

    def observe(self, event: Event[Data]) -> None:
        self.reading.take(event)
        data = event.data
        if isinstance(data, StageStart):
            self.say(f"{data.stage}: started" + (" again" if data.attempt else ""))
            self._next = time.monotonic() + PLAIN_EVERY_S
        elif isinstance(data, StageStop):
            elapsed_s = (event.t_ns - self.reading.stage_start_ns) / 1e9
            self.say(f"{data.stage}: {data.status} after {clock_text(elapsed_s)}")
        elif event.src != "sup" and time.monotonic() >= self._next:
            self.say(self.reading.line())
            self._next = time.monotonic() + PLAIN_EVERY_S


class LiveDisplay(PlainDisplay):
    """The same lines, and one at the bottom that moves."""

    def __init__(
        self, recipe: Recipe, console: Console | None = None, every_s: float = LIVE_EVERY_S
    ) -> None:
        super().__init__(recipe)
        self._console = console or Console(stderr=True)
        self._next_line, self._every_s = 0.0, every_s

    def say(self, text: str) -> None:
        self._console.file.write(_ERASE)
        self._console.print(Text(text))

    def observe(self, event: Event[Data]) -> None:
        if isinstance(event.data, StageStart | StageStop):
            super().observe(event)
        else:
            self.reading.take(event)
            if time.monotonic() < self._next_line:
                return
        self._draw()
        self._next_line = time.monotonic() + self._every_s

    def _draw(self) -> None:
        line = Text(self.reading.line(), "cyan")
        width = self._console.width - 1
        self._console.file.write(_ERASE)
        self._console.print(line, end="", no_wrap=True, overflow="ellipsis", width=width)
        self._console.file.flush()

    def __enter__(self) -> Self:
        self._console.show_cursor(False)
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._console.file, Screen):
            self._console.file.wait()
        with contextlib.suppress(OSError):  # the terminal was closed during the run
            self._console.file.write(_ERASE)
            self._console.show_cursor(True)
            self._console.file.flush()


def print_summary(result: dict[str, Any], path: Path) -> None:
    """The table at the end of a run: stages and seconds, quality, speed, and what to do next."""
    console = Console()
    claims, timing, quality = result["claims"], result["timing"], result["quality"]
    title = f"{result['recipe']['name']}: {claims['status']}"
    table = Table(title=title, title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for part in timing["stages"]:
        seconds = "-" if part["elapsed_s"] is None else f"{part['elapsed_s']:.1f} s"
        note = "" if part["status"] == "complete" else f"  ({part['status']})"
        table.add_row(part["stage"], seconds + note)
    table.add_row("total", f"{timing['total_s']:.1f} s of {timing['budget_s']:.0f} s")
    if quality["val_bpb"]:
        first, last = quality["val_bpb"]["first"], quality["val_bpb"]["last"]
        table.add_row("val_bpb", f"{first:.4f} before, {last:.4f} after")
    if quality["core"]:
        core = quality["core"]
        low, high = core["interval"] or (None, None)
        between = "" if low is None else f", 95 % interval {low:.4f} to {high:.4f}"
        table.add_row(score_name(core), f"{core['value']:.4f}{between}")
        if (chance := measured_at_chance(core)) is not None:
            table.add_row("", chance)
        if core.get("answer_bpb") is not None:
            table.add_row("answer likelihood", f"{core['answer_bpb']:.4f} bits per byte")
    if quality["chat"] and quality["chat"]["value"] is not None:
        chat = quality["chat"]
        table.add_row("chat", f"{chat['value']:.4f}, turns ended {chat['ended_rate']:.0%}")
    if (speed := stage_speed(result)) is not None:
        median = result["training"]["tokens_per_s"]
        steps = "" if median is None else f"; median step {median:,.0f}"
        table.add_row("speed", f"{speed:,.0f} tokens/s over the whole stage{steps}")
    energy = result["energy"]
    if energy["kwh"] is not None:
        price = energy.get("cost")
        cost = "" if price is None else f", {price:.2f} {energy['currency']}"
        table.add_row("energy", f"{energy['kwh']:.3g} kWh{cost}")
    if not claims["ranked"]:
        table.add_row("not ranked", "; ".join(claims["why_not_ranked"]))
    console.print(table)
    run = shown_path(path.parent)
    lines = ["", f"result: {shown_path(path)}"]
    if claims["status"] == "complete":
        lines.append(f"next:   {program()} verify {run}")
        if quality["chat"]:
            lines.append(f"        {program()} chat {run}")
    else:
        lines += ["", claims["message"] or claims["reason"]]
        if timing["total_s"] < timing["budget_s"]:
            lines.append(f"resume: {program()} run --resume {run}")
        else:
            lines += [
                "The time budget is used up, so this run cannot be resumed. A new one ends in time",
                "with less to do (`--set`), or on a machine with less other work.",
            ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

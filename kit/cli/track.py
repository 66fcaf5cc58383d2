"""`n4090-kit track` and `watch`: a run's numbers for trackers, and a live view of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kit.track.sinks import KINDS

if TYPE_CHECKING:
    from rich.console import Group

    from kit.track.sinks import Sink
    from kit.track.view import RunView

RUN = click.Path(exists=True, file_okay=False, path_type=Path)
_REFRESH_S = 1.0
_FLUSH_S = 60.0  # a tracker may take to write its last numbers
_SPARKS = "▁▂▃▄▅▆▇█"


@click.command()
@click.argument("run", type=RUN)
@click.option(
    "--to", "kind", type=click.Choice(KINDS), default="csv", show_default=True, help="The tracker."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder [RUN/..].")
@click.option("--follow", is_flag=True, help="Keep sending new values until the run ends.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
def track(run: Path, kind: str, out: Path | None, follow: bool, until_stdin_closes: bool) -> None:
    """Give the numbers of RUN to a tracker, from its log: after the fact, or while it runs.

    Nothing is sent over the network: Trackio keeps a local file, wandb writes an offline run that
    `wandb sync` uploads.
    """
    from kit.errors import PrerequisiteError
    from kit.track.scalars import Reader
    from kit.track.sinks import open_sink
    from kit.track.tail import follow as records

    run = run.resolve()
    reader, count = Reader(), 0
    stop = _parent_gone() if until_stdin_closes else lambda: False
    with contextlib.ExitStack() as stack:
        sink: Sink | None = None
        for record in records(run, wait=follow, should_stop=stop):
            scalars = reader.take(record)
            if sink is None and reader.config:
                sink = open_sink(kind, run, out or run.parent, reader.config)
                stack.callback(sink.close)
            if sink is not None and scalars is not None:
                sink.put(scalars)
                count += len(scalars.values)
    if sink is None:
        raise PrerequisiteError(
            f"{run} holds no event log", hint="Name a run folder, such as runs/ID."
        )
    click.echo(f"{count:,} numbers of {run.name}: {sink.place}", err=True)


@contextlib.contextmanager
def tracking(kind: str | None, run: Path) -> Iterator[None]:
    """Runs `track --follow` beside a run, as a process of the lowest priority."""
    if kind is None:
        yield
        return
    command = ["nice", "-n", "19", sys.executable, "-m", "kit.cli.main", "track", str(run)]
    run.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [*command, "--to", kind, "--follow", "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the run; the tracker ends after it
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_FLUSH_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            click.echo("the tracker did not end; `n4090-kit track RUN` repeats it", err=True)


def _parent_gone() -> Callable[[], bool]:
    """Whether the run that this process follows has ended: its end of our stdin is closed."""
    gone = threading.Event()

    def read() -> None:
        # Not through sys.stdin: its lock would be held while the interpreter ends.
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        gone.set()

    threading.Thread(target=read, daemon=True).start()
    return gone.is_set


@click.command()
@click.argument("run", type=RUN)
@click.option("--web", is_flag=True, help="As a page for the browser.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --web: listen here.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="With --web [a free one].")
@click.option("--once", is_flag=True, help="Show the state once and leave.")
def watch(run: Path, web: bool, host: str, port: int, once: bool) -> None:
    """Watch RUN: stages, loss, speed, power, memory, and the time left with its error.

    Works over ssh in the terminal; for the page of a machine elsewhere: ssh -L PORT:localhost:PORT.
    """
    from kit.errors import PrerequisiteError
    from kit.recipe import parse_recipe, read_recipe_text
    from kit.track.tail import RunTail
    from kit.track.view import view_of

    path = run / "recipe.toml"
    if not path.is_file():
        raise PrerequisiteError(f"{run} is not a run folder", hint="Name a folder under runs/.")
    view = view_of(parse_recipe(read_recipe_text(path), folder=run, label="recipe.toml").document)
    tail, lock = RunTail(run), threading.Lock()

    def refresh() -> RunView:
        for record in tail.new():
            view.take(record)
        return view

    def state() -> dict[str, Any]:
        with lock:
            return refresh().to_json()

    if web:
        _serve(host, port, state)
    else:
        _show(refresh, once)


def _serve(host: str, port: int, state: Any) -> None:
    from kit.track.page import WatchServer

    with WatchServer(host, port, state) as server:
        if host not in ("127.0.0.1", "localhost", "::1"):
            click.echo("warning: anyone who reaches this address sees the run", err=True)
        click.echo(f"{server.url}  (Ctrl-C closes the page; the run continues)")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def _show(refresh: Any, once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once or not console.is_terminal:
        console.print(screen(refresh()))
        return
    with Live(console=console, auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            view = refresh()
            live.update(screen(view), refresh=True)
            if view.status not in ("preflight", "running"):
                return
            time.sleep(_REFRESH_S)


def screen(view: RunView) -> Group:
    """The state of a run as one screen of 80 columns."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from kit.text import plain
    from kit.timing import clock_text

    stages = Table(box=None, pad_edge=False, show_header=False)
    for stage in view.stages:
        share = 1.0 if stage.status == "complete" else stage.fraction or 0.0
        note = f"{share:.0%}" if stage.status == "running" else stage.status
        seconds = clock_text(stage.seconds) if stage.seconds else ""
        stages.add_row(stage.name, ProgressBar(1.0, share, width=40), note, seconds)
    figures = Table(box=None, pad_edge=False, show_header=False)
    figures.add_column(style="dim")
    left = view.time_left()
    expected = view.expected() if view.status == "running" else None
    rows = [
        ("budget", f"{clock_text(view.elapsed_s)} of {clock_text(view.budget_s)}"),
        ("left in this stage", left and f"{clock_text(left[0])} ± {clock_text(left[1])}"),
        ("loss", view.loss and f"{view.loss[-1][1]:.4f}  {sparks([y for _, y in view.loss])}"),
        ("loss at the end", expected and f"about {expected[-1][1]:.3f}, by the curve so far"),
        *((plain(name, 40), f"{value:.4f}") for name, value in view.evals.items()),
        ("tokens a second", view.tokens_per_s and f"{view.tokens_per_s:,.0f}"),
        ("power", view.power_w and f"{view.power_w:.0f} W"),
        (f"{view.memory_of} memory", view.memory_bytes and f"{view.memory_bytes / 2**30:.1f} GiB"),
    ]
    for name, value in rows:
        if value:
            figures.add_row(name, value)
    return Group(Text(f"{plain(view.run, 70)}: {plain(view.status, 20)}"), stages, figures)


def sparks(values: list[float], width: int = 40) -> str:
    """A curve in one line of block characters, high values high."""
    stride = max(1, -(-len(values) // width))
    shown = values[::stride]
    low, high = min(shown), max(shown)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((value - low) * scale)] for value in shown)

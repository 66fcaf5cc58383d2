"""`n4090-kit prepare`: everything a recipe reads, fetched and checked before a clock runs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from kit.prepare.dataset_lock import Lock
    from kit.prepare.fetch import Fetch
    from kit.prepare.job import Need
    from kit.recipe import Recipe

DIRECTORY = click.Path(file_okay=False, path_type=Path)
PLAIN_EVERY_S = 10.0


@click.command()
@click.option(
    "--recipe", "-r", "recipe_name", required=True, help="The recipe's name or TOML file."
)
@click.option(
    "--work", type=DIRECTORY, envvar="N4090_WORK", default=Path(), help="Work folder [.]."
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["pretrain", "sft", "chat_eval", "core"]),
    help="Only this part; repeatable. `--only core` brings the CORE bundle alone.",
)
@click.option(
    "--shards", type=click.IntRange(1), help="Training shards, instead of the recipe's number."
)
@click.option(
    "--mirror",
    metavar="URL|DIR",
    help="A server that speaks like the Hub, or a folder with the same files.",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask before fetching.")
@click.option(
    "--check", "only_check", is_flag=True, help="Only compare what is there with its lock."
)
def prepare(
    recipe_name: str,
    work: Path,
    only: tuple[str, ...],
    shards: int | None,
    mirror: str | None,
    yes: bool,
    only_check: bool,
) -> None:
    """Fetch what a recipe reads, off the clock.

    States the download size before it begins, and resumes an interrupted download. A second run
    compares every file with dataset.lock.json and fetches nothing.
    """
    from kit.errors import PrerequisiteError
    from kit.prepare import fetch as preparing
    from kit.prepare.inputs import prepared_folder
    from kit.prepare.job import Settings
    from kit.recipe import load_recipe
    from kit.run.plan import make_stories

    recipe = load_recipe(recipe_name)
    work = work.resolve()
    kind = recipe.section("data")["kind"]
    parts = [part for part in preparing.parts_of(recipe) if not only or part in only]
    if only and not parts:
        raise PrerequisiteError(
            f"recipe `{recipe.name}` reads no {' or '.join(only)} that `prepare` could bring",
            hint=f"It reads: {', '.join(preparing.parts_of(recipe)) or 'nothing of that kind'}.",
        )
    if kind == "stories":
        folder = prepared_folder(work, recipe)
        if not only_check:
            make_stories(recipe, work, len(os.sched_getaffinity(0)))
        elif not (folder / "pretrain").is_dir():
            raise PrerequisiteError(f"{folder} is not made yet", hint="Run it without --check.")
        click.echo(f"made by the trainer: {folder}")
        return
    if only_check:
        lock = preparing.check(recipe, work, parts)
    else:
        with make_watcher() as watcher:
            fetched = preparing.prepare(
                recipe,
                work,
                watcher,
                Settings(
                    mirror=_mirror(mirror),
                    shards=shards,
                    parts=parts,
                    agree=_asking(yes, watcher),
                ),
            )
        lock = preparing.check(recipe, work, [])
        if not fetched and parts:
            click.echo("Everything is there and as its lock says; nothing was fetched.", err=True)
    _report(recipe, work, lock, parts)
    if kind == "folder" and not only:
        raise PrerequisiteError(
            f"recipe `{recipe.name}` trains on a folder of yours, which `prepare` cannot fetch",
            hint=f"n4090-kit run --recipe {recipe_name} --data DIR",
        )


def fetch_for_run(*, quiet: bool) -> Fetch:
    """What `run` calls when inputs are missing; it does not ask."""

    def fetch(recipe: Recipe, work: Path, parts: Sequence[str]) -> None:
        from kit.errors import PrerequisiteError
        from kit.image import CODE_TREE_VARIABLE
        from kit.prepare import fetch as preparing
        from kit.prepare.inputs import GIVEN_HINT
        from kit.prepare.job import Settings

        def tell(need: Need) -> bool:
            if not quiet:
                click.echo(f"{', '.join(parts)} missing. {say_need(need)}", err=True)
            return True

        try:
            with make_watcher(quiet=quiet) as watcher:
                preparing.prepare(recipe, work, watcher, Settings(parts=parts, agree=tell))
        except PrerequisiteError as error:
            first = f"Run `n4090-kit prepare --recipe {recipe.name}` first, with network"
            if CODE_TREE_VARIABLE in os.environ:
                first += (
                    ", on the same volume: "
                    "docker run --rm -v n4090:/work n4090-kit prepare "
                    f"--recipe {recipe.name} --yes"
                )
            raise PrerequisiteError(
                f"recipe `{recipe.name}` lacks {', '.join(parts)}: {error.message}",
                hint=f"{first}. {error.hint or ''}\n{GIVEN_HINT}",
                **error.facts,
            ) from error

    return fetch


def say_need(need: Need) -> str:
    """What it takes, in one or two sentences; no time is promised before a rate was measured."""
    there = f", {_size(need.here_bytes)} of them already here" if need.here_bytes else ""
    return (
        f"To fetch: {need.files} files, {_size(need.total_bytes)}{there}, from {need.source}.\n"
        f"Disk: {_size(need.disk_bytes)} needed, {_size(need.free_bytes)} free. "
        "Time: unknown yet; shown once data flows."
    )


def _asking(yes: bool, watcher: _Watching) -> Callable[[Need], bool]:
    def agree(need: Need) -> bool:
        click.echo(say_need(need), err=True)
        if yes or not sys.stdin.isatty() or need.disk_bytes > need.free_bytes:
            return True
        with watcher.paused():
            return click.confirm("Begin?", default=True, err=True)

    return agree


def _mirror(mirror: str | None) -> str | Path | None:
    if mirror is None:
        return None
    if mirror.startswith(("http://", "https://")):
        # huggingface_hub asks its default endpoint for small things of its own, too: not here.
        os.environ["HF_ENDPOINT"] = mirror.rstrip("/")
        return mirror.rstrip("/")
    return Path(mirror).resolve()


_WRITTEN = {
    "": "not stated whether a model wrote it",
    "none": "natural text",
    "part": "a model wrote part of it",
    "all": "a model wrote it",
}


def _report(recipe: Recipe, work: Path, lock: Lock, parts: Sequence[str]) -> None:
    """What lies where, on stdout."""
    from kit.conversations import conversation_sources
    from kit.prepare.inputs import prepared_folder
    from kit.text_mix import text_mix

    folder, data = prepared_folder(work, recipe), recipe.section("data")
    written: dict[str, str] = {}
    if data["kind"] == "hub":
        written = {item.repository: item.synthetic for item in conversation_sources(data["sft"])}
        written |= {item.repository: item.synthetic for item in text_mix(data).sources}
    for name, part in lock.items():
        size = sum(file.bytes or 0 for file in part.files)
        rows = sum(file.rows or 0 for file in part.files)
        click.echo(
            f"{name}: {folder / name} ({len(part.files)} files, {_size(size)}, {rows:,} rows)"
        )
        for repository in part.repositories:
            commit = repository.commit or f"no commit ({repository.commit_reason})"
            licence = repository.licence or f"no licence stated ({repository.licence_reason})"
            line = f"  {repository.repository} at {commit}, {licence}"
            if name != "chat_eval":
                line += f"; {_WRITTEN[written.get(repository.repository, '')]}"
            click.echo(line)
        if name == "pretrain":
            click.echo(f'  data.digest = "{_data_digest(work, folder)}"')
        for file in part.files:
            for note, count in file.notes.items():
                click.echo(f"  {Path(file.path).name}: {count:,} {note}")
    if "core" in parts:
        click.echo(f"core: {work / 'core'} (all files as the kit knows them)")


def _data_digest(work: Path, folder: Path) -> str:
    """What a recipe names to be held to these shards."""
    from kit.prepare.inputs import Inputs, describe

    inputs = describe(Inputs(data=folder / "pretrain"), work / "cache" / "digests.json")
    return str(inputs["data"]["digest"])


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    size, units = count / 1024, ["KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}"


def make_watcher(*, quiet: bool = False) -> _Watching:
    """A progress bar on a terminal, a line now and then elsewhere, or nothing."""
    if quiet:
        return _Watching()
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Watching:
    """Watches without a word; the base of those that speak."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the terminal to a question."""
        yield

    def begin(self, total_bytes: int, what: str) -> None:
        return

    def advance(self, count: int) -> None:
        return

    def note(self, text: str) -> None:
        return

    def end(self) -> None:
        return


class _Lines(_Watching):
    """Plain lines on stderr, at a readable pace."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what = ""
        self._done = self._total = 0
        self._begun_s = self._said_s = time.monotonic()

    def begin(self, total_bytes: int, what: str) -> None:
        self._what, self._done, self._total = what, 0, total_bytes
        self._begun_s = self._said_s = time.monotonic()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            now_s = time.monotonic()
            if now_s - self._said_s < PLAIN_EVERY_S:
                return
            self._said_s = now_s
            rate = max(self._done, 1) / (now_s - self._begun_s)
            line = f"{self._what}: {_size(self._done)}, {_size(int(rate))}/s"
            if self._total:
                left_s = max(0, self._total - self._done) / rate
                line += f", {left_s / 60:.0f} min left of {_size(self._total)}"
            click.echo(line, err=True)

    def note(self, text: str) -> None:
        click.echo(text, err=True)


class _Bar(_Watching):
    """One bar with size, rate and the time left by the rate measured."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=60,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def begin(self, total_bytes: int, what: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=total_bytes or None)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, count)

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

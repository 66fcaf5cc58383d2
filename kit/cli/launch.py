"""`n4090-kit launch`: another command of the kit, in the pinned container under strict flags."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from kit.errors import LaunchError
from kit.files import has_ending

DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Everything after the options is a command of the kit, as inside: "
    "n4090-kit launch --print run --recipe reference",
)
@click.option("--image", default="n4090-kit", show_default=True, help="Name, id or digest.")
@click.option("--volume", default="n4090", show_default=True, help="Volume for the work folder.")
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), help="Folder instead of a volume."
)
@click.option("--data", type=DIRECTORY, help="Folder of parquet shards, mounted read-only.")
@click.option("--sft", type=DIRECTORY, help="Folder of conversations, mounted read-only.")
@click.option("--chat-eval", type=DIRECTORY, help="Folder of questions, mounted read-only.")
@click.option("--core", type=DIRECTORY, help="Folder of the CORE bundle, mounted read-only.")
@click.option("--gpu", help="One GPU by number or UUID, or none [0 where the recipe needs one].")
@click.option("--memory", help="Memory limit, such as 24g.")
@click.option(
    "--print",
    "only_print",
    is_flag=True,
    help="Print the docker run line; start nothing. Works without a running engine.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def launch(
    image: str,
    volume: str,
    work: Path | None,
    data: Path | None,
    sft: Path | None,
    chat_eval: Path | None,
    core: Path | None,
    gpu: str | None,
    memory: str | None,
    only_print: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND of the kit in the pinned container.

    No network (only `prepare` has it), a read-only root, inputs read-only, one GPU. Ctrl-C and
    SIGTERM reach the run, which ends with a signed partial result.
    """
    from kit import launcher

    mounts, options = launcher.input_mounts(
        [("data", data), ("sft", sft), ("chat-eval", chat_eval), ("core", core)]
    )
    gpus = launcher.one_gpu(gpu) if gpu is not None else ("0" if _needs_gpu(command) else None)
    command, recipe = _mount_recipe(command)
    mounts += recipe
    client = _connect(needed=not only_print)
    reference, digest = launcher.find_image(client, image) if client else (image, None)
    container = launcher.Container(
        image=reference,
        command=(*command, *options),
        work=volume if work is None else str(work.resolve()),
        digest=digest,
        inputs=tuple(mounts),
        gpu=gpus,
        network="bridge" if command[0] == "prepare" else "none",
        memory=memory,
        tty=sys.stdout.isatty() and sys.stdin.isatty(),
        podman=client is not None and launcher.is_podman(client),
    )
    launcher.check_paths(container)
    if only_print or client is None:
        click.echo(launcher.shell_line(container))
        return
    raise SystemExit(launcher.run(client, container, forward=_forward_signals))


def _connect(*, needed: bool) -> Any | None:
    """A client of the container engine; None, with a note, where a printed line can do without."""
    from kit import launcher

    try:
        return launcher.connect()
    except LaunchError as error:
        if needed:
            raise
        click.echo(
            f"note: {error.message}. The line names the image as given: its digest is not known, "
            "so a run started with this line cannot state the digest in its result.",
            err=True,
        )
        return None


def _mount_recipe(command: tuple[str, ...]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The command with a recipe file of this machine named as it is inside, and its mount."""
    words = list(command)
    for place, option in enumerate(words[:-1]):
        path = Path(words[place + 1])
        if option in ("--recipe", "-r") and has_ending(path, ".toml") and path.is_file():
            words[place + 1] = f"/inputs/recipe/{path.name}"
            return tuple(words), [(str(path.resolve().parent), "/inputs/recipe")]
    return command, []


def _needs_gpu(command: tuple[str, ...]) -> bool:
    """Whether this is a run of a recipe that is not for the CPU."""
    from kit.errors import KitError
    from kit.recipe import load_recipe

    if command[0] != "run" or ("--device", "cpu") in pairwise(command):
        return False
    for option, value in pairwise(command):
        if option in ("--recipe", "-r"):
            try:
                return load_recipe(value).track != "smoke"
            except KitError:
                return True  # a path inside the container
    return True


@contextlib.contextmanager
def _forward_signals(send: Callable[[int], None]) -> Iterator[None]:
    previous = {
        number: signal.signal(number, lambda received, _: send(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

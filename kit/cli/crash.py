"""The last net: an exception that nothing expected becomes one sentence and a file to report.

A traceback on the screen tells a user nothing, and scrolls away what went before.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

import kit
from kit.errors import KitError, PrerequisiteError, SchemaError

_SECRET = ("--token", "--password", "--key-passphrase")


def as_kit_error(error: BaseException) -> KitError:
    """What to print for an exception that reached `main`.

    Memory and file handles are the machine's to give. All else is a fault of the kit: its traceback
    goes to a file, which the message names.
    """
    if isinstance(error, MemoryError):
        return PrerequisiteError(
            "there is not enough memory", hint="Close other programs, or use a smaller input."
        )
    if isinstance(error, RecursionError) and _in_module(error, "json"):
        return SchemaError(
            "a JSON input file is nested too deeply to be read",
            hint="Check the JSON files that the command reads: valid ones have about ten levels.",
        )
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from"):
        place = str(error).removeprefix("Symlink loop from ").strip("'")
        return SchemaError(f"{place} is a link that leads to itself", hint="Name another path.")
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    kind = type(error).__name__
    written = _write(_report(error))
    return KitError(
        f"n4090-kit has a fault: {kind}{f': {said}' if said else ''}",
        hint="This should not happen, whatever the input. Report it as an issue of the project"
        + (f" and attach {written}" if written else "")
        + "; read the file first, it names paths of this machine."
        if written
        else "This should not happen, whatever the input. Report it as an issue of the project.",
        **({"traceback": str(written)} if written else {}),
    )


def _in_module(error: BaseException, name: str) -> bool:
    """Whether the exception was raised within the standard module `name`."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").split(".")[0] == name


def tolerant_streams() -> None:
    """Lets stdout and stderr replace what the terminal's encoding cannot show (ASCII locales)."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            if stream.errors in ("strict", "surrogateescape"):  # the latter in the C locale
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def _report(error: BaseException) -> str:
    lines = [
        f"n4090-kit {kit.__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"arguments: {_arguments()}",
        "",
        *traceback.format_exception(error),
    ]
    return "\n".join(lines)


def _arguments() -> list[str]:
    """The command's arguments without secrets."""
    shown, hide = [], False
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        shown.append("…" if hide else f"{name}=…" if value and name in _SECRET else argument)
        hide = argument in _SECRET
    return shown


def _write(text: str) -> Path | None:
    """The file with `text`, in the temporary or else the current folder; None if none takes it."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"n4090-kit-fault-{stamp}-{os.getpid()}.txt"
    with contextlib.suppress(OSError):
        folders = [tempfile.gettempdir(), "."]
        for folder in folders:
            path = Path(folder) / name
            with contextlib.suppress(OSError):
                # For this user alone, and never through a link that stands there.
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                    file.write(text)
                return path
    return None

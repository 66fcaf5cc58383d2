"""Command lines in messages, as they work when typed in this shell and folder."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

NAME = "n4090-kit"
# The program at the start of a command line: quoted in a sentence, or after a label. Not where the
# line is for another machine.
_LINE = re.compile(rf"(?P<before>`|: |^|\n\s*){NAME} (?=[a-z-])(?![^`]*` on an?)")


@cache
def program() -> str:
    """What starts this program: its name if PATH finds it, else its path, else a Python line."""
    own = Path(sys.executable).parent / NAME
    found = shutil.which(NAME)
    if found is not None and (not own.is_file() or Path(found).resolve() == own.resolve()):
        return NAME
    if own.is_file():
        return shown_path(own)
    return f"{shlex.quote(sys.executable)} -m kit.cli.main"


def runnable(text: str) -> str:
    """`text`, each command line of the kit in it beginning with `program()`."""
    return _LINE.sub(lambda match: f"{match['before']}{program()} ", text)


def shown_path(path: Path) -> str:
    """`path` as a shell takes it: relative to the current folder if it lies below."""
    try:
        return shlex.quote(str(path.relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(path))

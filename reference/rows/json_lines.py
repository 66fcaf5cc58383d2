"""JSON lines of conversations and questions: which files, and what each line holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference.errors import TrainerError
from reference.rows.reader import BOM, files_ending

ENDING = ".jsonl"


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The JSONL files of `folder` by name without ending, in the order of names.

    Raises:
        TrainerError: Two files have the same stem, so that one name would mean both.
    """
    found: dict[str, Path] = {}
    for path in files_ending(folder, ENDING):
        if path.stem in found:
            raise TrainerError(
                "bad_input",
                f"{folder} holds both {found[path.stem].name} and {path.name}",
                "Recipes name these files without their ending: rename one of them.",
            )
        found[path.stem] = path
    return found


def json_lines(path: Path, hint: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line; blank ones are skipped.

    A byte-order mark, CRLF line ends, and the NUL bytes that a power cut leaves at the end of a
    file or between two lines are no part of a line.

    Raises:
        TrainerError: A line is not JSON; the message names file and line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(BOM)
                line = line.strip(b"\0\r\n\t ")
                if not line:
                    continue
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    message = f"{path}, line {number}: {error}"
                    raise TrainerError("bad_input", message, hint) from error
    except OSError as error:
        raise TrainerError(
            "bad_input", f"{path} cannot be read: {error.strerror or error}", hint
        ) from error

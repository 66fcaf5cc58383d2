"""How long each board's chain was when this work folder last saw it, so that a dropped tail shows.

A chain proves that its lines follow each other, not that its last ones are there. Whoever can
replace the file can cut off decisions. The length and digest seen here before are the anchor: a
chain that does not continue it is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kit.errors import SchemaError
from kit.files import write_json
from kit.trust.digest import sha256_bytes


class SeenChains:
    """The chains seen, in one JSON file: board -> {"count", "head"}."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self._seen = json.loads(path.read_bytes())

    def check(self, board: str, events: Path) -> None:
        """Refuses a chain that does not continue the one that was seen.

        Raises:
            SchemaError: Lines that were there are gone or are others.
        """
        seen = self._seen.get(board)
        if seen is None:
            return
        found = _digest_of_line(events, seen["count"])
        if found != seen["head"]:
            raise SchemaError(
                "board-events.jsonl does not continue the chain that was seen here before",
                hint="restore it from the repository's history; if the board was reset on "
                f"purpose, remove its entry from {self._path}",
                seen=f"{seen['count']} lines, {seen['head']}",
                found=found or "fewer lines",
            )

    def note(self, board: str, count: int, head: str) -> None:
        """Remembers the chain as it is now."""
        self._seen[board] = {"count": count, "head": head}
        write_json(self._path, self._seen)


def _digest_of_line(path: Path, number: int) -> str | None:
    """The digest of line `number`, counted from 1; None when there are fewer."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        for place, line in enumerate(file, start=1):
            if place == number:
                return sha256_bytes(line.rstrip(b"\n"))
    return None

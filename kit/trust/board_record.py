"""What a board's folder says about keys and challenges.

`verify` reads it where a result lies inside a board, and `board publish` where it judges one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kit.trust.chain import scan_chain
from kit.trust.keys import REVOKED_NAME

EVENTS_KIND = "n4090-kit board events"  # names the chain of board-events.jsonl
MAX_EVENTS_BYTES = 4 * 2**30
_LEVELS = 5  # submissions/<year>/<submitter>/<id>/result.json


@dataclass(frozen=True)
class BoardRecord:
    """The board in the folder `root`."""

    root: Path

    @property
    def revoked(self) -> Path | None:
        """The board's list of revoked keys; None when it has none."""
        path = self.root / REVOKED_NAME
        return path if path.is_file() else None

    def written_at(self, digest: str) -> str | None:
        """When the board wrote the line of its log with this digest; None when it has no such line.

        Raises:
            OSError: The log cannot be read.
        """
        found: str | None = None
        at: str | None = None  # the date of the line before; the first line has none

        def visit(event: dict[str, object]) -> None:
            nonlocal found, at
            if event.get("prev") == digest and at is not None:
                found = at
            at = str(event.get("at"))

        path = self.root / "board-events.jsonl"
        chain = scan_chain(path, EVENTS_KIND, visit, max_bytes=MAX_EVENTS_BYTES)
        return at if chain.head == digest and chain.count else found


def board_around(result: Path) -> BoardRecord | None:
    """The board whose folder `result` lies in; None when it lies in none."""
    for folder in list(result.absolute().parents)[:_LEVELS]:
        if (folder / "board.json").is_file():
            return BoardRecord(folder)
    return None

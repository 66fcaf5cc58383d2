"""The digest that a board's log ends with: text that nobody could know before it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kit.board.layout import BOARD_FOLDER, Layout, board_root
from kit.errors import PrerequisiteError
from kit.trust.board_record import EVENTS_KIND, MAX_EVENTS_BYTES
from kit.trust.chain import scan_chain
from kit.trust.digest import sha256_bytes

_MAX_DOWNLOAD_BYTES = 256 * 2**20


def board_head(board: str, tell: Callable[[str], None] = lambda text: None) -> str:
    """The digest of the last line of the log of `board`: a folder, or a dataset on the Hub.

    Raises:
        PrerequisiteError: It has no log yet, or cannot be reached.
    """
    folder = Path(board)
    if folder.is_dir():
        path = Layout(board_root(folder)).events
        if path.is_file():
            chain = scan_chain(path, EVENTS_KIND, lambda _: None, max_bytes=MAX_EVENTS_BYTES)
            if chain.count and not chain.problems:
                return chain.head
    else:
        from kit.board.hub import Hub, client

        hub = Hub(client(), tell=tell)
        commit = hub.head(board, "dataset")
        name = f"{BOARD_FOLDER}/board-events.jsonl"
        if hub.there(board, "dataset", [name], commit):
            lines = hub.read(board, "dataset", name, commit, _MAX_DOWNLOAD_BYTES).splitlines()
            if lines:
                return sha256_bytes(lines[-1])
    raise PrerequisiteError(
        f"{board} has no log whose end could be the challenge",
        hint="Name a board that `n4090-kit board publish` has written, or leave --board out.",
    )

"""Reading a board: its table, its decisions, and what lies behind each row.

Nothing of a submission is believed here beyond its form: `publish` judged it before it became a
row, and whoever shows its text escapes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kit.board.layout import (
    MAX_DOCUMENT_BYTES,
    TEXT_LIMITS,
    Layout,
    Settings,
    SubmissionPath,
    board_root,
    documents_in,
    refuse_newer,
)
from kit.errors import PrerequisiteError, SchemaError
from kit.result_form import Result
from kit.run_log import RunLog
from kit.trust.board_record import EVENTS_KIND
from kit.trust.canonical import parse_strict
from kit.trust.chain import read_chain

Document = dict[str, Any]


@dataclass(frozen=True)
class Submission:
    """One submission's folder."""

    path: SubmissionPath
    folder: Path

    @cached_property
    def result(self) -> Document:
        """result.json."""
        return self._json("result.json")

    @cached_property
    def pin(self) -> Document:
        """submission.json: the submitter, and where the weights lie."""
        return self._json("submission.json")

    def evaluation(self, name: str) -> Document | None:
        """eval/core.json or eval/chat.json (`name`: core, chat); None when it is not there."""
        relative = f"eval/{name}.json"
        return self._json(relative) if (self.folder / relative).is_file() else None

    @cached_property
    def log(self) -> RunLog:
        """The run's log. Raises `SchemaError` if events.jsonl is not one."""
        _open(self.folder / "events.jsonl").close()
        return RunLog.read(self.folder)

    def _json(self, relative: str) -> Document:
        return read_document(self.folder / relative, TEXT_LIMITS[relative])


@dataclass(frozen=True)
class Board:
    """A board as it lies in its folder.

    Attributes:
        rows: The table in its order, as schema/leaderboard-row.schema.json has them.
        events: The decisions, oldest first, as schema/board-event.schema.json has them.
        head: Digest of the last event's line; the table was derived from the events up to it.
    """

    layout: Layout
    settings: Settings
    rows: list[Document]
    events: list[Document]
    head: str

    def row(self, name: str) -> Document:
        """The row with this id, unambiguous start of an id (4 digits or more), or path.

        Raises:
            PrerequisiteError: There is none, or more than one.
        """
        wanted = name.strip("/")
        found = [row for row in self.rows if wanted in (row["id"], row["path"])]
        if not found and len(wanted) >= 4:
            found = [row for row in self.rows if row["id"].startswith(wanted)]
        if len(found) == 1:
            return found[0]
        raise PrerequisiteError(
            f"`{wanted[:80]}` {'fits several rows' if found else 'is not a row'} of this board",
            hint="give an id, the start of one, or a path such as 2026/NAME/ID",
        )

    def submission(self, row: Document) -> Submission:
        """The folder behind a row; references have none."""
        path = SubmissionPath.parse(row["path"] or "")
        if path is None:
            raise PrerequisiteError(f"row {row['id']} is a cited reference: it has no submission")
        return Submission(path, self.layout.submission(path))

    def events_of(self, row_id: str) -> list[Document]:
        """The decisions about a row, oldest first."""
        return [event for event in self.events if event["id"] == row_id]

    def reproductions_of(self, row_id: str) -> list[Document]:
        """Signed reproduction statements about a row, by date."""
        return self._documents(self.layout.reproductions / row_id)

    def statements_of(self, row_id: str) -> list[Document]:
        """Signed disputes, withdrawals, rescores and resolutions about a row, by date."""
        return self._documents(self.layout.statements / row_id)

    def _documents(self, folder: Path) -> list[Document]:
        accepted = {
            event["data"]["path"]
            for event in self.events
            if event["ev"] in ("reproduction", "statement")
            and event["data"]["decision"] == "accepted"
        }
        found = [
            read_document(path, MAX_DOCUMENT_BYTES)
            for path in documents_in(folder)
            if path.relative_to(self.layout.root).as_posix() in accepted
        ]
        return sorted(found, key=lambda document: (document["at"], document["by"]["name"]))


def load_board(path: Path) -> Board:
    """The board in the folder `path` (or in its `submissions/`).

    Raises:
        PrerequisiteError: There is no table yet.
        SchemaError: A file of the board is damaged, or newer than this kit.
    """
    layout = Layout(board_root(path))
    settings = Settings.read(layout)
    if not layout.leaderboard.exists():
        raise PrerequisiteError(
            f"`{path}` holds no table",
            hint="write it with `n4090-kit board publish --board DIR`",
        )
    rows = [
        parse_strict(line, name=f"leaderboard.jsonl, line {number}")
        for number, line in enumerate(layout.leaderboard.read_bytes().splitlines(), start=1)
    ]
    for row in rows[:1]:
        refuse_newer(row, "leaderboard.jsonl")
    chain = read_chain(layout.events, EVENTS_KIND)
    if chain.problems:
        problem = chain.problems[0]
        raise SchemaError(
            f"board-events.jsonl is damaged: {problem.message}", place=f"line {problem.line}"
        )
    return Board(layout, settings, rows, chain.records, chain.head)


def read_document(path: Path, max_bytes: int) -> Document:
    """The JSON object in the plain file `path`, read strictly."""
    with _open(path) as file:
        data = file.read(max_bytes + 1)
    document = parse_strict(data, max_bytes=max_bytes, name=f"`{path.name}`")
    if not isinstance(document, dict):
        raise SchemaError(f"`{path.name}` is no JSON object")
    return document


def read_result(folder: Path) -> Result:
    """The result of the submission in `folder`. Raises `SchemaError` if it is not one."""
    return Result.of(read_document(folder / "result.json", TEXT_LIMITS["result.json"]))


def _open(path: Path) -> Any:
    if path.is_symlink() or not path.is_file():
        raise SchemaError(f"`{path.name}` is missing, or no plain file")
    return path.open("rb")

"""Where everything lies in a board's folder, and which names may stand there.

```
BOARD/
  board.json                            name, Hub repository, maintainers' keys, schema version
  board-events.jsonl                    decisions with reasons: a chain, only ever appended to
  leaderboard.jsonl leaderboard.parquet the table, derived from all the rest
  references.json                       published figures: cited, never ranked
  <year>/<submitter>/<id>/              a submission: text only
      submission.json result.json events.jsonl README.md eval/core.json eval/chat.json
      [telemetry.jsonl]                 when it is small; otherwise beside the weights
  reproductions/<id>/<who>-<document id>.json
  statements/<id>/<who>-<document id>.json
  models/<submitter>/<name>/            weights, of boards in a folder only
```

On the Hub and in this repository the board is the folder `submissions/` of the repository. `<id>`
is the result's: 16 hex digits of the sha256 of its signed bytes, so nothing is ever there twice
under two names, and `<document id>` is the same of a reproduction or statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kit.errors import SchemaError
from kit.schemas import problems
from kit.trust.canonical import parse_strict

SCHEMA_VERSION = 1
BOARD_FOLDER = "submissions"  # in a repository
REPRODUCTION_NAMESPACE = "reproduction@n4090-kit"
STATEMENT_NAMESPACE = "statement@n4090-kit"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
RESULT_ID = re.compile(r"[0-9a-f]{16}")
_YEAR = re.compile(r"20[0-9]{2}")

MAX_DOCUMENT_BYTES = 256 * 1024  # a reproduction, a statement, a submission.json
# What a submission's folder may hold, and how large each file may be.
TEXT_LIMITS = {
    "submission.json": MAX_DOCUMENT_BYTES,
    "result.json": 4 * 2**20,
    "events.jsonl": 32 * 2**20,
    "README.md": 256 * 1024,
    "eval/core.json": 16 * 2**20,
    "eval/chat.json": 16 * 2**20,
    "telemetry.jsonl": 5 * 2**20,
}
REQUIRED = ("submission.json", "result.json", "events.jsonl", "README.md")


class SubmissionPath(NamedTuple):
    """`<year>/<submitter>/<id>`."""

    year: str
    submitter: str
    result_id: str

    def __str__(self) -> str:
        return f"{self.year}/{self.submitter}/{self.result_id}"

    @classmethod
    def parse(cls, text: str) -> SubmissionPath | None:
        """The path in `text`; None when it is none."""
        parts = text.split("/")
        if (
            len(parts) == 3
            and _YEAR.fullmatch(parts[0])
            and is_name(parts[1])
            and RESULT_ID.fullmatch(parts[2])
        ):
            return cls(*parts)
        return None


@dataclass(frozen=True)
class Layout:
    """Paths in the board at `root`."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "board.json"

    @property
    def events(self) -> Path:
        return self.root / "board-events.jsonl"

    @property
    def leaderboard(self) -> Path:
        return self.root / "leaderboard.jsonl"

    @property
    def parquet(self) -> Path:
        return self.root / "leaderboard.parquet"

    @property
    def references(self) -> Path:
        return self.root / "references.json"

    @property
    def reproductions(self) -> Path:
        return self.root / "reproductions"

    @property
    def statements(self) -> Path:
        return self.root / "statements"

    @property
    def models(self) -> Path:
        return self.root / "models"

    def submission(self, path: SubmissionPath) -> Path:
        return self.root / str(path)

    def submissions(self) -> Iterator[SubmissionPath]:
        """Every submission's folder, in order; links and other names are passed over."""
        for year in _folders(self.root, _YEAR):
            for submitter in _folders(year, NAME):
                if not is_name(submitter.name):
                    continue
                for folder in _folders(submitter, RESULT_ID):
                    yield SubmissionPath(year.name, submitter.name, folder.name)

    def documents(self, folder: Path) -> Iterator[Path]:
        """Every reproduction or statement (`folder` says which), in order."""
        for about in _folders(folder, RESULT_ID):
            yield from documents_in(about)


def documents_in(folder: Path) -> list[Path]:
    """The reproductions or statements about one row, by name."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if document_name(path.name) and path.is_file() and not path.is_symlink()
    )


def _folders(root: Path, pattern: re.Pattern[str]) -> list[Path]:
    if root.is_symlink() or not root.is_dir():
        return []
    return sorted(
        path
        for path in root.iterdir()
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )


def is_name(text: str) -> bool:
    """Whether `text` may be an account's name, and so a folder's, on every file system."""
    return NAME.fullmatch(text) is not None and ".." not in text and not text.endswith(".")


def document_name(name: str) -> tuple[str, str] | None:
    """(who, document id) of the file name of a reproduction or statement; None if it is none."""
    stem, dot, suffix = name.rpartition(".")
    who, dash, document_id = stem.rpartition("-")
    if dot and suffix == "json" and dash and is_name(who) and RESULT_ID.fullmatch(document_id):
        return who, document_id
    return None


@dataclass(frozen=True)
class Settings:
    """board.json."""

    name: str
    repository: str | None  # the dataset on the Hub
    maintainers: dict[str, str]  # public key -> name

    @classmethod
    def read(cls, layout: Layout) -> Settings:
        """The board's settings; those of a new board when it has no board.json.

        Raises:
            SchemaError: It was written by a newer kit, or is not of its form.
        """
        if not layout.settings.exists():
            return cls("a board in a folder", None, {})
        return cls.from_bytes(layout.settings.read_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Settings:
        document = parse_strict(data, max_bytes=MAX_DOCUMENT_BYTES, name="board.json")
        refuse_newer(document, "board.json")
        if found := problems(document, "board"):
            raise SchemaError(f"board.json: {found[0]}")
        return cls(
            document["name"],
            document["repository"],
            {entry["public_key"]: entry["name"] for entry in document["maintainers"]},
        )


def refuse_newer(document: Any, name: str) -> None:
    """Refuses a document of a later form than this kit's."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SchemaError(
            f"{name} has schema version {version}; this kit knows {SCHEMA_VERSION}",
            hint="upgrade n4090-kit: the board is newer than it",
        )


def board_root(path: Path) -> Path:
    """The board in `path`: the folder itself, or the `submissions/` of a repository."""
    inner = path / BOARD_FOLDER
    if not (path / "board.json").exists() and inner.is_dir():
        return inner
    return path

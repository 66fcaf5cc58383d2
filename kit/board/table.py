"""leaderboard.jsonl and leaderboard.parquet, written row by row.

The same rows give the same bytes: keys in the schema's order, floats as Python prints them, no time
of writing anywhere. Parquet files also name the writing library's version, so they are the same bit
for bit under the locked pyarrow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.board.row_form import arrow_schema
from kit.errors import PrerequisiteError
from kit.files import sync_folder

Document = dict[str, Any]
_ROWS_A_GROUP = 1000


def write_table(rows: Iterable[Document], jsonl: Path, parquet: Path) -> int:
    """Writes both files, each under its name only when whole; returns the number of rows."""
    temporary = [path.with_name(f".{path.name}.tmp") for path in (jsonl, parquet)]
    try:
        with temporary[0].open("wb") as lines, _ParquetFile(temporary[1]) as table:
            count = 0
            for row in rows:
                text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
                lines.write(text.encode() + b"\n")
                table.add(row)
                count += 1
            lines.flush()
            os.fsync(lines.fileno())
        for path, final in zip(temporary, (jsonl, parquet), strict=True):
            path.replace(final)
        sync_folder(jsonl.parent)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return count


class _ParquetFile:
    """A Parquet file written in groups of rows."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise PrerequisiteError(
                "pyarrow is not installed", hint="in the checkout: pip install '.[board]'"
            ) from None
        self._arrow = pyarrow
        self._schema = arrow_schema(pyarrow)
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[Document] = []

    def __enter__(self) -> _ParquetFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, row: Document) -> None:
        self._waiting.append({**row, "checks": list(row["checks"].items())})
        if len(self._waiting) == _ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = self._arrow.Table.from_pylist(self._waiting, schema=self._schema)
            self._writer.write_table(table)
            self._waiting.clear()

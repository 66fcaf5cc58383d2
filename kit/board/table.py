"""leaderboard.jsonl and leaderboard.parquet, written row by row.

The same rows give the same bytes: keys in the schema's order, floats as Python prints them, no time
of writing anywhere. Parquet files also name the writing library's version, so they are the same bit
for bit under the locked pyarrow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.board.row_form import arrow_schema
from kit.errors import PrerequisiteError
from kit.files import whole_file

Document = dict[str, Any]
_ROWS_A_GROUP = 1000


def write_table(rows: Iterable[Document], jsonl: Path, parquet: Path) -> int:
    """Writes both files, each under its name only when whole; returns the number of rows."""
    count = 0
    with (
        whole_file(parquet) as new_parquet,
        whole_file(jsonl) as new_jsonl,
        new_jsonl.open("wb") as lines,
        _ParquetFile(new_parquet) as table,
    ):
        for row in rows:
            text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            lines.write(text.encode() + b"\n")
            table.add(row)
            count += 1
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

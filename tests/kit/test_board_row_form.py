"""A row of the leaderboard: one dataclass gives the schema, the reader and the Parquet columns."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.dataclass_schema import row_schema

from kit.board.row_form import Row, arrow_schema
from kit.errors import SchemaError
from kit.schemas import load_schema
from kit.typed import from_json, to_json

BOARD = Path(__file__).parents[2] / "submissions"
ROWS = [json.loads(line) for line in (BOARD / "leaderboard.jsonl").read_text().splitlines()]
WRONG: list[Any] = [None, -1, 0, 2, 1.5, "x", [], {}, True, "sha256:" + "0" * 64, 2**60, "x" * 1000]


def test_the_shipped_schema_is_made_from_the_class() -> None:
    assert load_schema("leaderboard-row") == row_schema()  # `make schemas` writes it


def test_rows_of_the_board_are_read_and_written_without_a_change() -> None:
    assert len(ROWS) > 3
    for row in ROWS:
        assert to_json(from_json(Row, row)) == row
        assert list(to_json(from_json(Row, row))) == list(row)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in inner:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


@pytest.mark.parametrize("row", [ROWS[0], ROWS[-1]], ids=lambda row: row["kind"])
def test_reader_and_schema_reject_the_same_rows(row: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(row_schema())
    rejected = 0
    for path in places(row):
        for value in WRONG:
            changed = copy.deepcopy(row)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            try:
                from_json(Row, changed)
                readable = True
            except SchemaError:
                readable = False
                rejected += 1
            assert readable == validator.is_valid(changed), (path, value)
    assert rejected > 300


def test_columns_have_the_types_of_the_fields() -> None:
    arrow = pytest.importorskip("pyarrow")
    schema = arrow_schema(arrow)
    assert schema.names == list(row_schema()["properties"])
    assert schema.field("rank").type == arrow.int64()
    assert schema.field("gpu").type.field("class").type == arrow.string()
    assert schema.field("checks").type == arrow.map_(arrow.string(), arrow.string())
    assert schema.field("pooled").type.field("members").type == arrow.list_(arrow.string())

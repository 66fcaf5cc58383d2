"""Writes the schemas and the table of recipe fields, made from dataclasses: `make schemas`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support.dataclass_schema import event_schema, result_schema, row_schema
from support.field_table import field_table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "schema"


def schemas() -> dict[str, dict[str, Any]]:
    """Every generated schema, by its name in `schema/`."""
    return {
        "event": event_schema(),
        "leaderboard-row": row_schema(),
        "result": result_schema(),
    }


def text_of(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, schema in schemas().items():
        path = FOLDER / f"{name}.schema.json"
        path.write_text(text_of(schema), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    table = ROOT / "reference" / "recipes" / "README.md"
    table.write_text(field_table(), encoding="utf-8")
    sys.stdout.write(f"{table}\n")

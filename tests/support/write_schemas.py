"""Writes the schemas that are made from dataclasses: `make schemas`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kit.board.row_form import row_schema
from kit.events import event_schema
from kit.result_form import result_schema

FOLDER = Path(__file__).parents[2] / "schema"


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

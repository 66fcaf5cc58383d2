"""SECURITY.md shows the checks that the code has."""

from __future__ import annotations

from pathlib import Path

from kit.verify import checks_table

PAGE = Path(__file__).parents[2] / "SECURITY.md"


def test_the_table_of_checks_is_the_codes() -> None:
    text = PAGE.read_text()
    shown = text.split("`n4090-kit explain --markdown` -->\n")[1].split("\n<!-- end of checks -->")[
        0
    ]
    assert shown == checks_table(), "write it again with `n4090-kit explain --markdown`"

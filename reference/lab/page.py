"""The lab's pages: one file each, no script, light and dark, every word from outside escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reference.files import write_whole
from reference.pages import render

_PAGE = Path(__file__).with_name("page.html.j2")


def table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[Any]], text: Sequence[int] = (0,)
) -> dict[str, Any]:
    """A table of a section; columns other than `text` are aligned as numbers."""
    return {
        "caption": caption,
        "headings": list(headings),
        "rows": [[str(cell) for cell in row] for row in rows],
        "numeric": [i for i in range(len(headings)) if i not in text],
    }


def section(title: str, **parts: Sequence[Any]) -> dict[str, Any]:
    """A section; parts: `texts`, `figures` (SVG of `figures.draw`), `tables`, `preformatted`."""
    empty: dict[str, Any] = {"texts": (), "figures": (), "tables": (), "preformatted": ()}
    return {"title": title, **empty, **parts}


def write_page(path: Path, title: str, lead: str, sections: Sequence[Mapping[str, Any]]) -> None:
    """Writes the page whole."""
    write_whole(path, render(_PAGE, {}, title=title, lead=lead, sections=sections))

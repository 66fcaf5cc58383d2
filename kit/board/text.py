"""Other people's text, made harmless to show: one line, of bounded length, that reads one way."""

from __future__ import annotations

import unicodedata
from typing import Any

_KEPT_MARKS = 2  # combining marks in a row; more only pile up over their neighbours


def plain(value: Any, limit: int) -> str:
    """`value` as one line of at most `limit` characters.

    Control characters, line breaks, invisible and direction-changing ones (categories Cc, Cf, Cs,
    Co, Cn) become blanks, so no name can reorder the row it stands in. Markup stays as it is:
    whoever shows it escapes it for where it is shown.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) <= limit and text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    kept: list[str] = []
    marks = 0
    for character in unicodedata.normalize("NFC", text[: limit * 8]):
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category[0] == "C" or category in ("Zl", "Zp"):
            kept.append(" ")
        elif marks <= _KEPT_MARKS:
            kept.append(character)
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


_MARKUP = frozenset("\\`*_{}[]<>|&~$@#!:")


def markdown(value: Any, limit: int) -> str:
    """`value` for Markdown, a table's cell too: no markup, link, mention or HTML in it works."""
    line = plain(value, limit)
    escaped = "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in line)
    return escaped.replace("www.", "www&#46;").replace("WWW.", "WWW&#46;")

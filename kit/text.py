"""Other people's text, made harmless to show: in a terminal, HTML, Markdown, a table, a model card.

Everything that is shown and was written by somebody else passes through `plain` (one line), `block`
(several), or one of the two that also take away the meaning that Markdown or a spreadsheet would
see in it. Escaping HTML is left to the template, which escapes everything.
"""

from __future__ import annotations

import unicodedata
from typing import Any

_KEPT_MARKS = 2  # combining marks in a row; more only pile up over their neighbours
_MARKUP = frozenset("\\`*_{}[]<>|&~$@#!:")
_FORMULA = ("=", "+", "-", "@", "|", "%")
# C0 and C1 controls, and the common characters that hide or turn text: for `str.translate`, where
# asking for the category of each character would cost too much.
HIDDEN = (
    *range(0x20),
    *range(0x7F, 0xA0),
    0xAD,
    0x61C,
    0x180E,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
)


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


def block(value: Any, limit: int) -> str:
    """`value` as text of several lines, whose ends and indents stay; at most `limit` characters."""
    lines = []
    for line in str(value)[:limit].splitlines():
        line = line.expandtabs(4)
        indent = line[: len(line) - len(line.lstrip(" "))]
        lines.append(indent + plain(line, limit))
    return "\n".join(lines)


def markdown(value: Any, limit: int) -> str:
    """`value` for Markdown, a table's cell too: no markup, link, mention or HTML in it works."""
    line = plain(value, limit)
    escaped = "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in line)
    return escaped.replace("www.", "www&#46;").replace("WWW.", "WWW&#46;")


def cell(value: Any, limit: int) -> str:
    """`value` as one line that no spreadsheet takes for a formula."""
    shown = plain(value, limit)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown

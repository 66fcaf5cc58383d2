"""Submitters' words, made harmless, and figures as people read them.

Escaping is the template's business (it escapes everything). What escaping does not stop is dealt
with here and in `kit.text`: characters that turn or hide other text, towers of combining
marks, names that never end, and words that a spreadsheet would take for a formula when a table is
pasted into it.
"""

from __future__ import annotations

from typing import Any

from kit.text import block, cell

MAX_SHOWN = 300
MAX_RECIPE_SHOWN = 65_536
_MINUS = "\N{MINUS SIGN}"


def clean(text: str, limit: int = MAX_SHOWN) -> str:
    """`text` on one line, visible as it is, cut to `limit` characters, never a formula."""
    return cell(text, limit)


def clean_block(text: str, limit: int = MAX_RECIPE_SHOWN) -> str:
    """The same for text of many lines, whose ends and indents stay."""
    return block(text, limit)


def clean_all(value: Any) -> Any:
    """Every string in a document cleaned, its keys too."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_all(item) for item in value]
    if isinstance(value, dict):
        return {clean(str(key)): clean_all(item) for key, item in value.items()}
    return value


def number(value: float, digits: int = 2) -> str:
    """1234.5 as `1,234.50`, with a real minus sign (which starts no formula)."""
    return f"{value:,.{digits}f}".replace("-", _MINUS)


def score(value: float) -> str:
    return number(value, 4)


def hours(seconds: float) -> str:
    """Hours with as many digits as they deserve."""
    value = seconds / 3600
    return number(value, 2 if value >= 0.095 else 3)


def compact(value: float) -> str:
    """`11.5 M`, `1.23 B`: counts of parameters, tokens, FLOPs."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """Bytes in binary units."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= limit:
            return f"{count / limit:,.1f} {unit}"
    return f"{count:.0f} B"


def shown(value: Any) -> str:
    """Any value of a document as one short line."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", _MINUS)
    if isinstance(value, float):
        return f"{value:,.6g}".replace("-", _MINUS)
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value) or "\N{EN DASH}"
    return clean(str(value))

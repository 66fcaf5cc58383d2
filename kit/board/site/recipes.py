"""What a row's recipe does differently from `reference`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kit.board.site.text import shown
from kit.errors import KitError
from kit.recipe import load_recipe, named_recipes, parse_recipe

BASELINE = "reference"
# Names and words, not what a run does.
_PLAIN = ("name", "title", "schema_version")


class Difference(NamedTuple):
    """One field with two values, as people read them."""

    field: str
    reference: str
    here: str


class Comparison(NamedTuple):
    """All differences, or the reason why they cannot be listed."""

    differences: list[Difference]
    reason: str | None


def compare(text: str) -> Comparison:
    """Field by field, every default filled in on both sides."""
    baseline = _baseline()
    if baseline is None:
        return Comparison([], f"recipe `{BASELINE}` is not installed here")
    try:
        here = _flat(parse_recipe(text, folder=Path(), of_result=True).document)
    except KitError:
        return Comparison([], "the recipe does not fit this kit's schema")
    fields = dict.fromkeys((*baseline, *here))
    return Comparison(
        [
            Difference(field, shown(baseline.get(field)), shown(here.get(field)))
            for field in fields
            if baseline.get(field) != here.get(field) and field not in _PLAIN
        ],
        None,
    )


@cache
def _baseline() -> dict[str, Any] | None:
    if BASELINE not in named_recipes():
        return None
    return _flat(load_recipe(BASELINE).document)


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found

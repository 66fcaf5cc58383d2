"""Recipes changed on the command line: `--set a.b=v`, kept in the recipe that a result shows."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from kit.errors import SchemaError
from kit.recipe import Recipe, parse_recipe, toml_text

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """`recipe` with fields set; its text holds them, its first lines say which.

    Args:
        settings: `a.b=v` each: the field `b` of section `a`. `v` is a TOML value; a word that is no
            TOML value is taken as text.

    Raises:
        SchemaError: A setting has no such form, its field does not exist, or its value is wrong.
    """
    if not settings:
        return recipe
    source = tomllib.loads(recipe.text)
    for setting in settings:
        path, value = _parse(setting)
        place = source
        for section in path[:-1]:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise SchemaError(f"--set {setting}: {section} is not a section of a recipe")
            place = inner
        _refuse_unknown(recipe, path, setting)
        place[path[-1]] = value
    said = "".join(f"#   {_one_line(setting)}\n" for setting in settings)
    text = f"# {recipe.name}, changed on the command line:\n{said}{toml_text(source)}"
    return parse_recipe(text, folder=recipe.folder, label=f"recipe {recipe.name} with --set")


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """(field, value in A, value in B) where the resolved recipes differ; absent values are None."""
    left, right = dict(_fields(a.document)), dict(_fields(b.document))
    names = [*left, *(name for name in right if name not in left)]
    pairs = ((name, left.get(name), right.get(name)) for name in names)
    return [(name, old, new) for name, old, new in pairs if old != new]


def _parse(setting: str) -> tuple[list[str], Any]:
    key, equals, text = setting.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not text or not _KEY.fullmatch(key):
        raise SchemaError(
            f"--set {setting}: not of the form section.field=value",
            hint="For example: --set pretrain.num_steps=200 --set model.n_layer=4",
        )
    try:
        value = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return key.split("."), text
    return key.split("."), value["value"] if set(value) == {"value"} else text


def _refuse_unknown(recipe: Recipe, path: list[str], setting: str) -> None:
    """Refuses a field that no recipe has, with the nearest one of all sections."""
    known = dict(_fields(recipe.document))
    name = ".".join(path)
    if name in known or path[0] in recipe.document.get("trainer", {}):
        return
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    same = [field for field in known if field.split(".")[-1] == path[-1]]
    best = (same or close)[:1]
    raise SchemaError(
        f"--set {setting}: there is no field {name}",
        hint=(f"Did you mean {best[0]}? " if best else "")
        + "`n4090-kit recipes schema` prints every field.",
    )


def _fields(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict) and value and not prefix:
            yield from _fields(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value


def _one_line(text: str) -> str:
    return " ".join(text.split())

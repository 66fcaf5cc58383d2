"""Code that a recipe brings along: only run for a caller who chose to run the recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from kit.errors import PrerequisiteError, SchemaError
from kit.files import has_ending


def from_recipe(name: str, recipe_dir: Path | None, *, what: str = "loader") -> Any:
    """What `file.py:name` names in the recipe's own folder; runs that file.

    Args:
        what: The recipe's field, for errors.
    """
    file, _, function = name.partition(":")
    if recipe_dir is None:
        raise SchemaError(f"{what} {name!r} lies beside a recipe, and no recipe folder is known")
    path = (recipe_dir / file).resolve()
    if not path.is_relative_to(recipe_dir.resolve()) or not has_ending(path, ".py"):
        raise SchemaError(f"{what} {name!r} is not a Python file in the recipe's folder")
    if not path.is_file():
        raise PrerequisiteError(f"{what} {name!r}: the recipe's folder has no {file}")
    spec = importlib.util.spec_from_file_location(f"n4090_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if found is None:
        raise SchemaError(f"{what} {name!r}: {file} has no {function!r}")
    return found

"""Recipes with every default, from the kit's own command: its schema has the defaults."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from reference.errors import TrainerError


def resolve_recipe(name: str) -> dict[str, Any]:
    """The resolved recipe of this name, or in this file.

    Raises:
        TrainerError: The kit refuses it; the message is the kit's own.
    """
    [recipe] = resolve_recipes([name])
    if isinstance(recipe, TrainerError):
        raise recipe
    return recipe


def resolve_recipes(names: Sequence[str]) -> list[dict[str, Any] | TrainerError]:
    """Of each name or file: the resolved recipe, or why the kit refuses it."""
    command = [sys.executable, "-m", "kit.cli.main", "recipes", "check", *names, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        rows = json.loads(done.stdout)
    except ValueError as error:
        raise TrainerError(
            "internal", f"`recipes check` failed: {done.stderr.strip()}", "Install kit and trainer."
        ) from error
    return [
        row["recipe"]
        or TrainerError("bad_input", row["error"]["message"], row["error"]["hint"] or "")
        for row in rows
    ]

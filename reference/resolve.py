"""Recipes with every default, from the kit's own command: its schema has the defaults."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from reference.errors import TrainerError


def resolve_recipe(name: str) -> dict[str, Any]:
    """The resolved recipe of this name, or in this file.

    Raises:
        TrainerError: The kit refuses it; the message is the kit's own.
    """
    command = [sys.executable, "-m", "kit.cli.main", "recipes", "show", name, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message, _, hint = done.stderr.strip().removeprefix("error: ").partition("\n\nhint: ")
        raise TrainerError("bad_input", message, hint)
    recipe: dict[str, Any] = json.loads(done.stdout)["recipe"]
    return recipe

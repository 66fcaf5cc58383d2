"""The disk space that a recipe needs before its clock starts."""

from __future__ import annotations

from pathlib import Path

from kit.recipe import parse_recipe
from kit.run.preflight import estimate, needed_bytes

OWN_TRAINER = """
schema_version = 1
name = "own"
title = "a trainer beside its recipe"
track = "smoke"
budget_s = 300
stages = ["tokenizer", "pretrain"]
[data]
kind = "folder"
[trainer]
command = ["python", "{recipe_dir}/own.py"]
"""


def test_a_trainer_of_its_own_is_not_held_to_the_reference_models_space() -> None:
    recipe = parse_recipe(OWN_TRAINER, folder=Path())
    assert estimate(recipe) is None
    assert needed_bytes(recipe) < 2**30


def test_a_trainer_of_its_own_that_describes_a_model_gets_space_for_it() -> None:
    recipe = parse_recipe(f"{OWN_TRAINER}[model]\nn_layer = 12\n", folder=Path())
    assert needed_bytes(recipe) > 4 * 2**30

"""The prediction of a recipe, written down before its first run, and what would refute it.

`n4090-kit plan --recipe NAME --register FILE` writes it; `n4090-kit report RUN --against FILE`
holds a run against it. The file names the recipe by digest: a changed recipe needs a new file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reference.errors import TrainerError
from reference.files import write_whole
from reference.lab.plan_recipe import RECIPES

FORMAT = 1
SPEED_ERROR = 0.15  # of the time model against published speeds, each left out (at most 13 %)
BPB_SPREAD = 0.01  # relative: outside of it a seed or another corpus order explains nothing


def recipe_digest(recipe: str) -> str:
    """sha256 of a recipe's file, as results state it."""
    named = RECIPES / f"{recipe}.toml"
    data = (named if named.is_file() else Path(recipe)).read_bytes()
    # The text without a byte order mark, as the kit takes it.
    return "sha256:" + hashlib.sha256(data.decode("utf-8-sig").encode()).hexdigest()


def registration(recipe: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The registration of a recipe from what `plan_json` says of it."""
    predicted, odds = plan["predicted"], plan["predicted"]["odds"]
    expected = speed_and_loss(
        plan["tokens_per_s"], predicted["val_bpb"], tuple(predicted["val_bpb_95"])
    )
    if odds is not None:
        expected.append(
            expectation(
                "core",
                odds["median_core"],
                tuple(odds["core"]),
                "CORE follows compute as in nanochat's runs, levers in their intervals; below the "
                "interval with val_bpb inside: tokenizer, rows or evaluation differ",
            )
        )
    return {
        "format": FORMAT,
        "recipe": plan.get("recipe", recipe),
        "recipe_digest": recipe_digest(recipe),
        "card": plan["card"]["name"],
        "hours": plan["hours"],
        "tokens": plan["tokens"],
        "parameters": plan["parameters"],
        "target_core": 0.256525,
        "p_target": None if odds is None else odds["p_target"],
        "law": plan["law"],
        "levers": [
            {"name": lever["name"], "multiplier_95": [lever["low"], lever["high"]]}
            for lever in predicted["levers"]
        ],
        "expected": expected,
    }


def speed_and_loss(
    tokens_per_s: float, val_bpb: float, val_bpb_95: tuple[float, float]
) -> list[dict[str, Any]]:
    """What a run of any length is compared by: tokens a second and nanochat's bits per byte."""
    low, high = val_bpb_95
    return [
        expectation(
            "tokens_per_s",
            tokens_per_s,
            (tokens_per_s / (1 + SPEED_ERROR), tokens_per_s * (1 + SPEED_ERROR)),
            "the time model of a step: its rates and counts of bytes for this card",
        ),
        expectation(
            "val_bpb",
            val_bpb,
            (low * (1 - BPB_SPREAD), high * (1 + BPB_SPREAD)),
            "the loss law for this trainer, corpus and tokenizer at the tokens that were trained "
            "(compared at the run's own tokens)",
        ),
    ]


def expectation(
    figure: str, value: float, interval: tuple[float, float], assumption: str
) -> dict[str, Any]:
    """A figure, its prediction, and the assumption that a value outside the interval refutes."""
    return {
        "figure": figure,
        "predicted": round_to(value),
        "interval": [round_to(bound) for bound in interval],
        "refuted_outside": assumption,
    }


def round_to(value: float, digits: int = 5) -> float:
    """`value` to so many significant digits: a registration is read by people."""
    if value == 0:
        return 0.0
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def write_registration(path: Path, document: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(document, indent=1) + "\n").encode())


def read_registration(path: Path) -> dict[str, Any]:
    """Raises `TrainerError` for a file that is not a registration."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        if document["format"] != FORMAT or not isinstance(document["expected"], list):
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainerError(
            "bad_input",
            f"{path} is not a registration ({error})",
            "Write one: n4090-kit plan --recipe NAME --register FILE.",
        ) from error
    return document

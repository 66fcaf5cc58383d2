"""A plan as a recipe: the base recipe's file with the planned fields in it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from reference.config.resolve import resolve_recipe
from reference.errors import TrainerError
from reference.files import write_whole
from reference.lab.cards import CARDS, Card
from reference.lab.plan import Candidate, speed_of
from reference.model.day import plan_day
from reference.model.step_time import card_of

RECIPES = Path(__file__).parent.parent / "recipes"


def base_recipe(name: str, device: str = "cuda") -> dict[str, Any]:
    """The named recipe, or that file, as written; raises `TrainerError` where there is none.

    For a CPU it is without 8-bit products, which are only emulated there.
    """
    path = RECIPES / f"{name}.toml"
    path = path if path.is_file() else Path(name)
    try:
        recipe = tomllib.loads(path.read_text("utf-8-sig"))
        if device == "cpu" and isinstance(recipe.get("pretrain"), dict):
            recipe["pretrain"].pop("matmul", None)
        return recipe
    except (OSError, ValueError, RecursionError) as error:
        raise TrainerError(
            "bad_input", f"recipe {name} cannot be read: {error}", "`n4090-kit recipes` lists them."
        ) from error


def recipe_document(
    base: dict[str, Any], best: Candidate, *, name: str, title: str, hours: float, device: str
) -> dict[str, Any]:
    """The recipe that trains `best`; what the plan does not decide stays as in `base`."""
    config = best.config
    data = dict(base.get("data", {}))
    if data.get("kind") == "hub":
        data["shards"] = best.day.shards
    return {
        **base,
        "name": name,
        "title": title,
        "track": "open",
        "budget_s": round(3600 * hours, 3),
        "device": device,
        "data": data,
        "tokenizer": {**base.get("tokenizer", {}), "vocab_size": config.vocab_size},
        "model": {
            **base.get("model", {}),
            "n_layer": config.n_layer,
            "n_embd": config.n_embd,
            "n_head": config.n_head,
            "n_kv_head": config.n_kv_head,
            "seq_len": config.seq_len,
        },
        "pretrain": {
            **{k: v for k, v in base.get("pretrain", {}).items() if k != "num_steps"},
            "hours": round(best.hours["pretrain"], 2),
            "fill_budget": True,
            "device_batch_size": best.device_batch_size,
            "total_batch_size": best.total_batch_size,
        },
        "sft": {
            **base.get("sft", {}),
            "hours": round(best.hours["sft"], 2),
            "num_steps": max(1, round(best.day.sft_tokens / best.total_batch_size)),
            "device_batch_size": best.device_batch_size,
            "total_batch_size": best.total_batch_size,
        },
        "chat_eval": {
            **base.get("chat_eval", {}),
            "hours": round(best.hours["chat_eval"], 2),
        },
    }


# Recipes whose numbers are planned for another card than their track's (`card_of`).
PLANNED_FOR = {"reference-16g": "rtx4080", "reference-12g": "rtx4070", "reference-8g": "rtx4060"}


def planned_card(recipe: Mapping[str, Any]) -> Card:
    """The card that a recipe's numbers are planned for."""
    return CARDS[PLANNED_FOR.get(str(recipe.get("name")), card_of(recipe))]


def planned_fields(recipe: Mapping[str, Any]) -> dict[str, float]:
    """The fields of a recipe that follow from the plan, by dotted name, for `recipe` resolved.

    A shipped recipe states these numbers; pytest tests/reference/test_day.py compares them.
    """
    day = plan_day(recipe, speed_of(recipe, planned_card(recipe)))
    return {
        "pretrain.hours": round(day.hours["pretrain"], 2),
        "data.shards": day.shards,
        "sft.num_steps": max(1, round(day.sft_tokens / recipe["sft"]["total_batch_size"])),
    }


def write_recipe(path: Path, document: dict[str, Any], comment: str) -> dict[str, Any]:
    """Writes the recipe and has the kit check it; returns it resolved.

    Raises:
        TrainerError: The kit refuses the recipe; no file is left then.
    """
    text = "".join(f"# {line}\n" for line in comment.splitlines()) + tomlkit.dumps(document)
    write_whole(path, text.encode())
    try:
        return resolve_recipe(str(path))
    except TrainerError:
        path.unlink()
        raise

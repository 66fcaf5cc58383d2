"""The recipes for cards of 16, 12 and 8 GiB: the planned peak leaves a desktop its part."""

from __future__ import annotations

import pytest

from kit.recipe import load_recipe
from reference.config.model import ModelConfig
from reference.model.cost import plan_vram
from reference.train.memory import GIB, fitting_micro_batch

DESKTOP_BYTES = GIB
VOCAB_ROOM = 64  # special tokens, and the padding after them


@pytest.mark.parametrize(
    ("name", "card_gib"), [("reference-16g", 16), ("reference-12g", 12), ("reference-8g", 8)]
)
def test_the_planned_peak_leaves_a_desktop_its_part(name: str, card_gib: int) -> None:
    recipe = load_recipe(name).document
    assert recipe["track"] == "open"
    config = ModelConfig(recipe["tokenizer"]["vocab_size"] + VOCAB_ROOM, **recipe["model"])
    usable = card_gib * GIB - DESKTOP_BYTES
    for stage in ("pretrain", "sft"):
        batch = recipe[stage]["device_batch_size"]
        section = recipe["pretrain"] | {"device_batch_size": batch}
        assert sum(plan_vram(config, batch, section).values()) <= usable, stage
        # The trainer keeps this micro-batch on such a card; the next larger one is too much.
        assert fitting_micro_batch(config, section, card_gib * GIB) == batch
        assert sum(plan_vram(config, 2 * batch, section).values()) > usable, stage

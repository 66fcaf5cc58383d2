"""Ranked tracks: what each one asks of a recipe, a card and a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.board.site.view import groups, mark_of
from kit.board.statistics import NOISE
from kit.errors import SchemaError
from kit.hardware.gpu_class import kind
from kit.recipe import load_recipe, parse_recipe
from kit.tracks import FIRST, RANKED, TRACKS
from kit.verify.checks.machine import TRACK_CLASS
from kit.verify.expected import Expected

SCHEMA = Path(__file__).parents[2] / "schema"


def test_every_ranked_track_has_a_card_with_bands_a_noise_and_a_place_in_the_schemas() -> None:
    assert next(iter(RANKED)) == FIRST
    for name, track in RANKED.items():
        assert kind(track.gpu_class) is not None
        assert TRACK_CLASS[name] == track.gpu_class and name in NOISE
    for schema in ("recipe", "result", "registration"):
        text = (SCHEMA / f"{schema}.schema.json").read_text()
        assert json.dumps(list(TRACKS))[1:-1] in " ".join(text.split())


@pytest.mark.parametrize("name", ["reference", "reference-safe", "reference-5090"])
def test_a_ranked_recipe_obeys_its_tracks_rules(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.track in RANKED and Expected(recipe).ranked
    text = recipe.text.replace("budget_s = 86400", "budget_s = 90000")
    with pytest.raises(SchemaError, match="budget_s"):
        parse_recipe(text, folder=recipe.folder, label="changed", run_code=False)


def test_the_site_shows_each_ranked_track_apart() -> None:
    from types import SimpleNamespace

    rows = [SimpleNamespace(rank=1, track=name, gone=False) for name in (*RANKED, FIRST)]
    shown = {part.title: len(part.rows) for part in groups(rows)}
    assert shown == {"Ranked": 2, "Ranked, RTX 5090": 1}
    other = {"kind": "run", "state": "listed", "rank": 1, "track": "rtx5090-24h"}
    assert mark_of(other) != "ranked", "the frontier in the charts is the first track's"
    assert mark_of({**other, "track": FIRST}) == "ranked"

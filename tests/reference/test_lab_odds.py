"""The simulation behind `plan`'s odds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

from reference.lab.cards import CARDS
from reference.lab.commands import plan
from reference.lab.odds import Lever, known_levers, simulate
from reference.lab.plan import TARGET_CORE, Candidate, Laws, Setting, candidates, choose, fit_laws
from reference.lab.published_runs import published_points

CARD = CARDS["rtx4090"]


@pytest.fixture(scope="module")
def laws() -> Laws:
    return fit_laws(published_points(), "climbmix", repeats=20)


@pytest.fixture(scope="module")
def day(laws: Laws) -> Candidate:
    return choose(candidates(CARD, 24, laws, Setting(32768, 2048), vram_gib=24))


def test_the_interval_holds_the_speed_and_the_seeds(laws: Laws, day: Candidate) -> None:
    exact = simulate(day, replace(CARD, speed_range=(1.0, 1.0)), laws, (), target=TARGET_CORE)
    wide = simulate(day, CARD, laws, (), target=TARGET_CORE)
    assert exact is not None and wide is not None
    assert exact.tokens.low == exact.tokens.high == pytest.approx(day.tokens)
    assert exact.median_core == pytest.approx(day.core, abs=0.002)
    assert exact.core.high - exact.core.low > 3.5 * 0.0062  # seeds alone
    # 95 % of the draws lie between the published speeds.
    assert wide.tokens.low == pytest.approx(day.tokens * CARD.speed_range[0], rel=0.1)
    assert wide.tokens.high == pytest.approx(day.tokens * CARD.speed_range[1], rel=0.05)
    assert wide.core.low < exact.core.low - 0.005
    assert simulate(day, CARD, laws, (), target=TARGET_CORE) == wide, "equal draws each time"


def test_the_odds_are_the_share_of_draws_at_the_target(laws: Laws, day: Candidate) -> None:
    fixed = replace(CARD, speed_range=(1.0, 1.0))
    middle = simulate(day, fixed, laws, (), target=day.core)
    assert middle is not None and middle.p_target == pytest.approx(0.5, abs=0.12)
    sure = simulate(day, fixed, laws, (), target=day.core - 0.1)
    never = simulate(day, fixed, laws, (), target=day.core + 0.1)
    assert sure is not None and never is not None
    assert (sure.p_target, never.p_target) == (1.0, 0.0)


def test_a_lever_multiplies_compute_and_widens_the_interval(laws: Laws, day: Candidate) -> None:
    lever = Lever("twice", {"model.n_layer": 20}, 1.6, 2.5, True, "made up for this test")
    plain = simulate(day, CARD, laws, (), target=TARGET_CORE)
    better = simulate(day, CARD, laws, (lever,), target=TARGET_CORE)
    assert plain is not None and better is not None
    first, second = better.steps
    assert second[1] / first[1] == pytest.approx(2.0, rel=0.1)
    assert better.p_target > plain.p_target
    ratio = [
        np.log(odds.effective_flops.high / odds.effective_flops.low) for odds in (plain, better)
    ]
    assert ratio[1] > ratio[0]


def test_levers_are_switched_on_by_the_recipes_fields() -> None:
    lever = Lever("x", {"pretrain.matmul": "int8", "model.n_layer": 20}, 1.0, 1.1, True, "")
    assert lever.is_on({"pretrain": {"matmul": "int8"}, "model": {"n_layer": 20}})
    assert not lever.is_on({"pretrain": {"matmul": "int8"}})
    ramp = Lever("x", {"pretrain.batch_ramp": "*"}, 1.0, 1.1, True, "")
    assert ramp.is_on({"pretrain": {"batch_ramp": [0.25]}})
    assert not ramp.is_on({"pretrain": {"batch_ramp": []}}) and not ramp.is_on({})


def test_every_lever_names_fields_of_a_recipe_and_its_evidence() -> None:
    from kit.recipe import load_recipe

    resolved = load_recipe("reference").document
    for lever in known_levers():
        assert 0.5 < lever.low <= lever.high < 2.0 and len(lever.evidence) > 20
        for dotted in lever.when:
            section, _, field = dotted.partition(".")
            assert field in resolved[section], f"{lever.name}: no field {dotted}"


def test_the_command_prints_odds_and_counts_the_recipes_levers() -> None:
    done = CliRunner().invoke(plan, ["--no-files", "--json"])
    assert done.exit_code == 0, done.output
    predicted = json.loads(done.output)["predicted"]
    assert 0 <= predicted["odds"]["p_target"] <= 1
    assert [lever["name"] for lever in predicted["levers"]] == [
        "vocabulary of 49,152",
        "norm scales",
        "second momentum",
        "int8 products in all three passes",
    ]
    measured = CliRunner().invoke(plan, ["--no-files", "--json", "--mfu", "0.75"])
    low, high = json.loads(measured.output)["predicted"]["odds"]["tokens"]
    assert high / low < 1.1, "a given speed is not guessed at again"

"""Predictions written down before a run: they match their recipes, and a run is held to them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

from benchmarks.plan_pages import RECIPES, REGISTERED
from reference.lab.commands import plan, report
from reference.lab.on_course import FULL_RATE_GAP, compare, two_sided, verdict
from reference.lab.registration import read_registration, recipe_digest
from reference.lab.run_facts import Facts
from reference.lab.run_folder import RunFolder
from reference.lab.scaling import LossLaw

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = next((ROOT / "submissions" / "2026" / "example").glob("*/result.json")).parent


@pytest.mark.parametrize("name", RECIPES)
def test_the_registration_is_of_the_recipe_as_it_is(name: str) -> None:
    """A changed recipe wants `python -m benchmarks.plan_pages` again."""
    document = read_registration(REGISTERED / f"{name}.json")
    assert document["recipe_digest"] == recipe_digest(name)
    from kit.recipe import load_recipe

    assert document["recipe_digest"] == load_recipe(name).digest


@pytest.mark.parametrize("name", ["reference", "reference-1h"])
def test_the_command_writes_the_registered_figures(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    done = CliRunner().invoke(plan, ["--recipe", name, "--register", str(made), "--json"])
    assert done.exit_code == 0, done.output
    document, registered = read_registration(made), read_registration(REGISTERED / f"{name}.json")
    assert flat(document) == pytest.approx(flat(registered), rel=1e-3)
    assert {row["figure"] for row in document["expected"]} >= {"tokens_per_s", "val_bpb"}
    for row in document["expected"]:
        assert row["interval"][0] < row["predicted"] < row["interval"][1]
        assert len(row["refuted_outside"]) > 20


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The numbers of a document by path."""
    if isinstance(value, dict):
        parts = [flat(item, f"{name}.{key}") for key, item in value.items()]
    elif isinstance(value, list):
        parts = [flat(item, f"{name}.{index}") for index, item in enumerate(value)]
    else:
        return {name: value} if isinstance(value, int | float) else {}
    return {key: item for part in parts for key, item in part.items()}


def run_at(
    document: dict[str, Any], *, speed: float, gap: float, rate: float, share: float
) -> Facts:
    """A run that has made `share` of its tokens, this much faster and worse than predicted."""
    batch = 524288
    tokens_per_s = speed * document["expected"][0]["predicted"]
    steps = [
        {"step": i, "tokens": (i + 1) * batch, "lr": rate, "step_tokens": batch,
         "dt_s": batch / tokens_per_s}
        for i in range(int(share * document["tokens"] / batch))
    ]  # fmt: skip
    law = document["law"]
    loss = LossLaw(*(law[k] for k in ("E", "A", "alpha", "B", "beta")), factors=law["factors"])
    bpb = loss.loss(document["parameters"], steps[-1]["tokens"], law["family"]) * math.exp(gap)
    evals = [{"name": "val_bpb", "step": steps[-1]["step"] + 1, "value": bpb}]
    model = {"flops_per_token": 3e9, "parameters": 1}
    return Facts(RunFolder(Path(), (), {}), {}, model, steps, evals, {})


def test_an_hour_of_the_day_is_on_course_or_not() -> None:
    document = read_registration(REGISTERED / "reference.json")
    speed, loss = compare(
        run_at(document, speed=1.0, gap=FULL_RATE_GAP, rate=1.0, share=0.05), document
    )
    assert speed.odds == pytest.approx(1.0) and loss.odds == pytest.approx(1.0)
    assert verdict(speed).startswith("on course")
    slow, _ = compare(run_at(document, speed=0.5, gap=0.03, rate=1.0, share=0.05), document)
    assert slow.odds < 1e-6 and verdict(slow).startswith("OFF COURSE: below")
    expected = f"{0.5 * document['tokens'] / 1e9:.2f} B"
    assert expected in slow.note
    # The same gap is no news at the full rate, and a fault when the rate has come down.
    _, early = compare(run_at(document, speed=1.0, gap=0.03, rate=1.0, share=0.3), document)
    ended = run_at(document, speed=1.0, gap=0.03, rate=0.05, share=0.99)
    (last,) = ended.evals
    events = (
        {"ev": "stage_start", "data": {"stage": "pretrain"}},
        {"ev": "eval", "data": {**last, "name": "val_bpb_nanochat"}},
    )
    _, late = compare(replace(ended, run=RunFolder(Path(), events, {})), document)
    assert early.odds > 0.9 and late.odds < 0.01
    assert "by nanochat's definition" in late.note
    _, own = compare(ended, document)
    assert own.odds > 0.1, "by its own definition a run can differ by so much"
    assert two_sided(1.96) == pytest.approx(0.05, abs=1e-3)


def test_a_registration_of_another_recipe_is_refused() -> None:
    against = ["--against", str(REGISTERED / "reference.json")]
    done = CliRunner().invoke(report, [str(EXAMPLE), *against])
    assert done.exit_code == 2
    assert "the run's recipe is another" in done.output


def test_a_run_is_compared_with_the_registration_of_its_recipe(tmp_path: Path) -> None:
    result = json.loads((EXAMPLE / "result.json").read_text())
    document = read_registration(REGISTERED / "reference.json")
    document |= {"recipe": "smoke", "recipe_digest": result["recipe"]["digest"]}
    file = tmp_path / "registered.json"
    file.write_text(json.dumps(document))
    done = CliRunner().invoke(report, [str(EXAMPLE), "--against", str(file), "--json"])
    assert done.exit_code == 0, done.output
    compared = json.loads(done.stdout)[-1]["compared"]
    assert [row["figure"] for row in compared] == ["tokens_per_s", "val_bpb"]
    assert compared[0]["measured"] > 0


def test_what_is_not_a_registration_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}")
    done = CliRunner().invoke(report, [str(EXAMPLE), "--against", str(file)])
    assert done.exit_code == 2 and "--register FILE" in done.output
    done = CliRunner().invoke(plan, ["--register", str(file)])
    assert done.exit_code == 2 and "--recipe" in done.output

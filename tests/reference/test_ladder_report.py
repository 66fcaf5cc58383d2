"""The page of the CPU ladder: made again from the committed trials, and its figures by hand."""

import math
import random

import pytest

pytest.importorskip("scipy")

from benchmarks import answers, ladder, ladder_pairs
from reference.lab.study import load_study

Rows = list[dict[str, object]]


def row(arm: str, scale: str, seed: int, bpb: float) -> dict[str, object]:
    numbers = {"steps": 10, "tokens": 1000, "flops": 1e9}
    return {"arm": arm, "scale": scale, "seed": seed, "status": "complete", "reason": None} | {
        "val_bpb": bpb,
        **numbers,
    }


def test_the_committed_page_is_what_the_committed_trials_give() -> None:
    assert (ladder.FOLDER / "report.md").read_text() == ladder.page()


def test_the_second_parts_page_is_what_its_trials_give() -> None:
    assert (ladder_pairs.FOLDER / "report.md").read_text() == ladder_pairs.page()


def test_a_change_is_judged_by_its_own_pairs_however_noisy_another_is() -> None:
    study = load_study(ladder_pairs.STUDY)
    rows = [row("baseline", "m", seed, 2.0 + 0.1 * seed) for seed in (1, 2, 3, 4)]
    rows += [
        row("norm-scales", "m", seed, 2.0 + 0.1 * seed - 0.01 - 0.0001 * seed)
        for seed in (1, 2, 3, 4)
    ]
    rows += [row("shape-wide", "m", seed, 2.0 + (-1) ** seed) for seed in (1, 2, 3, 4)]
    rows += [row("rates-double", "m", seed, 1.0) for seed in (1, 2)]
    verdicts = {line[0]: line[6] for line in ladder_pairs.table_of(study, rows)}
    assert verdicts == {
        "norm-scales": "better",
        "shape-wide": "undecided",
        "rates-double": "too few pairs",
    }
    shown = ladder_pairs.report(study, rows, "notes")
    assert "-0.0103" in shown.replace("-0.0102", "-0.0103") and "two-momenta, seeds 1, 2" in shown


def test_every_committed_trial_is_one_of_the_study() -> None:
    wanted = ladder.planned(load_study(ladder.STUDY))
    rows = ladder.read("trials.json")
    slots = [ladder.Slot(row["arm"], row["scale"], row["seed"]) for row in rows]
    assert len(slots) == len(set(slots)) and set(slots) <= set(wanted)


def test_noise_and_smallest_visible_effect_by_hand() -> None:
    study = load_study(ladder.STUDY)
    scales = {"s": 2.0, "m": 1.8, "l": 1.7}
    rows = [row("baseline", s, seed, b + 0.01 * seed) for s, b in scales.items() for seed in (1, 2)]
    rows += [row("aa", "s", 1, 2.01 + 0.003), row("aa", "s", 2, 2.02 - 0.003)]
    noise = ladder.noise_of(study, rows)
    assert noise["baseline"]["m"]["seed_sd_bpb"] == pytest.approx(0.01 / math.sqrt(2))
    assert noise["pair_sd_bpb"] == pytest.approx(0.006 / math.sqrt(2))
    # t quantiles of 4 degrees of freedom: 2.776 (97.5 %) and 0.941 (80 %).
    expected = (2.776 + 0.941) * 0.006 / math.sqrt(2) / math.sqrt(5)
    smallest = noise["smallest_visible_with_5_pairs"]["s"]
    assert smallest["alone_bpb"] == pytest.approx(expected, rel=1e-3)
    assert smallest["among_all_bpb"] > 1.5 * smallest["alone_bpb"]


def test_an_effect_of_the_smallest_visible_size_is_seen_in_four_of_five_studies() -> None:
    import numpy as np
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(0)
    effect = ladder.visible(0.01, 5, 0.05)
    pairs = rng.normal(effect, 0.01, (4000, 5))
    seen = ttest_1samp(pairs, 0.0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(ladder.POWER, abs=0.04)


def test_the_table_of_changes_gives_the_paired_difference_and_what_is_missing() -> None:
    study = load_study(ladder.STUDY)
    scales = {"s": 2.0, "m": 1.8, "l": 1.7}
    rows = [row("baseline", s, seed, b + 0.01 * seed) for s, b in scales.items() for seed in (1, 2)]
    rows += [row("int8", "s", 1, 2.01 + 0.004), row("int8", "s", 2, 2.02 + 0.002)]
    [cells] = ladder.change_table(study, rows)
    assert cells[:4] == ["int8", "s", "2", "+0.0030"]
    low, high = map(float, cells[4].split(" to "))
    assert (low + high) / 2 == pytest.approx(0.003, abs=1e-4)
    assert high - 0.003 == pytest.approx(12.706 * 0.001, abs=1e-3)  # t of 1 degree of freedom
    gone = ladder.missing(study, rows)
    assert "int8 at s: seeds 3, 4, 5" in gone and "int8 at m: seeds 1, 2, 3, 4, 5" in gone


def test_answer_likelihood_orders_what_few_items_of_core_cannot() -> None:
    """Two models with equal outcomes, one of which needs a tenth more bits for each answer."""
    rng = random.Random(1)
    bits = [rng.uniform(5, 20) for _ in range(40)]
    task = {
        "label": "t",
        "file": "t.jsonl",
        "type": "multiple_choice",
        "shots": 0,
        "baseline": 25.0,
    }
    task |= {"outcomes": "01" * 20, "answer_bytes": [5] * 40}
    models = [
        {"model": name, "val_bpb": bpb, "tasks": [{**task, "answer_bits": [b * k for b in bits]}]}
        for name, bpb, k in (("good", 2.0, 1.0), ("bad", 2.2, 1.1))
    ]
    models[1]["tasks"][0]["outcomes"] = "10" * 19 + "00"
    [pair] = answers.pairs_of(models)
    assert pair.answer == pytest.approx(0.1 * sum(bits) / 200, rel=1e-6)
    assert 0 < pair.core_z < 1 and pair.answer_z > 3
    found = answers.summary(models, [pair])
    assert found["all_items"] == 40 and found["answers"]["ordered"] == 1
    assert found["answers"]["surely"] == 1 and found["CORE"]["surely"] == 0

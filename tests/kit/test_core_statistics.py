"""The statistics against formulas and against resampling done item by item."""

import math
import random

import numpy as np
import pytest

from kit.core_eval.report import published
from kit.core_eval.statistics import (
    TaskOutcomes,
    bootstrap_core,
    centered,
    compare,
    core_metric,
    mcnemar,
    normal_interval,
    standard_error,
)


def outcomes(n: int, share: float, seed: int) -> str:
    draw = random.Random(seed)
    return "".join("1" if draw.random() < share else "0" for _ in range(n))


def test_centering_puts_guessing_at_zero() -> None:
    assert centered(0.25, 25) == 0.0 and centered(1.0, 62) == pytest.approx(1.0)
    assert centered(0.0, 50) == -1.0
    assert standard_error(0.5, 100) == 0.05


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_published_columns_add_up_to_their_published_core(name: str) -> None:
    """Each column's CORE is recomputed from its 22 accuracies and the version 1 baselines."""
    guesses = {
        "hellaswag_zeroshot": 25, "arc_easy": 25, "arc_challenge": 25, "copa": 50,
        "commonsense_qa": 20, "piqa": 50, "openbook_qa": 25, "hellaswag": 25, "winograd": 50,
        "winogrande": 50, "agi_eval_lsat_ar": 20, "boolq": 62,
        "bigbench_language_identification": 9.1,
    }  # fmt: skip
    column = published()["models"][name]
    values = [centered(a, guesses.get(label, 0)) for label, a in column["accuracy"].items()]
    assert len(values) == 22
    assert sum(values) / 22 == pytest.approx(column["core_metric"], abs=2e-6)


def test_the_bootstrap_error_of_core_is_the_binomial_formula() -> None:
    tasks = [
        TaskOutcomes("a", "a.jsonl", 25.0, outcomes(400, 0.4, 1)),
        TaskOutcomes("b", "b.jsonl", 0.0, outcomes(900, 0.7, 2)),
    ]
    variance = 0.0
    for task in tasks:
        p = task.outcomes.count("1") / len(task.outcomes)
        variance += p * (1 - p) / len(task.outcomes) / (1 - task.baseline / 100) ** 2
    found = bootstrap_core(tasks)
    assert found.standard_error == pytest.approx(math.sqrt(variance) / 2, rel=0.03)
    assert found.low < core_metric(tasks) < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.standard_error, rel=0.05)
    assert found == bootstrap_core(tasks)


def test_tasks_that_ask_the_same_items_are_resampled_together() -> None:
    """Two equal columns over one file are one sample: the error does not shrink."""
    column = outcomes(500, 0.4, 3)
    alone = bootstrap_core([TaskOutcomes("a", "same.jsonl", 25.0, column)])
    twice = [TaskOutcomes(label, "same.jsonl", 25.0, column) for label in "ab"]
    apart = [TaskOutcomes(label, f"{label}.jsonl", 25.0, column) for label in "ab"]
    assert bootstrap_core(twice).standard_error == pytest.approx(alone.standard_error, rel=0.03)
    assert bootstrap_core(apart).standard_error == pytest.approx(
        alone.standard_error / math.sqrt(2), rel=0.03
    )


def test_the_paired_interval_is_the_one_of_resampling_items_by_hand() -> None:
    a, b = outcomes(300, 0.5, 4), outcomes(300, 0.5, 5)
    b = "".join(x if i % 3 else y for i, (x, y) in enumerate(zip(a, b, strict=True)))
    found = compare(
        [TaskOutcomes("t", "t.jsonl", 20.0, a)], [TaskOutcomes("t", "t.jsonl", 20.0, b)]
    )
    gap = (np.array(list(b), dtype=float) - np.array(list(a), dtype=float)) / 0.8
    generator = np.random.default_rng(0)
    means = gap[generator.integers(0, 300, (20_000, 300))].mean(axis=1)
    assert found.difference == pytest.approx(gap.mean())
    assert found.interval.low == pytest.approx(np.quantile(means, 0.025), abs=0.004)
    assert found.interval.high == pytest.approx(np.quantile(means, 0.975), abs=0.004)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    # By hand: 2 * sum of C(n, i) for i <= min, over 2^n, at most 1.
    [(0, 0, 1.0), (5, 5, 1.0), (0, 6, 2 / 64), (1, 9, 22 / 1024), (10, 0, 2 / 1024)],
)
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p)


def test_mcnemar_holds_for_tens_of_thousands() -> None:
    # The normal approximation with continuity correction is good to a few percent here.
    z = (5200 - 4800 - 1) / math.sqrt(10_000)
    assert mcnemar(4800, 5200) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


def test_other_items_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="do not cover the same items"):
        compare([TaskOutcomes("t", "t", 0.0, "01")], [TaskOutcomes("t", "t", 0.0, "011")])


def test_the_closed_form_is_where_the_bootstrap_tends_to() -> None:
    rng = random.Random(5)
    for n, p in ((10, 0.3), (40, 0.9), (400, 0.25)):
        tasks = [
            TaskOutcomes(
                f"t{i}", f"f{i // 2}", 25.0, "".join("01"[rng.random() < p] for _ in range(n))
            )
            for i in range(6)
        ]
        exact, drawn = normal_interval(tasks), bootstrap_core(tasks)
        assert exact.standard_error == pytest.approx(drawn.standard_error, rel=0.05)
        for mine, other in ((exact.low, drawn.low), (exact.high, drawn.high)):
            assert abs(mine - other) < 0.2 * exact.standard_error

"""The lab's judgement on simulated losses: nothing found where nothing is, effects found."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("scipy")

from reference.lab.statistics import (
    Gain,
    Verdict,
    gains,
    holm,
    judge,
)

NOISE, BETWEEN_SEEDS = 1e-3, 3e-3


def simulate(
    rng: np.random.Generator, effects: Sequence[float], seeds: int, noise: float = NOISE
) -> dict[str, Verdict]:
    """One study: changes c1, c2, … with these true gains."""
    blocks = rng.normal(0, BETWEEN_SEEDS, seeds)
    losses = {
        (f"c{arm}" if arm else "baseline", seed): 0.5 + block - effect + rng.normal(0, noise)
        for arm, effect in enumerate((0.0, *effects))
        for seed, block in enumerate(blocks)
    }
    found = {arm: ("small", gain, None) for arm, gain in gains(losses, "baseline").items()}
    return {verdict.arm: verdict for verdict in judge(found, {}, alpha=0.05)}


def test_a_against_a_is_undecided_in_at_least_95_percent_of_repeats() -> None:
    rng = np.random.default_rng(7)
    repeats = [simulate(rng, [0.0] * 8, 3) for _ in range(400)]
    undecided = [v.verdict == "undecided" for study in repeats for v in study.values()]
    assert np.mean(undecided) >= 0.95
    # Holm's promise is stronger: whole studies without one false verdict.
    clean = [all(v.verdict == "undecided" for v in study.values()) for study in repeats]
    assert np.mean(clean) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / len(repeats))


def test_a_lone_a_against_a_keeps_alpha() -> None:
    rng = np.random.default_rng(3)
    undecided = [simulate(rng, [0.0], 3)["c1"].verdict == "undecided" for _ in range(1000)]
    assert np.mean(undecided) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_planted_effects_are_found_among_eight_changes() -> None:
    rng = np.random.default_rng(5)
    effects = [6 * NOISE, -6 * NOISE, *[0.0] * 6]
    repeats = [simulate(rng, effects, 3) for _ in range(100)]
    assert np.mean([study["c1"].verdict == "better" for study in repeats]) > 0.9
    assert np.mean([study["c2"].verdict == "worse" for study in repeats]) > 0.9
    assert np.mean([study["c5"].verdict == "undecided" for study in repeats]) > 0.95


def test_a_gain_agrees_with_the_paired_t_test() -> None:
    from scipy.stats import ttest_rel

    a, b = [0.51, 0.53, 0.50, 0.56], [0.50, 0.515, 0.495, 0.545]
    losses = {("baseline", i): value for i, value in enumerate(a)}
    losses |= {("change", i): value for i, value in enumerate(b)}
    gain = gains(losses, "baseline")["change"]
    assert gain.gain == pytest.approx(np.mean(a) - np.mean(b))
    assert gain.p_value == pytest.approx(ttest_rel(a, b).pvalue)


def test_seeds_that_are_missing_or_infinite_are_left_out_of_pairs() -> None:
    losses = {("baseline", s): 1.0 + 0.001 * s for s in range(3)}
    losses |= {("change", 0): math.inf, ("change", 2): 0.9, ("other", 9): 0.1}
    found = gains(losses, "baseline")
    assert found["change"].seeds == 1
    assert "other" not in found
    assert gains({}, "baseline") == {}
    assert gains({("baseline", 1): 1.0, ("change", 1): 0.9}, "baseline")["change"].p_value == 1.0


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )


def test_a_broken_change_is_worse_and_counts_as_a_try() -> None:
    gain = Gain(0.003, 0.001, 20, 3)
    alone = judge({"a": ("s", gain, None)}, {}, alpha=0.05)
    many = judge({"a": ("s", gain, None)}, {"b": ("s", "diverged")}, alpha=0.05)
    assert many[1].verdict == "worse" and many[1].reason == "diverged"
    assert alone[0].p_holm is not None and many[0].p_holm is not None
    assert many[0].p_holm >= alone[0].p_holm

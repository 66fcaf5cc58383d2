"""Better, worse or undecided: compute multipliers with intervals, corrected for many tries.

Outcomes x = ln val_bpb of one scale follow x[arm, seed] = arm + seed + noise: a seed fixes initial
weights and data order for every arm, so it is a block. An arm's difference from the baseline is
estimated by least squares; the noise is pooled over the arms, and an arm that is noisier than that
pays for it. Holm's procedure keeps the chance that any change without effect is called better or
worse below alpha.

A compute multiplier m says: for the same loss the baseline needs m times the compute
(`reference.lab.baseline_curve`).

References:
    Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure
    nanochat's scripts/compare.py (branch experiment_refactor) for the unit
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import f as f_law
from scipy.stats import t as student

NOISY = 10.0  # an arm whose own variance is this many medians does not count in the pooled one
NOISY_P = 0.05  # an arm whose spread is less likely than this pays with its own
Losses = Mapping[tuple[str, int], float]  # (arm, seed) -> ln val_bpb


class Gain(NamedTuple):
    """What an arm gains over the baseline at one scale, in ln bpb; positive is better."""

    gain: float
    error: float
    freedom: int
    seeds: int

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference."""
        if self.error <= 0 or self.freedom < 1:
            return 1.0
        return float(2 * student.sf(abs(self.gain / self.error), self.freedom))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        if self.freedom < 1:
            return -math.inf, math.inf
        reach = float(student.ppf(0.5 + level / 2, self.freedom)) * self.error
        return self.gain - reach, self.gain + reach


def gains(losses: Losses, baseline: str) -> dict[str, Gain]:
    """The gain of every arm over `baseline`, from its finite outcomes.

    An arm without a seed in common with the baseline has none.
    """
    finite = {key: value for key, value in losses.items() if math.isfinite(value)}
    if not finite:
        return {}
    base = {seed: value for (arm, seed), value in finite.items() if arm == baseline}
    differences = {
        arm: np.array(
            [
                base[seed] - value
                for (name, seed), value in finite.items()
                if name == arm and seed in base
            ]
        )
        for arm in sorted({arm for arm, _ in finite} - {baseline})
    }
    differences = {arm: values for arm, values in differences.items() if len(values)}
    pooled, freedom = _pooled_variance(finite)
    found = {}
    for arm, values in differences.items():
        n = len(values)
        own = float(values.var(ddof=1)) if n > 1 else 0.0
        # A difference of two trials has twice the variance of one.
        surprising = (
            n > 1 and pooled > 0 and float(f_law.sf(own / (2 * pooled), n - 1, freedom)) < NOISY_P
        )
        if n < 2 or not surprising:
            found[arm] = Gain(float(values.mean()), math.sqrt(2 * pooled / n), freedom, n)
        else:
            found[arm] = Gain(float(values.mean()), math.sqrt(own / n), n - 1, n)
    return found


def _pooled_variance(finite: Losses) -> tuple[float, int]:
    """Residual variance of arm + seed over all arms that are not far noisier, and its freedom."""
    arms = sorted({arm for arm, _ in finite})
    seeds = sorted({seed for _, seed in finite})
    residuals = _residuals(finite, arms, seeds)
    spread = {
        arm: float(np.mean([residuals[arm, s] ** 2 for s in seeds if (arm, s) in residuals]))
        for arm in arms
    }
    median = float(np.median([value for value in spread.values()]))
    calm = [arm for arm in arms if spread[arm] <= NOISY * median or median == 0]
    kept = {key: value for key, value in finite.items() if key[0] in calm}
    freedom = len(kept) - len(calm) - len({seed for _, seed in kept}) + 1
    if freedom < 1:
        return 0.0, 0
    residuals = _residuals(kept, calm, seeds)
    return float(sum(value**2 for value in residuals.values())) / freedom, freedom


def _residuals(
    losses: Losses, arms: Sequence[str], seeds: Sequence[int]
) -> dict[tuple[str, int], float]:
    keys = sorted(losses)
    design = np.zeros((len(keys), len(arms) + len(seeds)))
    for row, (arm, seed) in enumerate(keys):
        design[row, arms.index(arm)] = 1.0
        design[row, len(arms) + seeds.index(seed)] = 1.0
    y = np.array([losses[key] for key in keys])
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return dict(zip(keys, (y - fitted).tolist(), strict=True))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: comparing one with alpha keeps the family's error below alpha."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


class Multiplier(NamedTuple):
    """How much more compute the baseline needs for the same bits per byte, with 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What a study says of one change, at the largest scale that it reached.

    Attributes:
        verdict: better, worse or undecided.
        reason: For a change that never got to a comparison: diverged, stopped, failed.
        p_holm: Adjusted for all changes of the study; None without a comparison.
    """

    arm: str
    scale: str
    verdict: str
    reason: str | None = None
    gain: Gain | None = None
    multiplier: Multiplier | None = None
    p_holm: float | None = None


def judge(
    found: Mapping[str, tuple[str, Gain, Multiplier | None]],
    broken: Mapping[str, tuple[str, str]],
    *,
    alpha: float,
) -> list[Verdict]:
    """Verdicts, the best change first.

    Args:
        found: Of each compared arm: its scale, gain and multiplier there.
        broken: Arms that diverged or were stopped by a rule: their scale, and how. They are worse,
            without a test; they still count as tries.
    """
    raw = {arm: gain.p_value for arm, (_, gain, _) in found.items()}
    adjusted = holm({**raw, **{arm: 0.0 for arm in broken if arm not in raw}})
    verdicts = []
    for arm, (scale, gain, times) in found.items():
        p = adjusted[arm]
        verdict = "undecided" if p >= alpha else "better" if gain.gain > 0 else "worse"
        verdicts.append(Verdict(arm, scale, verdict, None, gain, times, p))
    for arm, (scale, reason) in broken.items():
        if arm not in found:
            verdicts.append(Verdict(arm, scale, "worse", reason))
    return sorted(verdicts, key=lambda v: -(v.gain.gain if v.gain else -math.inf))

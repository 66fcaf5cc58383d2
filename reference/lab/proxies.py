"""Which cheap measurement foretells the ranking at the largest scale, and how surely.

A proxy is a figure that is there earlier or at a smaller size: bits per byte at a milestone or at
a lower rung, or a few CORE tasks. Its quality is how it orders the changes against how the largest
scale's final bits per byte do. Only changes that reached the top can be compared, so a study that
is to judge proxies should let many of them through (`halving.eta = 1`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from reference.lab.halving import Slot
from reference.lab.study import MILESTONES, Study
from reference.lab.trial import COMPLETE, Outcome

FEWEST_ARMS = 4
DRAWS = 500
Read = Callable[[Outcome], float | None]


@dataclass(frozen=True)
class Proxy:
    """How well one cheap figure ranks.

    Args:
        flops: What it costs to have it for one trial.
        rank_correlation: Spearman's, with the largest scale's final bits per byte, and its 95 %
            interval over changes and seeds drawn anew.
        agreement: Share of pairs that both order alike, and the 5 % quantile of its draws.
    """

    name: str
    flops: float
    share_of_cost: float
    arms: int
    rank_correlation: float
    rank_low: float
    rank_high: float
    agreement: float
    agreement_low: float


def rate_proxies(
    study: Study, outcomes: Mapping[Slot, Outcome], flops: Mapping[str, float]
) -> list[Proxy]:
    """All proxies of a study, cheapest first; none while fewer than four arms reached the top."""
    top = study.scales[-1].name
    arms = [
        arm.name
        for arm in study.arms
        if all(_complete(outcomes.get(Slot(arm.name, top, seed))) for seed in study.seeds_at(top))
    ]
    if len(arms) < FEWEST_ARMS:
        return []
    target = _values(outcomes, arms, top, study.seeds_at(top), _final)
    assert target is not None
    rated = []
    for scale in study.scales:
        for name, share, read in _readings(study):
            if scale.name == top and name == "val_bpb":
                continue
            values = _values(outcomes, arms, scale.name, study.seeds_at(top), read)
            if values is not None:
                cost = share * flops[scale.name]
                label = f"{name} at {scale.name}"
                rated.append(_rate(label, cost, cost / flops[top], values, target))
    return sorted(rated, key=lambda proxy: proxy.flops)


def recommend(proxies: Sequence[Proxy], reliability: float) -> tuple[Proxy | None, str]:
    """The cheapest proxy that keeps `reliability`, and why this one or none."""
    if not proxies:
        return None, f"fewer than {FEWEST_ARMS} changes reached the largest scale with all seeds"
    good = [proxy for proxy in proxies if proxy.agreement_low >= reliability]
    if not good:
        best = max(proxies, key=lambda proxy: proxy.agreement_low)
        return None, (
            f"none orders {reliability:.0%} of pairs surely; the surest, {best.name}, orders "
            f"{best.agreement:.0%} (at least {best.agreement_low:.0%})"
        )
    best = good[0]
    return best, (
        f"{best.name} orders {best.agreement:.0%} of pairs as the largest scale does (at least "
        f"{best.agreement_low:.0%}) at {best.share_of_cost:.0%} of its cost"
    )


def _readings(study: Study) -> list[tuple[str, float, Read]]:
    """(name, share of the trial's cost, how to read it)."""
    early: list[tuple[str, float, Read]] = [
        (f"val_bpb at {k / MILESTONES:.0%}", k / MILESTONES, _early(k / MILESTONES))
        for k in range(1, MILESTONES)
    ]
    tasks: list[tuple[str, float, Read]] = [
        (task, 1.0, _task(task)) for task in (study.core or {}).get("tasks", ())
    ]
    mean: list[tuple[str, float, Read]] = [("CORE tasks, mean", 1.0, _task(None))] if tasks else []
    return [*early, ("val_bpb", 1.0, _final), *tasks, *mean]


def _final(outcome: Outcome) -> float | None:
    return outcome.val_bpb


def _early(share: float) -> Read:
    def read(outcome: Outcome) -> float | None:
        near = [row for row in outcome.evals if abs(row[0] - share) < 0.5 / MILESTONES]
        return min(near, key=lambda row: abs(row[0] - share))[5] if near else None

    return read


def _task(name: str | None) -> Read:
    def read(outcome: Outcome) -> float | None:
        if not outcome.core:
            return None
        # Lower is better, as with bits per byte.
        return -(
            sum(outcome.core.values()) / len(outcome.core)
            if name is None
            else outcome.core.get(name, math.nan)
        )

    return read


def _complete(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.status == COMPLETE


def _values(
    outcomes: Mapping[Slot, Outcome],
    arms: Sequence[str],
    scale: str,
    seeds: Sequence[int],
    read: Read,
) -> np.ndarray | None:
    """(arms, seeds) of one figure; None where any is missing."""
    rows = []
    for arm in arms:
        row = []
        for seed in seeds:
            outcome = outcomes.get(Slot(arm, scale, seed))
            value = read(outcome) if outcome is not None and _complete(outcome) else None
            if value is None or not math.isfinite(value):
                return None
            row.append(value)
        rows.append(row)
    return np.array(rows)


def _rate(name: str, cost: float, share: float, proxy: np.ndarray, target: np.ndarray) -> Proxy:
    rng = np.random.default_rng(0)
    n, seeds = proxy.shape
    correlations: list[float] = []
    agreements: list[float] = []
    while len(correlations) < DRAWS:
        arms = rng.integers(0, n, n)
        if len(np.unique(arms)) < 3:
            continue
        # Seeds of proxy and target are drawn apart: the proxy's luck is not the target's.
        x = proxy[:, rng.integers(0, seeds, seeds)].mean(axis=1)[arms]
        y = target[:, rng.integers(0, seeds, seeds)].mean(axis=1)[arms]
        correlations.append(spearman(x, y))
        agreements.append(agreement(x, y))
    x, y = proxy.mean(axis=1), target.mean(axis=1)
    low, high = np.quantile(correlations, (0.025, 0.975))
    return Proxy(
        name=name,
        flops=cost,
        share_of_cost=share,
        arms=n,
        rank_correlation=spearman(x, y),
        rank_low=float(low),
        rank_high=float(high),
        agreement=agreement(x, y),
        agreement_low=float(np.quantile(agreements, 0.05)),
    )


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; 0 where one side orders nothing."""
    a, b = rankdata(x), rankdata(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def agreement(x: np.ndarray, y: np.ndarray) -> float:
    """Share of the pairs with different `y` that `x` orders the same way."""
    i, j = np.triu_indices(len(x), 1)
    wanted = np.sign(y[i] - y[j])
    told = np.sign(x[i] - x[j])
    known = wanted != 0
    return float((told[known] == wanted[known]).mean()) if known.any() else 0.0

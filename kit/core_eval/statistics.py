"""What the outcomes of a sample of items can say: errors, intervals, paired comparisons.

Outcomes are 0 or 1. Resampling n items with replacement and counting how often each pattern of
outcomes appears is one multinomial draw, so a bootstrap needs the counts of the patterns and not
the items. Tasks that read the same file ask the same items (HellaSwag, with and without examples):
they are drawn together. Tasks are fixed; only items are resampled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

RESAMPLES = 10_000
BOOTSTRAP_SEED = 1337
LEVEL = 0.95


class Interval(NamedTuple):
    """A percentile bootstrap interval and the standard error of the same draws."""

    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class TaskOutcomes:
    """One task as the statistics see it. `outcomes` are "0" and "1" in evaluation order."""

    label: str
    file: str
    baseline: float  # percent
    outcomes: str


@dataclass(frozen=True)
class TaskComparison:
    """Two models on the items of one task. `difference` is B minus A, of accuracies."""

    label: str
    n: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    p: float  # exact McNemar, two-sided


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same items. `difference` is B minus A, of the mean centered value."""

    core_a: float
    core_b: float
    difference: float
    interval: Interval
    tasks: tuple[TaskComparison, ...]


def accuracy(outcomes: str) -> float:
    """The share of "1"."""
    return outcomes.count("1") / len(outcomes)


def centered(value: float, baseline: float) -> float:
    """An accuracy on the scale where guessing is 0 and perfection 1; `baseline` in percent."""
    return (value - 0.01 * baseline) / (1.0 - 0.01 * baseline)


def standard_error(value: float, n: int) -> float:
    """The binomial standard error of an accuracy."""
    return math.sqrt(value * (1.0 - value) / n)


def core_metric(tasks: Sequence[TaskOutcomes]) -> float:
    """The plain mean of the centered accuracies."""
    return math.fsum(centered(accuracy(t.outcomes), t.baseline) for t in tasks) / len(tasks)


def bootstrap_core(tasks: Sequence[TaskOutcomes]) -> Interval:
    """The interval of `core_metric` under resampling of items."""
    return _bootstrap([_weighted(group, [1.0]) for group in _by_file(tasks, tasks)], len(tasks))


def normal_interval(tasks: Sequence[TaskOutcomes]) -> Interval:
    """What `bootstrap_core` tends to, in closed form and without numpy: for checking it."""
    variance = 0.0
    for group in (_weighted(pairs, [1.0]) for pairs in _by_file(tasks, tasks)):
        n = sum(group.values())
        mean = math.fsum(value * count for value, count in group.items()) / n
        spread = math.fsum(count * (value - mean) ** 2 for value, count in group.items())
        variance += spread / n / n
    error = math.sqrt(variance) / len(tasks)
    middle = core_metric(tasks)
    return Interval(middle - 1.959964 * error, middle + 1.959964 * error, error)


def compare(a: Sequence[TaskOutcomes], b: Sequence[TaskOutcomes]) -> Comparison:
    """The paired comparison of two evaluations.

    Raises:
        ValueError: They are not of the same tasks and numbers of items.
    """
    if [(t.label, len(t.outcomes)) for t in a] != [(t.label, len(t.outcomes)) for t in b]:
        raise ValueError("the two evaluations do not cover the same items")
    groups = [_weighted(group, [-1.0, 1.0]) for group in _by_file(a, b)]
    return Comparison(
        core_a=core_metric(a),
        core_b=core_metric(b),
        difference=core_metric(b) - core_metric(a),
        interval=_bootstrap(groups, len(a)),
        tasks=tuple(_compare_task(x, y) for x, y in zip(a, b, strict=True)),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """The chance, if both models were equally good, of a split of the disagreements at least as
    uneven: an exact two-sided binomial test."""
    n, k = only_a + only_b, min(only_a, only_b)
    # The tail of a fair binomial in logarithms: the counts reach tens of thousands.
    tail = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    top = max(tail)
    log_sum = top + math.log(math.fsum(math.exp(value - top) for value in tail))
    return min(1.0, math.exp(math.log(2.0) + log_sum - n * math.log(2.0)))


def _compare_task(a: TaskOutcomes, b: TaskOutcomes) -> TaskComparison:
    pairs = Counter(zip(a.outcomes, b.outcomes, strict=True))
    n, only_a, only_b = len(a.outcomes), pairs["1", "0"], pairs["0", "1"]
    difference = (only_b - only_a) / n
    spread = 1.959964 * math.sqrt(max(0.0, (only_a + only_b) / n - difference**2) / n)
    return TaskComparison(
        label=a.label,
        n=n,
        accuracy_a=accuracy(a.outcomes),
        accuracy_b=accuracy(b.outcomes),
        difference=difference,
        low=difference - spread,
        high=difference + spread,
        only_a=only_a,
        only_b=only_b,
        p=mcnemar(only_a, only_b),
    )


def _by_file(
    a: Sequence[TaskOutcomes], b: Sequence[TaskOutcomes]
) -> list[list[tuple[TaskOutcomes, TaskOutcomes]]]:
    """Pairs of a task's two evaluations, those over the same items together."""
    groups: dict[tuple[str, int], list[tuple[TaskOutcomes, TaskOutcomes]]] = {}
    for x, y in zip(a, b, strict=True):
        groups.setdefault((x.file, len(x.outcomes)), []).append((x, y))
    return list(groups.values())


def _weighted(
    group: Sequence[tuple[TaskOutcomes, TaskOutcomes]], signs: Sequence[float]
) -> Mapping[float, int]:
    """How many items carry each summed centered outcome, the sign of each side applied."""
    sides = [[pair[side].outcomes for pair in group] for side in range(len(signs))]
    weights = [1.0 / (1.0 - 0.01 * pair[0].baseline) for pair in group]
    # 1 / (1 - b) - 1 = b / (1 - b), what a wrong answer costs on the centered scale.
    shift = sum(signs) * math.fsum(weight - 1.0 for weight in weights)
    columns = zip(*(outcomes for side in sides for outcomes in side), strict=True)
    found: dict[float, int] = {}
    for pattern, count in Counter(columns).items():
        value = -shift
        for s, sign in enumerate(signs):
            for w, weight in enumerate(weights):
                value += sign * weight * (pattern[s * len(weights) + w] == "1")
        found[value] = found.get(value, 0) + count
    return found


def _bootstrap(groups: Sequence[Mapping[float, int]], tasks: int) -> Interval:
    import numpy as np

    generator = np.random.default_rng(BOOTSTRAP_SEED)
    totals = np.zeros(RESAMPLES)
    for group in groups:
        values = np.array(list(group), dtype=np.float64)
        counts = np.array(list(group.values()), dtype=np.int64)
        n = int(counts.sum())
        totals += generator.multinomial(n, counts / n, size=RESAMPLES) @ values / n
    totals /= tasks
    low, high = np.quantile(totals, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), float(totals.std(ddof=1)))


def to_json(interval: Interval) -> dict[str, Any]:
    """An interval as documents hold it, with how it was made."""
    return {
        "level": LEVEL,
        "low": interval.low,
        "high": interval.high,
        "standard_error": interval.standard_error,
        "method": f"bootstrap over items, {RESAMPLES} resamples, seed {BOOTSTRAP_SEED}",
    }

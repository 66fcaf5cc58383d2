"""Questions drawn after a submission is fixed, and what answers to them say about its figures.

The seed is the digest of the board's `draw` event. That line comes after the decision about the
submission and holds a fresh random number, so no submitter can know the questions before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

from kit.verify.thresholds import RE_EVALUATION_AGREEMENT

# In 400 simulated submissions a CORE inflated by 0.02 was found out with 500 items in 71 %, with
# 1,000 in 98 %; one inflated by 0.01 in 15 and 52 %. Honest ones were refused in less than 1 %.
DEFAULT_ITEMS = 500
_FALSE_REFUSALS = 0.001  # share of honest rows that each of the two bounds below rejects
_Z = 3.09  # the same, one-sided, of a normal distribution
_FLIPS = 1 - RE_EVALUATION_AGREEMENT  # share of answers that other kernels and shapes turn


class Comparison(NamedTuple):
    """The submitted answers against the board's own, on the drawn items.

    Attributes:
        difference: Submitted minus found mean of centred accuracies over the drawn items.
        most_flips, most_difference: What precision alone explains.
    """

    items: int
    flips: int
    difference: float
    most_flips: int
    most_difference: float

    @property
    def agrees(self) -> bool:
        return self.flips <= self.most_flips and self.difference <= self.most_difference

    def __str__(self) -> str:
        return (
            f"{self.items - self.flips} of {self.items} drawn answers the same "
            f"(at least {self.items - self.most_flips}), score {self.difference:+.4f} above the "
            f"board's own (at most {self.most_difference:.4f})"
        )


def draw_items(seed: str, counts: Mapping[str, int], items: int) -> dict[str, list[int]]:
    """Positions to score, by task: about `items` in all, as equally over the tasks as they allow.

    Args:
        seed: Any text; the same text draws the same items on every machine.
        counts: Items of each task.
    """
    shares = dict.fromkeys(counts, 0)
    left = min(items, sum(counts.values()))
    while left > 0:
        open_tasks = [task for task in counts if shares[task] < counts[task]]
        for task in open_tasks[:left]:
            shares[task] += 1
        left -= len(open_tasks)
    return {
        task: sorted(_order(seed, task, counts[task])[:share]) for task, share in shares.items()
    }


def _order(seed: str, task: str, count: int) -> list[int]:
    """All positions of a task in an order that the seed decides."""

    def rank(position: int) -> bytes:
        return hashlib.sha256(f"{seed}:{task}:{position}".encode()).digest()

    return sorted(range(count), key=rank)


def compare_answers(
    stated: Mapping[str, str],
    found: Mapping[str, str],
    drawn: Mapping[str, list[int]],
    baselines: Mapping[str, float],
) -> Comparison:
    """Compares example by example.

    Args:
        stated: All submitted outcomes of each task, one digit an item.
        found: The board's own outcomes, one digit a drawn item.
        baselines: A guess's percentage of right answers, by task.
    """
    items = flips = 0
    difference = variance = 0.0
    for task, positions in drawn.items():
        n, scale = len(positions), 1 - baselines[task] / 100
        claimed = [stated[task][position] == "1" for position in positions]
        own = [answer == "1" for answer in found[task]]
        items += n
        flips += sum(a != b for a, b in zip(claimed, own, strict=True))
        if n:
            difference += (sum(claimed) - sum(own)) / n / scale / len(drawn)
            variance += _FLIPS / n / scale**2 / len(drawn) ** 2
    # One flip more than the normal bound: flips are few and whole.
    largest = max((1 / len(p) / (1 - baselines[t] / 100) for t, p in drawn.items() if p), default=0)
    most = _Z * math.sqrt(variance) + largest / max(1, len(drawn))
    return Comparison(items, flips, difference, _most_flips(items), most)


def _most_flips(items: int) -> int:
    """The smallest number that precision alone exceeds with probability `_FALSE_REFUSALS`."""
    total = 0.0
    for flips in range(items + 1):
        total += math.comb(items, flips) * _FLIPS**flips * (1 - _FLIPS) ** (items - flips)
        if total >= 1 - _FALSE_REFUSALS:
            return flips
    return items

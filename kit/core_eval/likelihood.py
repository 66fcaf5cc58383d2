"""Answer likelihood: bits per byte of the right answer, which moves where accuracy is still chance.

For each item: the bits that the model needs for the right answer, and the answer's UTF-8 bytes. A
task's figure is the sum of the bits over the sum of the bytes; the whole is the mean of the tasks.
The answer is the scored part of the right option: what differs between the options (multiple
choice), what follows the contexts (schema), the continuation (language modeling). Fewer is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kit.core_eval.bundle import TaskKind

_DIGITS = 4  # of an item's bits in an evaluation file
_MOST_BITS = 1e6  # for an answer that the model calls impossible: JSON has no infinity
_Z95 = 1.959964


class Likelihood(NamedTuple):
    """Bits per byte of right answers, and its standard error from the choice of items."""

    value: float
    standard_error: float

    def to_json(self) -> dict[str, float]:
        half = _Z95 * self.standard_error
        return {"value": self.value, "low": self.value - half, "high": self.value + half}


def answer_bytes(kind: TaskKind, prompts: Sequence[str], gold: int) -> int:
    """UTF-8 bytes of the scored part of the right prompt, at least 1.

    Args:
        prompts: As `render_prompts` gives them: one an option, or without and with the answer.
    """
    right = prompts[1] if kind == "language_modeling" else prompts[gold]
    if kind == "schema":
        common = _shared([prompt[::-1] for prompt in prompts])
        return max(1, len(right[len(right) - common :].encode()))
    return max(1, len(right[_shared(prompts) :].encode()))


def to_bits(nats: float) -> float:
    """Bits of an answer, rounded for an evaluation file; at most a million."""
    return min(_MOST_BITS, round(nats / math.log(2), _DIGITS)) if nats < math.inf else _MOST_BITS


def task_likelihood(bits: Sequence[float | None], sizes: Sequence[int]) -> Likelihood | None:
    """A task's figure; None if no item has a scored answer.

    Args:
        bits: Bits of each item's right answer; None for an answer without a scored token.
        sizes: Bytes of each item's right answer.
    """
    pairs = [(b, size) for b, size in zip(bits, sizes, strict=True) if b is not None]
    if not pairs:
        return None
    total = sum(size for _, size in pairs)
    value = math.fsum(b for b, _ in pairs) / total
    spread = math.fsum((b - value * size) ** 2 for b, size in pairs)
    return Likelihood(value, math.sqrt(spread) / total)


def mean_likelihood(tasks: Sequence[dict[str, Any]]) -> Likelihood | None:
    """The mean over the tasks of an evaluation file; None for files of earlier kits."""
    if not tasks or any("answer_bits" not in task for task in tasks):
        return None
    found = [task_likelihood(task["answer_bits"], task["answer_bytes"]) for task in tasks]
    known = [one for one in found if one is not None]
    if not known:
        return None
    error = math.sqrt(math.fsum(one.standard_error**2 for one in known)) / len(known)
    return Likelihood(math.fsum(one.value for one in known) / len(known), error)


class LikelihoodComparison(NamedTuple):
    """Two models on the same answers. `difference` is B minus A: below 0, B is better."""

    value_a: float
    value_b: float
    difference: float
    low: float
    high: float


def compare_likelihoods(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]
) -> LikelihoodComparison | None:
    """The paired difference of two evaluations' tasks, with its 95 % interval from the items.

    Only answers that both models score count. An item that several tasks ask, those of one file
    with as many items, counts as one draw.

    Returns:
        None: one of the evaluations does not hold the bits, or no answer is scored in both.

    Raises:
        ValueError: The tasks are not of the same answers.
    """
    if any("answer_bits" not in task for task in (*a, *b)):
        return None
    values: list[tuple[float, float]] = []
    draws: dict[tuple[str, int], list[float]] = {}
    for x, y in zip(a, b, strict=True):
        if x["answer_bytes"] != y["answer_bytes"]:
            raise ValueError("the two evaluations do not cover the same answers")
        rows = list(zip(x["answer_bits"], y["answer_bits"], x["answer_bytes"], strict=True))
        known = [(p, q, size) for p, q, size in rows if p is not None and q is not None]
        if not known:
            continue
        total = sum(size for _, _, size in known)
        ours, theirs = (math.fsum(row[side] for row in known) / total for side in (0, 1))
        values.append((ours, theirs))
        found = draws.setdefault((x["file"], len(rows)), [0.0] * len(rows))
        for i, (p, q, size) in enumerate(rows):
            if p is not None and q is not None:
                found[i] += (q - p - (theirs - ours) * size) / total
    if not values:
        return None
    n = len(values)
    ours, theirs = (math.fsum(value[side] for value in values) / n for side in (0, 1))
    half = _Z95 * math.sqrt(math.fsum(r * r for rows in draws.values() for r in rows)) / n
    gap = theirs - ours
    return LikelihoodComparison(ours, theirs, gap, gap - half, gap + half)


def _shared(texts: Sequence[str]) -> int:
    """How many first characters all the texts share."""
    least, most = min(texts), max(texts)
    pairs = enumerate(zip(least, most, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(least), len(most)))

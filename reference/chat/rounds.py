"""Chat questions within a time: a small round first, then as many as the time left allows.

Each round asks the same share of every task, in an order drawn once for all runs, so that fewer
questions are a random sample of all and the tasks keep their proportions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from reference.chat.evaluation import Task, TaskResult

ORDER_SEED = 1337  # the order of the questions: the same in every run
FIRST_SHARE = 1 / 32
CAUTION = 0.9  # of the questions that the measured pace says would fit
SMALLEST_SHARE = 1 / 64  # a round below it is not worth its own batches


@dataclass(frozen=True)
class Asked:
    """Results by task, and the share of all questions that was asked, 0 to 1."""

    results: dict[str, TaskResult]
    share: float


def ask_in_rounds(
    tasks: Sequence[Task],
    ask: Callable[[Task], TaskResult],
    left_s: Callable[[], float],
    on_round: Callable[[Asked], None] = lambda asked: None,
) -> Asked:
    """Asks all questions if the time allows it, else a sample of each task.

    Args:
        ask: Evaluates a task; called with parts of the tasks.
        left_s: Seconds that are left for questions; infinite: all are asked at once.
        on_round: Called after each round with what was asked so far.
    """
    orders = {task.name: shuffled(len(task.questions)) for task in tasks}
    found: dict[str, list[tuple[list[int], TaskResult]]] = {task.name: [] for task in tasks}
    share, began_with_s = 0.0, left_s()
    wanted = 1.0 if math.isinf(began_with_s) else FIRST_SHARE
    while True:
        upto = min(1.0, share + wanted)
        for task in tasks:
            chosen = part(orders[task.name], share, upto)
            if chosen:
                asked = ask(replace(task, questions=tuple(task.questions[i] for i in chosen)))
                found[task.name].append((chosen, asked))
        share = upto
        so_far = Asked({name: merged(parts) for name, parts in found.items() if parts}, share)
        on_round(so_far)
        if share >= 1.0:
            return so_far
        left = left_s()
        pace = max(1e-9, began_with_s - left) / share  # seconds for all questions
        wanted = min(1.0 - share, CAUTION * left / pace)
        if wanted < min(SMALLEST_SHARE, 1.0 - share):
            return so_far


def shuffled(count: int) -> list[int]:
    """0 to count - 1 in an order that depends on `count` alone."""
    order = list(range(count))
    random.Random(ORDER_SEED).shuffle(order)
    return order


def part(order: Sequence[int], begin: float, end: float) -> list[int]:
    """The questions between two shares of an order, in the order of the file; none twice."""
    first, last = (-int(-share * len(order) // 1) for share in (begin, end))
    return sorted(order[first:last])


def merged(parts: Sequence[tuple[Sequence[int], TaskResult]]) -> TaskResult:
    """The result of all questions of a task that were asked, in the order of the file."""
    if len(parts) == 1:
        return parts[0][1]
    first = parts[0][1]
    accuracy = baseline = centered = ended_rate = None
    outcomes = in_file_order([(chosen, r.outcomes) for chosen, r in parts])
    ended = in_file_order([(chosen, r.ended) for chosen, r in parts if r.ended])
    if first.accuracy is not None:
        accuracy = fmean(outcomes)
        baseline = mean_rate([(r.n, r.baseline) for _, r in parts]) or 0.0
        centered = (accuracy - baseline) / (1 - baseline)
    if ended:
        ended_rate = fmean(ended)
    return replace(
        first,
        n=sum(result.n for _, result in parts),
        accuracy=accuracy,
        baseline=baseline,
        centered=centered,
        ended_rate=ended_rate,
        outcomes=outcomes,
        ended=ended,
        right_rate=mean_rate([(r.n, r.right_rate) for _, r in parts]),
        nanochat=mean_rate([(r.n, r.nanochat) for _, r in parts]),
    )


def mean_rate(parts: Sequence[tuple[int, float | None]]) -> float | None:
    """The rate of all questions from (questions, rate) pairs; None where a rate is not known."""
    known = [(n, rate) for n, rate in parts if rate is not None]
    if len(known) < len(parts):
        return None
    return sum(n * rate for n, rate in known) / sum(n for n, _ in known)


def in_file_order(parts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[int]:
    """The values of (questions, values) pairs by question."""
    pairs = [pair for chosen, values in parts for pair in zip(chosen, values, strict=True)]
    return [value for _, value in sorted(pairs)]

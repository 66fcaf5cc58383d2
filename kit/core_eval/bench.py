"""Times the evaluator against one example at a time: same model, machine and examples, one run.

The examples are a stratified sample: each task gets its share of `items`, at least two (one where
fewer than two a task were asked for). Seconds an
item times the items of a task, summed over tasks, is what the whole bundle would take; so tasks
weigh as they do in it, however few of their items were timed. The two ways take turns task by task.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kit.core_eval.bundle import Bundle, Task, load_items
from kit.core_eval.encode import encode_items
from kit.core_eval.evaluate import auto_batch_tokens, is_correct
from kit.core_eval.grouping import reach
from kit.core_eval.model import EvalModel, model_device, offered_paths
from kit.core_eval.one_by_one import Answer, answer_item
from kit.core_eval.probes import PathProof
from kit.core_eval.score import Budget, score_items

SAMPLE_SEED = 7


@dataclass(frozen=True)
class Disagreement:
    """An item that the two ways judge differently, with the smallest gap between two options."""

    label: str
    index: int
    gap: float


@dataclass(frozen=True)
class TaskTiming:
    """Seconds of the sampled items of one task."""

    label: str
    n: int
    items: int
    ours_s: float
    one_by_one_s: float
    ours_cpu_s: float
    one_by_one_cpu_s: float

    @property
    def ratio(self) -> float:
        return self.one_by_one_s / self.ours_s


@dataclass(frozen=True)
class Timings:
    """All tasks, and what follows for the whole bundle."""

    tasks: tuple[TaskTiming, ...]
    disagreements: tuple[Disagreement, ...]
    batch_tokens: int
    ours_peak_bytes: int | None
    one_by_one_peak_bytes: int | None

    def whole_s(self, field: str) -> float:
        """Seconds of the whole bundle by the named seconds of the sample."""
        return sum(float(getattr(task, field)) * task.n / task.items for task in self.tasks)

    def to_json(self) -> dict[str, Any]:
        ours, slow = self.whole_s("ours_s"), self.whole_s("one_by_one_s")
        return {
            "ratio": slow / ours,
            "ratio_cpu_seconds": self.whole_s("one_by_one_cpu_s") / self.whole_s("ours_cpu_s"),
            "whole_bundle_ours_s": ours,
            "whole_bundle_one_by_one_s": slow,
            "items": sum(task.items for task in self.tasks),
            "disagreements": [vars(entry) for entry in self.disagreements],
            "batch_tokens": self.batch_tokens,
            "ours_peak_bytes": self.ours_peak_bytes,
            "one_by_one_peak_bytes": self.one_by_one_peak_bytes,
            "tasks": [{**vars(task), "ratio": task.ratio} for task in self.tasks],
        }


def bench_core(
    model: EvalModel,
    bundle: Bundle,
    *,
    items: int = 200,
    batch_tokens: int = 0,
    watch: Callable[[TaskTiming], None] = lambda timing: None,
) -> Timings:
    """Times both ways on about `items` examples of the selected tasks."""
    proof, offered = PathProof(model), offered_paths(model)
    budget = Budget(batch_tokens or auto_batch_tokens(model, offered))
    chosen = _sample(bundle, items)
    warm, (rows, indices) = next(iter(chosen.items()))
    encoded = encode_items(model, warm, rows, indices[:1])
    paths = proof.paths(*reach(warm.kind, encoded, offered))
    score_items(model, warm.kind, encoded, budget=budget, paths=paths)
    answer_item(model, warm, rows, indices[0])
    timings, disagreements = [], []
    peaks = [0, 0]
    for task, (rows, indices) in chosen.items():
        stop = _clock(model)
        encoded = encode_items(model, task, rows, indices)
        paths = proof.paths(*reach(task.kind, encoded, offered))
        scores = score_items(model, task.kind, encoded, budget=budget, paths=paths)
        ours_s, ours_cpu_s, peak = stop()
        peaks[0] = max(peaks[0], peak)
        stop = _clock(model)
        answers = [answer_item(model, task, rows, index) for index in indices]
        slow_s, slow_cpu_s, peak = stop()
        peaks[1] = max(peaks[1], peak)
        timing = TaskTiming(
            task.label, len(rows), len(indices), ours_s, slow_s, ours_cpu_s, slow_cpu_s
        )
        timings.append(timing)
        watch(timing)
        for index, ours, answer in zip(indices, scores, answers, strict=True):
            gold = rows[index].get("gold", 0)
            if is_correct(task.kind, ours, gold) is not answer.correct:
                disagreements.append(Disagreement(task.label, index, _gap(answer)))
    gpu = model_device(model).startswith("cuda")
    return Timings(
        tuple(timings),
        tuple(disagreements),
        budget.batch_tokens,
        peaks[0] if gpu else None,
        peaks[1] if gpu else None,
    )


def _sample(bundle: Bundle, items: int) -> dict[Task, tuple[list[Any], list[int]]]:
    rows = {task: load_items(bundle, task) for task in bundle.selected}
    total = sum(map(len, rows.values()))
    least = 2 if items >= 2 * len(rows) else 1
    return {
        task: (
            found,
            random.Random(SAMPLE_SEED).sample(
                range(len(found)), min(len(found), max(least, round(items * len(found) / total)))
            ),
        )
        for task, found in rows.items()
    }


def _gap(answer: Answer) -> float:
    ordered = sorted(answer.scores)
    return ordered[1] - ordered[0] if len(ordered) > 1 else 0.0


def _clock(model: EvalModel) -> Callable[[], tuple[float, float, int]]:
    """Starts timing; the returned function stops and gives wall and CPU seconds and peak bytes."""
    import torch

    device = torch.device(model_device(model))
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    wall_ns, cpu_ns = time.perf_counter_ns(), time.process_time_ns()

    def stop() -> tuple[float, float, int]:
        if gpu:
            torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) if gpu else 0
        wall, cpu = time.perf_counter_ns() - wall_ns, time.process_time_ns() - cpu_ns
        return wall / 1e9, cpu / 1e9, int(peak)

    return stop

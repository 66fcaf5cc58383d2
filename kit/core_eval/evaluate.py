"""CORE of a model: every task scored, outcomes kept, the work so far safe on disk.

`evaluate_core` is the whole evaluation; its document is what `eval/core.json` holds. Nothing in it
depends on when or how often it was started, so a run that was killed ends in the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kit.core_eval.bundle import Bundle, Task, TaskKind, core_facts, load_items
from kit.core_eval.controls import CONTROLS, Control, has_control
from kit.core_eval.encode import EncodedItem, encode_task
from kit.core_eval.grouping import Slot, reach
from kit.core_eval.likelihood import mean_likelihood, task_likelihood, to_bits
from kit.core_eval.model import EvalModel, Paths, max_seq_len, model_device, offered_paths
from kit.core_eval.naming import score_name
from kit.core_eval.probes import PathProof
from kit.core_eval.score import Budget, SlotScore, Stopped, score_items
from kit.core_eval.statistics import (
    TaskOutcomes,
    accuracy,
    bootstrap_core,
    centered,
    core_metric,
    standard_error,
    to_json,
)

FORMAT = 1
_JOURNAL = 2  # version of the journal's lines


@dataclass(frozen=True)
class TaskResult:
    """One scored task; `scores` are per item and option (nats per token, or exact match).

    `answer_bits` and `answer_bytes` are each item's right answer; None: no token of it is scored.
    """

    task: Task
    scores: list[list[float]]
    outcomes: str
    answer_bits: list[float | None]
    answer_bytes: list[int]

    @property
    def accuracy(self) -> float:
        return accuracy(self.outcomes)

    def to_json(self) -> dict[str, Any]:
        likelihood = task_likelihood(self.answer_bits, self.answer_bytes)
        n, error = len(self.outcomes), standard_error(self.accuracy, len(self.outcomes))
        return {
            "label": self.task.label,
            "type": self.task.kind,
            "file": self.task.file,
            "shots": self.task.shots,
            "n": n,
            "correct": self.outcomes.count("1"),
            "accuracy": self.accuracy,
            "standard_error": error,
            "baseline": self.task.baseline,
            "centered": centered(self.accuracy, self.task.baseline),
            "centered_standard_error": error / (1.0 - 0.01 * self.task.baseline),
            "outcomes": self.outcomes,
            "answer_bpb": likelihood and likelihood.value,
            "answer_bits": self.answer_bits,
            "answer_bytes": self.answer_bytes,
        }


@dataclass
class Watch:
    """What a caller hears during an evaluation, and how it asks to stop."""

    task: Callable[[TaskResult], None] = lambda result: None
    progress: Callable[[int, int], None] = lambda done, total: None
    note: Callable[[str], None] = lambda text: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass
class Settings:
    """How to evaluate. `batch_tokens` 0 is chosen from free memory; `paths` None is tried out."""

    max_per_task: int = -1
    batch_tokens: int = 0
    cache: Path | None = None  # folder for encoded tasks
    journal: Path | None = None  # file that survives a kill; gone when the evaluation is whole
    identity: str = ""  # of the model: a journal of another model is not continued
    paths: Paths | None = None
    indices: Mapping[str, list[int]] = field(default_factory=dict)  # for benchmarks: only these
    control: Control | None = None  # ask with another item's text; gives no CORE


def evaluate_core(
    model: EvalModel,
    bundle: Bundle,
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """The document of the evaluation of `model` on the selected tasks of `bundle`.

    Raises:
        Stopped: `watch.should_stop` said so; the journal keeps what was scored.
        KitError: See `open_bundle`, `load_items`, `encode_task`, `score_items`.
    """
    results = score_tasks(model, bundle, settings or Settings(), watch or Watch())
    return document(model, bundle, results, settings or Settings())


def evaluate_controls(
    model: EvalModel, bundle: Bundle, settings: Settings, watch: Watch
) -> dict[str, Any]:
    """What of the score remains when the deciding text comes from another item (`controls`).

    Returns:
        For each control the tasks it applies to, in bundle order, with n, accuracy and the
        accuracy centred on chance.
    """
    found: dict[str, Any] = {}
    for control in CONTROLS:
        tasks = tuple(
            task
            for task in bundle.selected
            if has_control(
                task, load_items(bundle, task, max_per_task=settings.max_per_task), control
            )
        )
        if not tasks:
            continue
        journal = settings.journal
        own = replace(
            settings,
            control=control,
            journal=journal and journal.with_name(f"{journal.name}.{control}"),
        )
        results = score_tasks(model, replace(bundle, selected=tasks), own, watch)
        found[control] = {
            result.task.label: {
                "n": len(result.outcomes),
                "accuracy": result.accuracy,
                "centered": centered(result.accuracy, result.task.baseline),
            }
            for result in results
        }
    return found


def score_tasks(
    model: EvalModel, bundle: Bundle, settings: Settings, watch: Watch
) -> list[TaskResult]:
    """The scored tasks in bundle order."""
    prepare = getattr(model, "expect", None)
    if prepare is not None:
        prepare(_count_items(bundle, settings))
    offered = settings.paths or offered_paths(model)
    proof = None if settings.paths else PathProof(model, watch.note)
    identity = {
        "journal": _JOURNAL,
        "model": settings.identity,
        "bundle": bundle.digest,
        "max_per_task": settings.max_per_task,
        "max_seq_len": max_seq_len(model),
        "paths": list(offered),
        "batch_tokens": settings.batch_tokens,
        **({} if settings.control is None else {"control": settings.control}),
    }
    journal = _Journal(settings.journal, identity)
    budget = Budget(
        settings.batch_tokens or journal.batch_tokens or auto_batch_tokens(model, offered)
    )
    journal.open(budget.batch_tokens)
    results: list[TaskResult] = []

    def encode(task: Task) -> list[EncodedItem]:
        return encode_task(
            model,
            bundle,
            task,
            max_per_task=settings.max_per_task,
            indices=settings.indices.get(task.label),
            cache=settings.cache,
            control=settings.control,
        )

    try:
        with ThreadPoolExecutor(1) as worker:
            # The next task is encoded while this one is scored.
            upcoming = worker.submit(encode, bundle.selected[0])
            for position, task in enumerate(bundle.selected):
                items = upcoming.result()
                if position + 1 < len(bundle.selected):
                    upcoming = worker.submit(encode, bundle.selected[position + 1])
                paths = offered
                if proof is not None:
                    paths = proof.paths(*reach(task.kind, items, offered))
                results.append(_score_task(model, task, items, budget, paths, journal, watch))
                watch.progress(len(results), len(bundle.selected))
                watch.task(results[-1])
    finally:
        journal.close()
    if budget.halvings:
        watch.note(
            f"memory ran out {budget.halvings} times; batches went down to "
            f"{budget.batch_tokens} tokens"
        )
    journal.remove()
    return results


def _count_items(bundle: Bundle, settings: Settings) -> int:
    """How many items will be scored; a last line without its newline is not counted."""
    counts = []
    for task in bundle.selected:
        lines = (bundle.root / task.file).read_bytes().count(b"\n")
        count = len(settings.indices.get(task.label, range(lines)))
        counts.append(min(count, settings.max_per_task) if settings.max_per_task > 0 else count)
    return sum(counts)


def _score_task(
    model: EvalModel,
    task: Task,
    items: list[EncodedItem],
    budget: Budget,
    paths: Paths,
    journal: _Journal,
    watch: Watch,
) -> TaskResult:
    done = journal.scores(task.label)
    nats = {slot: entry.nats for slot, entry in done.items()}

    def report(batch: list[SlotScore]) -> None:
        nats.update({entry.slot: entry.nats for entry in batch})
        journal.add(task.label, batch)

    scores = score_items(
        model,
        task.kind,
        items,
        budget=budget,
        paths=paths,
        done={slot: entry.score for slot, entry in done.items()},
        report=report,
        should_stop=watch.should_stop,
    )
    outcomes = "".join(
        "1" if is_correct(task.kind, row, item.gold) else "0"
        for row, item in zip(scores, items, strict=True)
    )
    bits = [_answer_bits(item, index, nats) for index, item in enumerate(items)]
    return TaskResult(task, scores, outcomes, bits, [item.answer_bytes for item in items])


def _answer_bits(item: EncodedItem, index: int, nats: Mapping[Slot, float]) -> float | None:
    """Bits of the right answer; None without a scored token. Of equal options one was scored."""
    suffix, start = item.suffixes[item.gold].tobytes(), item.starts[item.gold]
    for option, other in enumerate(item.suffixes):
        found = nats.get(Slot(index, option))
        if found is not None and (other.tobytes(), item.starts[option]) == (suffix, start):
            return to_bits(found)
    return None


def is_correct(kind: TaskKind, scores: list[float], gold: int) -> bool:
    """Whether an item counts as right.

    The prediction is the first option with the lowest score as Python's `min` and `index` find it.
    That fixes what an option without a scored token (NaN) means: at the front it wins, later never.
    """
    if kind == "language_modeling":
        return scores == [1.0]
    return scores.index(min(scores)) == gold


def document(
    model: EvalModel, bundle: Bundle, results: list[TaskResult], settings: Settings
) -> dict[str, Any]:
    """What an evaluation file holds: figures, outcomes, and what they were measured on."""
    outcomes = [
        TaskOutcomes(r.task.label, r.task.file, r.task.baseline, r.outcomes) for r in results
    ]
    tasks = [result.to_json() for result in results]
    likelihood = mean_likelihood(tasks)
    partial = not bundle.whole or settings.max_per_task > 0 or bool(settings.indices)
    core = bundle.kind == "core"
    scored = {"bundle": bundle.kind, "partial": partial, "tasks": results}
    newer = core_facts()["baselines_v2"]
    second = [
        TaskOutcomes(t.label, t.file, newer.get(t.label, t.baseline), t.outcomes) for t in outcomes
    ]
    return {
        "format": FORMAT,
        "metric": score_name(scored),
        "core_metric": core_metric(outcomes),
        "interval": to_json(bootstrap_core(outcomes)),
        "answer_bpb": likelihood and likelihood.to_json(),
        "core_metric_v2": core_metric(second) if core else None,
        "partial": partial,
        "max_per_task": settings.max_per_task,
        "bundle": {"kind": bundle.kind, "digest": bundle.digest, "tasks": len(bundle.tasks)},
        "model": {
            "vocab_size": model.vocab_size,
            "bos_id": model.bos_id,
            "max_seq_len": max_seq_len(model),
            "dtype": str(getattr(model, "dtype", "unknown")).removeprefix("torch."),
            "device": model_device(model).split(":")[0],
        },
        "tasks": tasks,
    }


def auto_batch_tokens(model: EvalModel, paths: Paths) -> int:
    """A batch that free memory surely holds, and that is large enough to keep the device busy."""
    import torch

    device = torch.device(model_device(model))
    if device.type == "cuda":
        return _auto_batch_tokens_cuda(model, device)
    # On a CPU small batches stay in its caches; only the full logits of a plain model are large.
    token_bytes = 2**18 + (0 if paths.hidden else 8 * model.vocab_size)
    return int(min(1024, max(256, _free_memory_bytes() // 4 // token_bytes)))


def _auto_batch_tokens_cuda(model: EvalModel, device: Any) -> int:
    """Two small forward passes tell the bytes a token takes; half of what is free is spent."""
    import torch

    peaks = []
    for count in (1024, 2048):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        tokens = torch.full((count // 256, 256), model.bos_id, device=device)
        with torch.inference_mode():
            states: Any = model
            if hasattr(model, "prefill"):
                lengths = torch.full((len(tokens),), 256, device=device)
                states = states.prefill(tokens, lengths)
            else:
                states = states.logits(tokens)
        torch.cuda.synchronize(device)
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
        del states
    token_bytes = max(1, (peaks[1] - peaks[0]) // 1024)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    # A batch's children may hold CHILD_BUDGET more copies of cached tokens.
    return int(min(65_536, max(1024, free // 2 // (token_bytes * 3))))


def _free_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**31


class _Journal:
    """Scores as they come, one JSON line a batch, so that a kill loses one batch.

    The first line says what was being evaluated; a journal of something else is started over. A
    torn last line is cut off.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self._path = path
        self._identity = identity
        self._file: Any = None
        self._scores: dict[str, dict[Slot, SlotScore]] = {}
        self.batch_tokens = 0
        self._length = 0
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        data = data[: data.rfind(b"\n") + 1]
        try:
            header, *lines = [json.loads(line) for line in data.splitlines()]
            if header["identity"] != self._identity:
                return
            scores: dict[str, dict[Slot, SlotScore]] = {}
            for line in lines:
                of_task = scores.setdefault(line["task"], {})
                for item, sequence, score, nats in line["scores"]:
                    slot = Slot(item, sequence)
                    of_task[slot] = SlotScore(slot, float(score), float(nats))
            self.batch_tokens = int(header["batch_tokens"])
        except (ValueError, KeyError, TypeError):
            return
        self._scores, self._length = scores, len(data)

    def open(self, batch_tokens: int) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._length:
            os.truncate(self._path, self._length)
            self._file = self._path.open("a", encoding="utf-8")
            return
        self._file = self._path.open("w", encoding="utf-8")
        self._write({"identity": self._identity, "batch_tokens": batch_tokens})

    def scores(self, label: str) -> dict[Slot, SlotScore]:
        return self._scores.get(label, {})

    def add(self, label: str, batch: list[SlotScore]) -> None:
        if self._file is not None:
            scores = [[e.slot.item, e.slot.sequence, e.score, e.nats] for e in batch]
            self._write({"task": label, "scores": scores})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


__all__ = [
    "Settings",
    "Stopped",
    "TaskResult",
    "Watch",
    "auto_batch_tokens",
    "document",
    "evaluate_controls",
    "evaluate_core",
    "is_correct",
    "score_tasks",
]

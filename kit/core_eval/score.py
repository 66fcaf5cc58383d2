"""Scores encoded items: batches by a token budget, shared text read once, logits only where scored.

1. Sequences that begin alike form a group: the choices of an item, or language-modeling items about
   one passage. The group's shared tokens are one row; what follows it is a child of the row.
   Equal sequences are scored once, so that equal options tie exactly (`grouping`).
2. Groups sorted by length fill batches of at most `batch_tokens` padded tokens.
3. A batch runs its rows, then its children on the cached rows; only the states at scored positions
   meet the head.

The last token of a sequence predicts nothing that is scored and is never fed; so a choice of one
token costs nothing beyond its question.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kit.core_eval.bundle import TaskKind
from kit.core_eval.encode import EncodedItem, Tokens
from kit.core_eval.grouping import Group, Slot, fed_tokens, fill_batches, group_slots
from kit.core_eval.model import (
    EvalModel,
    Paths,
    model_device,
)
from kit.errors import KitError, PrerequisiteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Children hold a copy of their row's cache but are short themselves: rows times whole length may be
# this many times the budget.
CHILD_BUDGET = 4
# Logits alive at once: on a CPU few enough to stay in its caches, on a GPU enough to fill it.
_HEAD_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}


class SlotScore(NamedTuple):
    """A slot's score: mean nats per scored token, or 1.0 / 0.0 for an exact match or not.

    `nats` are those of all scored tokens together.
    """

    slot: Slot
    score: float
    nats: float


class Stopped(Exception):
    """The caller asked to stop; what was scored before has been reported."""


@dataclass
class Budget:
    """How many padded tokens a forward pass may take; halved when memory runs out."""

    batch_tokens: int
    halvings: int = 0

    def halve(self) -> None:
        self.batch_tokens = max(1, self.batch_tokens // 2)
        self.halvings += 1


def score_items(
    model: EvalModel,
    kind: TaskKind,
    items: Sequence[EncodedItem],
    *,
    budget: Budget,
    paths: Paths,
    done: Mapping[Slot, float] | None = None,
    report: Callable[[list[SlotScore]], None] = lambda scores: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[list[float]]:
    """The score of each sequence of each item; NaN for an empty region.

    Args:
        done: Scores of an earlier, interrupted call; their batches are not run again.
        report: Called with the scores of each finished batch.

    Raises:
        Stopped: `should_stop` said so between two batches.
        PrerequisiteError: Not even one sequence fits in memory.
    """
    known: dict[Slot, float] = dict(done or {})
    groups, same = group_slots(kind, items, paths)
    alone = not paths.batch
    queue = deque(fill_batches(groups, items, budget.batch_tokens, alone=alone))
    queue = deque(
        batch
        for batch in queue
        if any(slot not in known for group in batch for slot in group.slots)
    )
    for scores in _run_all(model, kind, items, queue, budget, paths, should_stop):
        report(scores)
        known.update({entry.slot: entry.score for entry in scores})
    return [
        [
            known[same.get(Slot(i, s), Slot(i, s))] if item.starts[s] < item.length(s) else math.nan
            for s in range(len(item.suffixes))
        ]
        for i, item in enumerate(items)
    ]


# 3. Forward passes


class _Rows(NamedTuple):
    """Token rows and the states of them that are scored."""

    tokens: Tensor  # (R, T)
    parents: Tensor  # (R,) the cached row each goes on from; lengths of the rows at the top level
    pick_rows: Tensor  # (N,)
    pick_positions: Tensor  # (N,)


@dataclass(frozen=True)
class _Prepared:
    """A batch as tensors."""

    rows: _Rows
    children: tuple[_Rows, ...]
    picks: Tensor  # (P,) rising index into all picked states, rows first, then children
    targets: Tensor  # (P,)
    order: NDArray[np.int64]  # (P,) where each pick stands in the order of the slots
    slots: tuple[tuple[Slot, int], ...]  # with the number of scored tokens


def _run_all(
    model: EvalModel,
    kind: TaskKind,
    items: Sequence[EncodedItem],
    queue: deque[tuple[Group, ...]],
    budget: Budget,
    paths: Paths,
    should_stop: Callable[[], bool],
) -> Iterator[list[SlotScore]]:
    """Runs the batches; on a GPU the next one is prepared and queued before one is read back."""
    import torch

    device = torch.device(model_device(model))
    ahead = 2 if device.type == "cuda" else 0
    running: deque[tuple[_Prepared, Tensor]] = deque()
    pad = model.bos_id
    with ThreadPoolExecutor(1) as worker, torch.inference_mode():

        def prepare(batch: tuple[Group, ...]) -> Any:
            return worker.submit(
                _prepare, items, batch, budget.batch_tokens, pad, device.type == "cuda"
            )

        upcoming = prepare(queue[0]) if queue else None
        while queue:
            if should_stop():
                for prepared, values in running:
                    yield _slot_scores(kind, prepared, values)
                raise Stopped
            batch = queue.popleft()
            assert upcoming is not None
            prepared = upcoming.result()
            upcoming = prepare(queue[0]) if queue else None
            try:
                running.append((prepared, _forward(model, kind, prepared, device, paths)))
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                message = str(error).splitlines()[0]
            else:
                message = ""
            if message:  # outside the handler: its traceback keeps the failed tensors alive
                alone = not paths.batch
                queue = deque(_smaller(items, batch, queue, budget, message, alone=alone))
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                upcoming = prepare(queue[0])
            while len(running) > ahead:
                yield _slot_scores(kind, *running.popleft())
        while running:
            yield _slot_scores(kind, *running.popleft())


def _prepare(
    items: Sequence[EncodedItem],
    batch: tuple[Group, ...],
    batch_tokens: int,
    pad: int,
    pin: bool,
) -> _Prepared:
    rows: list[Tokens] = []
    unfed: list[tuple[int, Slot, Tokens]] = []  # row, slot, tokens after the shared ones
    for group in batch:
        first = group.slots[0]
        rows.append(items[first.item].sequence(first.sequence)[: group.shared])
        for slot in group.slots:
            tokens = items[slot.item].sequence(slot.sequence)
            unfed.append((len(rows) - 1, slot, tokens[group.shared : -1]))
    parts = _child_batches(unfed, [len(row) for row in rows], batch_tokens)
    # Where each scored token's prediction is found: (part, row, position), each state once.
    index: list[dict[tuple[int, int], int]] = [{} for _ in range(len(parts) + 1)]
    wanted: list[tuple[int, int]] = []
    targets: list[int] = []
    slots: list[tuple[Slot, int]] = []
    place = {
        slot: (p + 1, r) for p, part in enumerate(parts) for r, (_, slot, _) in enumerate(part)
    }
    for row, slot, _ in unfed:
        item, length = items[slot.item], len(rows[row])
        tokens, start = item.sequence(slot.sequence), item.starts[slot.sequence]
        for position in range(start - 1, len(tokens) - 1):
            part, where = (0, (row, position))
            if position >= length:
                part, child_row = place[slot]
                where = (child_row, position - length)
            wanted.append((part, index[part].setdefault(where, len(index[part]))))
            targets.append(int(tokens[position + 1]))
        slots.append((slot, len(tokens) - start))
    offsets = np.cumsum([0, *(len(states) for states in index)])
    picks = np.array([offsets[part] + state for part, state in wanted], dtype=np.int64)
    order = np.argsort(picks, kind="stable")
    lengths = [len(row) for row in rows]
    return _Prepared(
        rows=_tensors(rows, lengths, index[0], pad, pin),
        children=tuple(
            _tensors([t for _, _, t in part], [r for r, _, _ in part], index[p + 1], pad, pin)
            for p, part in enumerate(parts)
        ),
        picks=_tensor(picks[order], pin),
        targets=_tensor(np.array(targets)[order], pin),
        order=order,
        slots=tuple(slots),
    )


def _child_batches(
    unfed: list[tuple[int, Slot, Tokens]], lengths: list[int], batch_tokens: int
) -> list[list[tuple[int, Slot, Tokens]]]:
    """Children with tokens of their own, longest first, in parts that fit the budget."""
    children = sorted(
        (child for child in unfed if len(child[2])), key=lambda child: (-len(child[2]), child[:2])
    )
    parts: list[list[tuple[int, Slot, Tokens]]] = []
    longest = 0
    for child in children:
        row = child[0]
        if parts:
            count, width = len(parts[-1]) + 1, len(parts[-1][0][2])
            reach = max(longest, lengths[row]) + width
            if count * width <= batch_tokens and count * reach <= CHILD_BUDGET * batch_tokens:
                parts[-1].append(child)
                longest = max(longest, lengths[row])
                continue
        parts.append([child])
        longest = lengths[row]
    return parts


def _tensors(
    rows: Sequence[Tokens],
    parents: Sequence[int],
    states: Mapping[tuple[int, int], int],
    pad: int,
    pin: bool,
) -> _Rows:
    tokens: NDArray[np.int64] = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for r, row in enumerate(rows):
        tokens[r, : len(row)] = row
    return _Rows(
        _tensor(tokens, pin),
        _tensor(parents, pin),
        _tensor([row for row, _ in states], pin),
        _tensor([position for _, position in states], pin),
    )


def _tensor(values: Any, pin: bool) -> Tensor:
    import torch

    made = torch.from_numpy(np.asarray(values, dtype=np.int64))
    return made.pin_memory() if pin else made


def _forward(
    model: Any, kind: TaskKind, batch: _Prepared, device: torch.device, paths: Paths
) -> Tensor:
    """(K, P) fp32: nats of each scored token; for language modeling a second row, 1 where the token
    is the model's first choice.
    """
    import torch

    def to(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    def picked(rows: _Rows, states: Tensor) -> Tensor:
        return states[to(rows.pick_rows), to(rows.pick_positions)]

    rows = batch.rows
    if not paths.hidden:
        states = picked(rows, model.logits(to(rows.tokens)))
    elif not batch.children:
        states = picked(rows, model.hidden(to(rows.tokens)))
    else:
        hidden, cache = model.prefill(to(rows.tokens), to(rows.parents))
        parts = [picked(rows, hidden)]
        del hidden
        for child in batch.children:
            extended = model.extend(cache, to(child.parents), to(child.tokens))
            parts.append(picked(child, extended))
        states = torch.cat(parts)
    picks, targets = to(batch.picks), to(batch.targets)
    values = []
    step = head_rows(model, device.type)
    for begin in range(0, len(states), step):
        chunk = states[begin : begin + step]
        logits = (model.head(chunk) if paths.hidden else chunk).float()  # (n, V)
        first, last = np.searchsorted(batch.picks.numpy(), (begin, begin + step)).tolist()
        at, target = picks[first:last] - begin, targets[first:last]
        if kind == "language_modeling":
            nats = torch.logsumexp(logits, dim=-1)[at] - logits[at, target]
            values.append(torch.stack((nats, (logits.argmax(dim=-1)[at] == target).float())))
        else:
            values.append(-torch.log_softmax(logits, dim=-1)[at, target][None])
    return torch.cat(values, dim=1)


def head_rows(model: EvalModel, device: str) -> int:
    """How many states meet the head at once."""
    return max(1, _HEAD_ELEMENTS.get(device, _HEAD_ELEMENTS["cpu"]) // model.vocab_size)


def _slot_scores(kind: TaskKind, batch: _Prepared, values: Tensor) -> list[SlotScore]:
    tokens = np.empty(values.shape, dtype=np.float32)
    tokens[:, batch.order] = values.cpu().numpy()
    scores, begin = [], 0
    for slot, count in batch.slots:
        part = tokens[:, begin : begin + count]
        score = float(part[1].all()) if kind == "language_modeling" else float(part[0].mean())
        nats = float(part[0].sum(dtype=np.float64))
        if math.isnan(nats):
            raise KitError(
                f"the model's logits are NaN (item {slot.item} of the task)",
                hint="The checkpoint is broken, or its dtype overflows: try --dtype float32.",
            )
        scores.append(SlotScore(slot, score, nats))
        begin += count
    return scores


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text
    )


def _smaller(
    items: Sequence[EncodedItem],
    batch: tuple[Group, ...],
    queue: Sequence[tuple[Group, ...]],
    budget: Budget,
    message: str,
    *,
    alone: bool,
) -> list[tuple[Group, ...]]:
    """What is left to run, `batch` included, in batches half as large as the one that failed."""
    rest = [group for waiting in queue for group in waiting]
    budget.batch_tokens = min(budget.batch_tokens, len(batch) * batch[0].shared)
    budget.halve()
    if len(batch) > 1:
        return fill_batches([*batch, *rest], items, budget.batch_tokens, alone=alone)
    [group] = batch
    longest_child = max(fed_tokens(items, slot) for slot in group.slots) - group.shared
    if not group.childless and budget.batch_tokens >= longest_child:
        return [batch, *fill_batches(rest, items, budget.batch_tokens, alone=alone)]
    if not group.childless:
        singles = [Group(fed_tokens(items, slot), (slot,), True) for slot in group.slots]
        return [(s,) for s in singles] + fill_batches(rest, items, budget.batch_tokens, alone=alone)
    raise PrerequisiteError(
        f"a single prompt of {group.shared} tokens does not fit in memory",
        hint="Free memory, use a smaller --dtype, or a machine with more memory.",
        cause=message,
    )


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs with `count` CPU threads (0: as they are)."""
    import torch

    before = torch.get_num_threads()
    if count > 0:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

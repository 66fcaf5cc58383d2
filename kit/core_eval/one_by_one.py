"""CORE the usual way: one example at a time, all logits, the shared prompt again for each choice.

This is what the evaluator is timed against (`n4090-kit bench core`), and what it has to agree with.
It takes nothing from the fast code but the prompts, and from the model only `encode` and `logits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kit.core_eval.bundle import Item, Task
from kit.core_eval.model import EvalModel, max_seq_len, model_device
from kit.core_eval.prompts import render_prompts

if TYPE_CHECKING:
    from torch import Tensor


class Answer(NamedTuple):
    """Scores of the options (nats a token, or exact match) and whether the item counts as right."""

    scores: list[float]
    correct: bool


def answer_item(model: EvalModel, task: Task, items: Sequence[Item], index: int) -> Answer:
    """One item, alone: its sequences padded to one batch, every logit computed."""
    import torch

    rows = [[model.bos_id, *ids] for ids in model.encode(render_prompts(task, items, index))]
    if task.kind == "language_modeling":
        stem, whole = rows
        rows, starts = [whole], [len(stem)]
    elif task.kind == "multiple_choice":
        starts = [_shared(rows)] * len(rows)
    else:
        end = _shared([row[::-1] for row in rows])
        starts = [len(row) - end for row in rows]
    limit = max_seq_len(model)
    if limit is not None:
        starts = [s - max(0, len(row) - limit) for s, row in zip(starts, rows, strict=True)]
        rows = [row[-limit:] for row in rows]
    width = max(map(len, rows))
    padded = [row + [model.bos_id] * (width - len(row)) for row in rows]
    tokens = torch.tensor(padded, device=model_device(model))
    with torch.inference_mode():
        logits = model.logits(tokens)
        losses = _losses(logits, tokens)
        if task.kind == "language_modeling":
            [start], [row] = starts, rows
            guess = logits[0, start - 1 : len(row) - 1].argmax(dim=-1)
            correct = bool((guess == tokens[0, start : len(row)]).all())
            return Answer([float(correct)], correct)
        scores = [
            losses[i, start - 1 : len(row) - 1].mean().item()
            for i, (start, row) in enumerate(zip(starts, rows, strict=True))
        ]
    return Answer(scores, scores.index(min(scores)) == items[index]["gold"])


def _losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, T) cross-entropy of each next token; the last column is NaN."""
    import torch

    B, T, V = logits.shape
    losses = torch.nn.functional.cross_entropy(
        logits.float().view(B * T, V), tokens.roll(-1, dims=1).view(B * T), reduction="none"
    ).view(B, T)
    losses[:, -1] = float("nan")
    return losses


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows share."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count

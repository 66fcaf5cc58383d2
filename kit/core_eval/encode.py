"""From prompts to tokens: sequences, scored regions, the length limit, and a cache on disk.

An item's sequences are kept as the prefix they share and what follows it, as arrays: the ten-shot
tasks repeat thousands of tokens for each choice.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kit.core_eval.bundle import Bundle, Item, Task, TaskKind, load_items, scored_items
from kit.core_eval.controls import Control, partners, swapped
from kit.core_eval.likelihood import answer_bytes
from kit.core_eval.model import EvalModel, max_seq_len
from kit.core_eval.prompts import render_prompts
from kit.errors import SchemaError

Tokens = NDArray[np.int32]
_ITEMS_AT_ONCE = 64  # bounds the Python lists alive while a task is encoded
_CACHE_FORMAT = 2


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """One item as the model reads it.

    `starts[i]` is where the scored region of sequence i begins; it ends with the sequence. A region
    may be empty (multiple choice, one option a prefix of the others): its score is NaN.
    """

    prefix: Tokens
    suffixes: tuple[Tokens, ...]
    starts: tuple[int, ...]
    gold: int  # 0 for language modeling
    answer_bytes: int = 1  # UTF-8 bytes of the right answer's scored part

    def sequence(self, i: int) -> Tokens:
        return np.concatenate((self.prefix, self.suffixes[i]))

    def length(self, i: int) -> int:
        return len(self.prefix) + len(self.suffixes[i])


def encode_task(
    model: EvalModel,
    bundle: Bundle,
    task: Task,
    *,
    max_per_task: int = -1,
    indices: Sequence[int] | None = None,
    cache: Path | None = None,
    control: Control | None = None,
) -> list[EncodedItem]:
    """The items of `task` in evaluation order, ready to score.

    Args:
        indices: Only these items, their examples still drawn from all (for benchmarks).
        cache: A folder for encoded tasks; used when the model states its `tokenizer_digest`.
        control: Ask every item with another item's text (`controls`); never cached.
    """
    path = None
    if (
        cache is not None
        and indices is None
        and control is None
        and hasattr(model, "tokenizer_digest")
    ):
        path = cache / f"core-{_cache_key(model, bundle, task, max_per_task)}.npz"
        if path.is_file():
            try:
                return _load(path)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)  # a torn file of an earlier crash is made anew
    items = load_items(bundle, task, max_per_task=max_per_task)
    asked = None
    if control is not None:
        others = partners(task, items, control)
        asked = [swapped(task, items[i], items[other], control) for i, other in enumerate(others)]
    chosen = scored_items(items, max_per_task) if indices is None else indices
    encoded = encode_items(model, task, items, chosen, asked=asked)
    if path is not None:
        _save(path, encoded)
    return encoded


def encode_items(
    model: EvalModel,
    task: Task,
    items: Sequence[Item],
    indices: Sequence[int],
    *,
    asked: Sequence[Item] | None = None,
) -> list[EncodedItem]:
    """The items at `indices`, their examples drawn from all of `items`.

    Args:
        asked: For each of `items`, what is asked in its place.
    """
    encoded: list[EncodedItem] = []
    for begin in range(0, len(indices), _ITEMS_AT_ONCE):
        some = indices[begin : begin + _ITEMS_AT_ONCE]
        encoded += _encode_some(model, task, items, some, asked or items)
    return encoded


def _encode_some(
    model: EvalModel,
    task: Task,
    items: Sequence[Item],
    indices: Sequence[int],
    asked: Sequence[Item],
) -> list[EncodedItem]:
    prompts = [render_prompts(task, items, index, asked[index]) for index in indices]
    tokens = iter(model.encode([text for texts in prompts for text in texts]))
    encoded = []
    for index, texts in zip(indices, prompts, strict=True):
        sequences = [np.array([model.bos_id, *next(tokens)], dtype=np.int32) for _ in texts]
        try:
            sequences, starts = scored_regions(task.kind, sequences)
            sequences, starts = crop(sequences, starts, max_seq_len(model))
        except ValueError as error:
            raise SchemaError(f"task {task.label}, item {index}: {error}") from error
        common = common_prefix(sequences) if len(sequences) > 1 else len(sequences[0])
        encoded.append(
            EncodedItem(
                prefix=sequences[0][:common],
                suffixes=tuple(sequence[common:] for sequence in sequences),
                starts=tuple(starts),
                gold=(gold := _gold(task, items[index])),
                answer_bytes=answer_bytes(task.kind, texts, gold),
            )
        )
    return encoded


def _gold(task: Task, item: Item) -> int:
    return 0 if task.kind == "language_modeling" else int(item.get("gold", 0))


def scored_regions(kind: TaskKind, sequences: Sequence[Tokens]) -> tuple[list[Tokens], list[int]]:
    """The sequences to run, and where the scored region of each begins (it ends with the sequence).

    Raises:
        ValueError: A language-modeling prompt whose tokens do not begin with those of its stem.
    """
    if kind == "multiple_choice":
        start = common_prefix(sequences)
        return list(sequences), [start] * len(sequences)
    if kind == "schema":
        common = common_prefix([sequence[::-1] for sequence in sequences])
        # Options that are equal down to the first token leave nothing to predict from: empty.
        lengths = [len(sequence) for sequence in sequences]
        return list(sequences), [n - common if common < n else n for n in lengths]
    stem, whole = sequences
    if len(stem) >= len(whole) or not np.array_equal(whole[: len(stem)], stem):
        raise ValueError(
            "the tokens of the prompt do not begin with those of the prompt without its answer; "
            "this tokenizer joins across the border, and exact match is undefined"
        )
    return [whole], [len(stem)]


def crop(
    sequences: Sequence[Tokens], starts: Sequence[int], limit: int | None
) -> tuple[list[Tokens], list[int]]:
    """Keeps the last `limit` tokens of each sequence; the regions move with them.

    Raises:
        ValueError: A scored region that would begin outside what is kept.
    """
    if limit is None:
        return list(sequences), list(starts)
    kept, moved = [], []
    for sequence, start in zip(sequences, starts, strict=True):
        cut = max(0, len(sequence) - limit)
        if start - cut < 1:
            raise ValueError(
                f"a prompt of {len(sequence)} tokens, scored from token {start}, does not fit the "
                f"model's limit of {limit}: its scored part would begin outside"
            )
        kept.append(sequence[cut:])
        moved.append(start - cut)
    return kept, moved


def common_prefix(sequences: Sequence[Tokens]) -> int:
    """How many first tokens all the sequences share."""
    shortest = min(len(sequence) for sequence in sequences)
    first = sequences[0][:shortest]
    common = shortest
    for sequence in sequences[1:]:
        different = np.flatnonzero(first[:common] != sequence[:common])
        if len(different):
            common = int(different[0])
    return common


def _cache_key(model: EvalModel, bundle: Bundle, task: Task, max_per_task: int) -> str:
    facts = {
        "format": _CACHE_FORMAT,
        "bundle": bundle.digest,
        "task": [task.label, task.kind, task.shots, task.delimiter],
        "max_per_task": max(max_per_task, -1),
        "tokenizer": str(getattr(model, "tokenizer_digest", "")),
        "bos": model.bos_id,
        "max_seq_len": max_seq_len(model),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _save(path: Path, items: Sequence[EncodedItem]) -> None:
    parts = [part for item in items for part in (item.prefix, *item.suffixes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            tokens=np.concatenate(parts),
            part_lengths=np.array([len(part) for part in parts], dtype=np.int32),
            starts=np.array([start for item in items for start in item.starts], dtype=np.int32),
            sequences=np.array([len(item.suffixes) for item in items], dtype=np.int32),
            gold=np.array([item.gold for item in items], dtype=np.int32),
            answer_bytes=np.array([item.answer_bytes for item in items], dtype=np.int32),
        )
    temporary.replace(path)


def _load(path: Path) -> list[EncodedItem]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        tokens, starts = stored["tokens"], stored["starts"].tolist()
        parts = np.split(tokens, np.cumsum(stored["part_lengths"])[:-1])
        sequences, gold = stored["sequences"].tolist(), stored["gold"].tolist()
        sizes = stored["answer_bytes"].tolist()
    if len(parts) != sum(sequences) + len(sequences) or len(starts) != sum(sequences):
        raise ValueError("lengths disagree")
    items, part, start = [], 0, 0
    for count, answer, size in zip(sequences, gold, sizes, strict=True):
        items.append(
            EncodedItem(
                prefix=parts[part],
                suffixes=tuple(parts[part + 1 : part + 1 + count]),
                starts=tuple(starts[start : start + count]),
                gold=answer,
                answer_bytes=size,
            )
        )
        part, start = part + 1 + count, start + count
    return items

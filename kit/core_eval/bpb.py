"""Bits per byte: how many bits a model needs for a byte of text, whatever its tokenizer.

The one definition: each text is tokenized on its own and cut into windows of at most `seq_len`
tokens; BOS goes in front of each window; every token of the text is predicted once. The nats add
up, and are divided by ln 2 times the UTF-8 bytes of the texts. So no token and no byte is left out,
and two tokenizers divide by the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kit.core_eval.model import EvalModel, Paths, max_seq_len, model_device, offered_paths
from kit.core_eval.score import head_rows
from kit.errors import KitError, PrerequisiteError, SchemaError

READERS = "n4090_kit.readers"
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class BitsPerByte:
    """The figure and what it was made of."""

    nats: float
    bytes: int
    tokens: int
    texts: int

    @property
    def bpb(self) -> float:
        return self.nats / (math.log(2) * self.bytes)

    def to_json(self) -> dict[str, Any]:
        return {"bpb": self.bpb, **vars(self), "nats_per_token": self.nats / self.tokens}


def evaluate_bpb(
    model: EvalModel,
    texts: Iterable[str],
    *,
    seq_len: int = 1024,
    batch_tokens: int = 2048,
    paths: Paths | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[BitsPerByte], None] = lambda so_far: None,
) -> BitsPerByte:
    """Bits per byte of `texts` under `model`.

    Args:
        seq_len: Tokens in a window, BOS apart; no more than the model's own limit.
        progress: Receives the figure so far, after every few hundred texts or fewer.
        note: Receives a sentence for each fast way of computing that the model does not allow.

    Raises:
        SchemaError: The texts hold no bytes, or the model is not a causal language model.
    """
    from kit.core_eval.probes import PathProof

    proof = PathProof(model, note) if paths is None else None
    paths = paths or offered_paths(model)
    limit = max_seq_len(model)
    if limit is not None:
        seq_len = min(seq_len, limit - 1)
    nats, size, count, documents = 0.0, 0, 0, 0
    for group, tokens in _encoded(model, texts):
        windows = [
            ids[begin : begin + seq_len] for ids in tokens for begin in range(0, len(ids), seq_len)
        ]
        windows.sort(key=len, reverse=True)
        if proof is not None and windows:
            paths = proof.paths(len(windows[0]))
        while windows:
            rows = max(1, round(batch_tokens / (len(windows[0]) + 1))) if paths.batch else 1
            nats += _nats(model, windows[:rows], paths)
            windows = windows[rows:]
        count += sum(map(len, tokens))
        size += sum(len(text.encode()) for text in group)
        documents += len(group)
        if size:
            progress(BitsPerByte(nats, size, count, documents))
    if not count or not size:
        raise SchemaError("there is no text to measure bits per byte on")
    return BitsPerByte(nats, size, count, documents)


def _encoded(
    model: EvalModel, texts: Iterable[str]
) -> Iterator[tuple[list[str], Sequence[Sequence[int]]]]:
    """Groups of texts with their tokens; the next group is encoded while one is scored."""
    groups = _chunks(texts, _TEXTS_AT_ONCE)
    with ThreadPoolExecutor(1) as worker:
        group = next(groups, None)
        waiting = None if group is None else worker.submit(model.encode, group)
        while group is not None and waiting is not None:
            tokens = waiting.result()
            upcoming = next(groups, None)
            waiting = None if upcoming is None else worker.submit(model.encode, upcoming)
            yield group, tokens
            group = upcoming


def read_texts(paths: Sequence[Path], *, column: str = "text") -> Iterator[str]:
    """The texts of .parquet (a column), .jsonl (a field) and .txt (one text a file) files.

    A folder stands for its validation shard: the files named validation*, else the last by name.
    The reader is the trainer's (entry point `n4090_kit.readers`), so that an evaluation and a
    training read the same texts from the same file.

    Raises:
        SchemaError: What cannot be read, with file, place and remedy.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise PrerequisiteError(f"there is no file {missing[0]}")
    try:
        yield from _reader()(paths, column=column)
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            f"these files need the package {error.name}",
            hint='in the checkout: pip install ".[train]"',
        ) from error
    except Exception as error:
        message = getattr(error, "message", None)
        if isinstance(error, KitError) or not isinstance(message, str):
            raise
        raise SchemaError(message, hint=getattr(error, "hint", None) or None) from error


def _reader() -> Callable[..., Iterator[str]]:
    for entry in entry_points(group=READERS):
        found: Callable[..., Iterator[str]] = entry.load()
        return found
    raise PrerequisiteError(
        "no trainer is installed that reads texts", hint="in the checkout: pip install -e ."
    )


def _nats(model: Any, windows: Sequence[Sequence[int]], paths: Paths) -> float:
    """Summed cross-entropy of all tokens of the windows, each after BOS."""
    import torch

    device = model_device(model)
    width = max(map(len, windows))
    tokens = torch.full((len(windows), width + 1), model.bos_id)
    real = torch.zeros(len(windows), width, dtype=torch.bool)
    for row, window in enumerate(windows):
        tokens[row, 1 : len(window) + 1] = torch.tensor(window)
        real[row, : len(window)] = True
    tokens, real = tokens.to(device), real.to(device)
    total = 0.0
    with torch.inference_mode():
        inputs = tokens[:, :-1]
        states = (model.hidden(inputs) if paths.hidden else model.logits(inputs))[real]
        targets = tokens[:, 1:][real]
        step = head_rows(model, device.split(":")[0])
        for begin in range(0, len(states), step):
            chunk = states[begin : begin + step]
            logits = (model.head(chunk) if paths.hidden else chunk).float()
            target = targets[begin : begin + step]
            losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
            total += losses.double().sum().item()
    return total


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group

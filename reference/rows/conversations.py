"""Conversations as rows to learn from: read, held out, packed whole and padded.

What stage `sft` trains on, and what pretraining may mix into its tail (`reference.rows.mixing`).
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reference.chat.conversation import (
    Message,
    Rendered,
    read_conversations,
    render,
    source_times,
)
from reference.errors import TrainerError
from reference.rows.packing import Batch, ShuffledBuffer
from reference.tokenizer.bpe import Tokenizer

HELD_OUT_SHARE = 0.02
MAX_HELD_OUT = 512
# Stages have seeds of their own. Where two of them read the conversations, both hold out the same.
SHARED_HOLD_OUT_SEED = 4090
BUFFER_CONVERSATIONS = 200


class Conversations(NamedTuple):
    """Rendered conversations, and what did not fit into a row.

    `times` says how often each is read for each time of the others.
    """

    rendered: list[Rendered]
    truncated: int
    dropped: int
    times: list[int]


def load_conversations(
    sources: Sequence[Path],
    tokenizer: Tokenizer,
    seq_len: int,
    threads: int,
    names: Sequence[str] = (),
) -> Conversations:
    """The conversations of `sources`, in order, each at most seq_len + 1 tokens.

    Args:
        names: `sft.sources`: a file named NAME*3 is read three times.

    Raises:
        TrainerError: A line is no conversation, or none is left to learn from.
    """
    rendered: list[Rendered] = []
    times: list[int] = []
    repeated = source_times(names)
    truncated = dropped = 0

    def compact(talk: list[Message]) -> tuple[Rendered, bool]:
        """Five bytes a token: as lists, a day's finetuning would fill several GB."""
        whole = render(tokenizer, talk)
        ids, mask = whole.ids[: seq_len + 1], whole.mask[: seq_len + 1]
        return Rendered(array("i", ids), array("b", mask)), len(whole.ids) > len(ids)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for path in sources:
            for item, cut in pool.map(compact, read_conversations(path)):
                truncated += cut
                if any(item.mask):
                    rendered.append(item)
                    times.append(repeated.get(path.stem, 1))
                else:
                    dropped += 1
    if len(rendered) < 2:
        raise TrainerError(
            "bad_input",
            f"{len(rendered)} conversation(s) with an answer within {seq_len} tokens in "
            + ", ".join(str(path) for path in sources),
            "Add conversations to the sft folder, or raise model.seq_len.",
        )
    return Conversations(rendered, truncated, dropped, times)


def hold_out_seed(recipe: Mapping[str, Any], stage_seed: int) -> int:
    """The seed conversations are held out by: one for both stages where pretraining reads them.

    Otherwise the finetuning would be judged by conversations that its base model has seen.
    """
    return SHARED_HOLD_OUT_SEED if recipe["pretrain"].get("sft_share") else stage_seed


def hold_out(
    conversations: Sequence[Rendered], seed: int, times: Sequence[int] = ()
) -> tuple[list[Rendered], list[Rendered]]:
    """(to learn from, held out): a function of the arguments alone.

    Args:
        times: How often each is learnt from; empty: once. What is held out is never among them.
    """
    count = min(MAX_HELD_OUT, max(1, int(HELD_OUT_SHARE * len(conversations))))
    chosen = set(random.Random(seed).sample(range(len(conversations)), count))
    train = [
        item
        for i, item in enumerate(conversations)
        if i not in chosen
        for _ in range(times[i] if times else 1)
    ]
    return train, [conversations[i] for i in sorted(chosen)]


class ConversationLoader:
    """Endless batches of whole conversations, best-fit packed and padded.

    Args:
        pad_id: Input token of padding; its targets are -1.
        state: Continue from a `state_dict`.
    """

    uneven, by_row, waited_s = True, False, 0.0

    def __init__(
        self,
        conversations: Sequence[Rendered],
        batch_size: int,
        seq_len: int,
        seed: int,
        pad_id: int,
        device: str | torch.device = "cpu",
        state: dict[str, Any] | None = None,
    ) -> None:
        self._conversations = conversations
        self.batch_size, self._seq_len, self._pad_id = batch_size, seq_len, pad_id
        self._device = torch.device(device)
        lengths = np.array([len(item.ids) for item in conversations])
        self._buffer = ShuffledBuffer(lengths, BUFFER_CONVERSATIONS, seed)
        if state is not None:
            self._buffer.load_state_dict(state)

    def next_batch(self) -> Batch:
        """(tokens, targets), each (B, T) int64."""
        rows = [self.next_row() for _ in range(self.batch_size)]
        return padded_batch(rows, self.batch_size, self._seq_len, self._pad_id, self._device)

    def state_dict(self) -> dict[str, Any]:
        return self._buffer.state_dict()

    def at(self, progress: float) -> None:
        """All of a run reads the same conversations."""

    def resize(self, batch_size: int, seq_len: int) -> None:
        """Makes batches of another number of rows; rows keep their length."""
        if seq_len != self._seq_len:
            raise ValueError(
                f"seq_len cannot change from {self._seq_len} to {seq_len}: rows are already cut"
            )
        self.batch_size = batch_size

    def next_row(self) -> Rendered:
        """Whole conversations, at most seq_len + 1 tokens."""
        ids: list[int] = []
        mask: list[int] = []
        index: int | None = self._buffer.take_first()
        while index is not None:
            ids.extend(self._conversations[index].ids)
            mask.extend(self._conversations[index].mask)
            index = self._buffer.take(self._seq_len + 1 - len(ids), or_shortest=False)
        return Rendered(ids, mask)


def padded_batch(
    rows: Sequence[Rendered],
    batch_size: int,
    seq_len: int,
    pad_id: int,
    device: torch.device | str,
) -> Batch:
    """Rows of at most seq_len + 1 tokens -> (tokens, targets), each (B, T); -1 where not learnt."""
    ids = torch.full((batch_size, seq_len + 1), pad_id, dtype=torch.int64)
    mask = torch.zeros((batch_size, seq_len + 1), dtype=torch.bool)
    for row, item in enumerate(rows):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        mask[row, : len(item.ids)] = torch.tensor(item.mask, dtype=torch.bool)
    targets = ids[:, 1:].masked_fill(~mask[:, 1:], -1)
    return Batch(ids[:, :-1].contiguous().to(device), targets.to(device))


def held_out_batches(
    conversations: Sequence[Rendered],
    batch_size: int,
    seq_len: int,
    pad_id: int,
    device: torch.device | str,
) -> Iterator[Batch]:
    """The held-out conversations, one a row, in order."""
    for begin in range(0, len(conversations), batch_size):
        rows = conversations[begin : begin + batch_size]
        yield padded_batch(rows, batch_size, seq_len, pad_id, device)

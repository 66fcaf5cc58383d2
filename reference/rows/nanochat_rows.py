"""Rows as nanochat packs them, for bits per byte by its definition.

nanochat's validation reads packed rows: documents of a buffer, largest first where they fit, else
the shortest one cut to fill the row; what is cut off is dropped, and a token sees the documents
before its own in the row. This trainer's own val_bpb reads every token of a document and nothing
else. The same weights differ by a few percent between the two (with both signs), so a law or a
rule that was fitted to nanochat's figures is compared with this one.

References:
    https://github.com/karpathy/nanochat, nanochat/dataloader.py and nanochat/loss_eval.py
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator

import numpy as np
import torch

from reference.rows.packing import Batch, DocumentSource

BUFFER_DOCUMENTS = 1000


def packed_rows(
    documents: DocumentSource, row_tokens: int, *, buffer_size: int = BUFFER_DOCUMENTS
) -> Iterator[np.ndarray]:
    """Rows of `row_tokens` tokens, in corpus order, until the documents do not fill another."""
    # Sorted by length; of equal lengths the first to come is the first to go, as in a plain search.
    lengths: list[tuple[int, int]] = []
    following = 0
    while True:
        row: list[np.ndarray] = []
        left = row_tokens
        while left:
            while len(lengths) < buffer_size and following < len(documents):
                insort(lengths, (len(documents[following]), -following))
                following += 1
            if not lengths:
                return
            fits = bisect_right(lengths, (left, 0))
            _, index = lengths.pop(fits - 1 if fits else first_of_shortest(lengths))
            row.append(documents[-index][:left])
            left -= len(row[-1])
        yield np.concatenate(row)


def first_of_shortest(lengths: list[tuple[int, int]]) -> int:
    """The place of the document that came first among the shortest ones."""
    return bisect_right(lengths, (lengths[0][0], 0)) - 1


def nanochat_batches(
    documents: DocumentSource,
    batch_size: int,
    seq_len: int,
    *,
    max_tokens: int,
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """Batches (batch_size, seq_len) of packed rows with `max_tokens` targets in all, whole batches.

    A corpus too small for one batch gives one padded with targets of -1.
    """
    rows: list[np.ndarray] = []
    wanted, made = max(1, max_tokens // (batch_size * seq_len)), 0
    for row in packed_rows(documents, seq_len + 1):
        rows.append(row)
        if len(rows) == batch_size:
            yield _batch(rows, device)
            rows, made = [], made + 1
            if made == wanted:
                return
    if rows and not made:
        yield _batch(rows + [np.full(seq_len + 1, -1)] * (batch_size - len(rows)), device)


def _batch(rows: list[np.ndarray], device: str | torch.device) -> Batch:
    table = torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)
    return Batch(table[:, :-1].clamp_min(0).contiguous(), table[:, 1:].contiguous())

"""nanochat's validation rows, against a plain search through its buffer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.rows.nanochat_rows import nanochat_batches, packed_rows


def corpus(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([[0], rng.integers(1, 90, size=rng.integers(0, 40))]) for _ in range(count)
    ]


def by_search(documents: list[np.ndarray], row_tokens: int, size: int) -> list[list[int]]:
    """The published loop: largest that fits, else the shortest cut; over a finite corpus."""
    waiting, buffer, rows = list(documents), [], []
    while True:
        row: list[int] = []
        while len(row) < row_tokens:
            while len(buffer) < size and waiting:
                buffer.append(waiting.pop(0))
            if not buffer:
                return rows
            left, best = row_tokens - len(row), -1
            for i, document in enumerate(buffer):
                if len(document) <= left and (best < 0 or len(document) > len(buffer[best])):
                    best = i
            if best < 0:
                best = min(range(len(buffer)), key=lambda i: len(buffer[i]))
            row += buffer.pop(best)[:left].tolist()
        rows.append(row)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_rows_are_those_of_the_published_loop(size: int) -> None:
    documents = corpus(size, 150)
    found = [row.tolist() for row in packed_rows(documents, 33, buffer_size=size)]
    assert found == by_search(documents, 33, size)
    assert len(found) > 20 and all(row[0] == 0 for row in found)


def test_batches_are_whole_and_stop_at_the_tokens_asked_for() -> None:
    documents = corpus(5, 200)
    rows = [torch.from_numpy(row) for row in packed_rows(documents, 17)]
    batches = list(nanochat_batches(documents, 4, 16, max_tokens=3 * 64 + 5))
    assert len(batches) == 3
    for i, (tokens, targets) in enumerate(batches):
        expected = torch.stack(rows[4 * i : 4 * i + 4])
        assert torch.equal(tokens, expected[:, :-1]) and torch.equal(targets, expected[:, 1:])
    [(tokens, targets)] = nanochat_batches(documents[:3], 64, 16, max_tokens=10**6)
    assert (targets[-1] == -1).all() and (tokens >= 0).all() and (targets[0] >= 0).all()
    assert list(nanochat_batches(documents[:1], 4, 64, max_tokens=100)) == []

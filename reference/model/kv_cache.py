"""The keys and values of generation: what a model has read so far, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.config.model import ModelConfig
from reference.train.device import resolve_dtype


class KVCache:
    """Keys and values of the tokens so far, for rows of their own lengths.

        cache = KVCache(config, 1, 512, device, dtype)
        model.hidden(prompt, cache)              # once, (1, T)
        cache = cache.expand(8)                  # eight continuations of it
        model.hidden(tokens, cache)              # (8, t): any t, not only 1

    Rows with fewer real tokens than the others are padded at the right:
    `cache.append_counts([5, 3, 7])` before a call with 7 columns makes row 1 keep 3 of them. What
    the padding left behind is never seen and is overwritten by the next call.

    Args:
        max_len: Positions to hold; a call that needs more raises ValueError.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        self.config, self.batch, self.max_len = config, batch, max_len
        self.device = torch.device(device)
        self.dtype = resolve_dtype(dtype, device)
        shape = (config.n_layer, batch, max_len, config.n_kv_head, config.head_dim)
        self.keys = torch.zeros(shape, device=self.device, dtype=self.dtype)
        self.values = torch.zeros(shape, device=self.device, dtype=self.dtype)
        # The last token's embedding before smear; zero means there is none, and adds nothing.
        self.previous = torch.zeros((batch, config.n_embd), device=self.device, dtype=self.dtype)
        self.lengths: list[int] = [0] * batch  # tokens of each row, known without asking a GPU
        self._counts: list[int] | None = None

    def append_counts(self, counts: Sequence[int]) -> None:
        """Says how many of the next call's columns are real tokens, row by row."""
        if len(counts) != self.batch or min(counts) < 0:
            raise ValueError(f"counts {list(counts)} for {self.batch} rows")
        self._counts = list(counts)

    def expand(self, batch: int) -> KVCache:
        """A cache of `batch` rows that all continue this one's only row."""
        if self.batch != 1:
            raise ValueError(f"expand needs a cache of one row, this one has {self.batch}")
        return self.select([0] * batch)

    def select(self, rows: Sequence[int]) -> KVCache:
        """A cache of copies of `rows`, in that order; rows may repeat or be missing."""
        other = KVCache(self.config, len(rows), self.max_len, self.device, self.dtype)
        filled = max((self.lengths[row] for row in rows), default=0)
        index = torch.tensor(list(rows), device=self.device)
        other.keys[:, :, :filled] = self.keys[:, index, :filled]
        other.values[:, :, :filled] = self.values[:, index, :filled]
        other.previous = self.previous[index]
        other.lengths = [self.lengths[row] for row in rows]
        return other

    # What the model calls, in this order.

    def begin(self, T: int) -> None:
        """Opens a call of T columns."""
        counts = self._counts or [T] * self.batch
        if max(counts) > T:
            raise ValueError(f"counts {counts} exceed the {T} columns of the call")
        needed = max(self.lengths, default=0) + T
        if needed > self.max_len:
            raise ValueError(f"{needed} positions exceed the cache's max_len {self.max_len}")
        self._counts, self._T = counts, T
        self._even = len(set(self.lengths)) <= 1
        self.is_new = max(self.lengths, default=0) == 0
        lengths = torch.tensor(self.lengths, device=self.device)
        self.positions = lengths[:, None] + torch.arange(T, device=self.device)  # (B, T)
        self._masks: dict[int, Tensor | None] = {}

    def exchange_previous(self, x: Tensor) -> Tensor:
        """Each column's predecessor of embeddings x (B, T, C); remembers the last real one."""
        joined = torch.cat([self.previous[:, None], x], dim=1)  # (B, 1 + T, C)
        counts = torch.tensor(self._counts, device=self.device)
        self.previous = joined[torch.arange(self.batch, device=self.device), counts]
        return joined[:, :-1]

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keeps the call's k, v (B, T, G, D)."""
        if self._even:
            start = self.lengths[0]
            self.keys[layer, :, start : start + self._T] = k
            self.values[layer, :, start : start + self._T] = v
        else:
            rows = torch.arange(self.batch, device=self.device)[:, None]
            self.keys[layer, rows, self.positions] = k
            self.values[layer, rows, self.positions] = v

    def in_reach(self, layer: int, window: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The stored keys and values in reach of the call, (B, S, G, D), and a mask."""
        first = max(0, min(self.lengths) - window + 1)
        stop = max(self.lengths) + self._T
        if window not in self._masks:
            self._masks[window] = self._mask(first, stop, window)
        return (
            self.keys[layer, :, first:stop],
            self.values[layer, :, first:stop],
            (self._masks[window]),
        )

    def _mask(self, first: int, stop: int, window: int) -> Tensor | None:
        """(B, 1, T, S) where a query may look; None where that is everywhere."""
        if self._even and self._T == 1:
            return None  # `first` already cuts the window
        rows = self.positions[:1] if self._even else self.positions
        query = rows[:, :, None]  # (B, T, 1)
        key = torch.arange(first, stop, device=self.device)
        return ((key <= query) & (key > query - window))[:, None]

    def commit(self) -> None:
        """Closes the call: the rows are longer by their real tokens."""
        assert self._counts is not None
        self.lengths = [n + count for n, count in zip(self.lengths, self._counts, strict=True)]
        self._counts = None

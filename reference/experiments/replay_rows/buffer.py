"""Rows of the run worth seeing again, judged by losses that training computes anyway.

A high loss alone selects noise: garbled text, tables of numbers and rare languages keep a high loss
however often they are read. What counts here is learning progress: how far a row's loss fell
between two looks at it, beyond the fall of the mean loss in that time. Noise does not fall, and
text that was known already has nowhere to fall; both have a value near 0 and are given up. A row
that has been learnt by heart falls no further, so repetition ends by itself.

The first look at a row is the first pass. Rows enter by reservoir sampling, each as likely as any
other. The second is its first replay: half of the replays are such looks, the other half goes to
the row of the highest value. No forward pass is spent on judging, so a step costs what it always
does.

References:
    Learning progress as the value of an example: https://arxiv.org/abs/1704.03003
    Why loss alone picks noise, and reducible loss does not: https://arxiv.org/abs/2206.07137
    A few repetitions are worth nearly as much as new text: https://arxiv.org/abs/2305.16264
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class ReplayBuffer:
    """A bounded set of rows, each with the loss of its last look and what that look taught.

    Losses come in relative to the mean loss of their time. All that happens is a function of the
    arguments and calls alone.

    Args:
        capacity: Rows kept.
        row_tokens: Tokens of a row.
        seed: Decides which rows of the first pass enter.
        state: Continue from a `state_dict`.
    """

    def __init__(
        self, capacity: int, row_tokens: int, seed: int, state: dict[str, Any] | None = None
    ) -> None:
        self.capacity, self.row_tokens, self._seed = capacity, row_tokens, seed
        self.rows = np.zeros((capacity, row_tokens), dtype=np.int32)
        self._relative = np.zeros(capacity)
        self._value = np.full(capacity, np.nan)  # NaN: looked at once
        self._arrival = np.zeros(capacity, dtype=np.int64)
        self._offered = self._draws = self._count = 0
        self._drawn: set[int] = set()  # in this step; their losses are yet to come
        if state is not None:
            self._count = count = len(state["value"])
            self._offered, self._draws = state["offered"], state["draws"]
            for name, array in self._arrays().items():
                array[:count] = state[name].numpy()

    def __len__(self) -> int:
        return self._count

    def offer(self, row: np.ndarray, relative: float) -> None:
        """Lets a row of the first pass in, or not; `relative` is its loss less the mean.

        A full buffer gives up a row that taught less than others did, the least valuable one;
        without any, a random one that nothing is known of yet.
        """
        self._offered += 1
        slot = self._count
        if slot == self.capacity:
            known = np.where(np.isnan(self._value), np.inf, self._value)
            slot = int(known.argmin())
            if known[slot] > 0:
                draw = np.random.default_rng([self._seed, self._offered])
                slot = int(draw.integers(self._offered))
                if slot >= self.capacity or not np.isnan(self._value[slot]):
                    return
        else:
            self._count += 1
        self.rows[slot], self._relative[slot] = row, relative
        self._value[slot], self._arrival[slot] = np.nan, self._offered

    def draw(self, count: int) -> list[int]:
        """Places of up to `count` rows to train on next, none twice before `saw` or `forget`.

        In turn the row that has waited longest for its second look and the most valuable one.
        Fewer where there are no more rows of either kind.
        """
        slots: list[int] = []
        free = np.ones(self._count, dtype=bool)
        free[list(self._drawn)] = False
        value, arrival = self._value[: self._count], self._arrival[: self._count]
        for _ in range(count):
            unknown = np.flatnonzero(free & np.isnan(value))
            worth = np.flatnonzero(free & (value > 0))
            if not len(unknown) and not len(worth):
                break
            if len(unknown) and (not len(worth) or self._draws % 2 == 0):
                slot = int(unknown[arrival[unknown].argmin()])
            else:
                slot = int(worth[value[worth].argmax()])
            self._draws += 1
            free[slot] = False
            slots.append(slot)
        self._drawn.update(slots)
        return slots

    def saw(self, slots: list[int], relative: np.ndarray) -> None:
        """The drawn rows' losses, less the mean: what this look taught is their fall."""
        for slot, now in zip(slots, relative, strict=True):
            self._value[slot] = self._relative[slot] - now
            self._relative[slot] = now
            self._drawn.discard(slot)

    def forget(self) -> None:
        """What was drawn was not trained on."""
        self._drawn.clear()

    def state_dict(self) -> dict[str, Any]:
        """Between steps: what it takes to go on."""
        arrays = {
            name: torch.from_numpy(array[: self._count].copy())
            for name, array in self._arrays().items()
        }
        return {"offered": self._offered, "draws": self._draws, **arrays}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"rows": self.rows, "relative": self._relative, "value": self._value,
                "arrival": self._arrival}  # fmt: skip

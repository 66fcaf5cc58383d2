"""When a run diverges, and what is left to try."""

from __future__ import annotations

import math
from typing import Any


class Divergence:
    """Sees a run diverge, and counts how often it went back to a checkpoint for it.

    The training goes on from the old weights with new data and half the learning rate: the same
    steps on the same data would end alike.

    Args:
        nats: A finite loss counts as divergence when it is this far above the running mean.
        rollbacks: How often a run may go back.
    """

    def __init__(self, nats: float, rollbacks: int) -> None:
        self.nats, self.rollbacks = nats, rollbacks
        self.count = 0
        self._mean: float | None = None

    def seen(self, loss: float) -> bool:
        """Whether this step's loss says so; otherwise it enters the running mean."""
        too_high = self._mean is not None and loss > self._mean + self.nats
        # A finite jump ends nothing where no going back was asked for.
        if not math.isfinite(loss) or (too_high and self.rollbacks):
            return True
        self._mean = loss if self._mean is None else 0.95 * self._mean + 0.05 * loss
        return False

    def forget(self) -> None:
        """Begins the running mean anew: the model has become another one."""
        self._mean = None

    def may_go_back(self) -> bool:
        return self.count < self.rollbacks

    def went_back(self) -> None:
        self.count += 1
        self._mean = None

    @property
    def lr_factor(self) -> float:
        return 0.5**self.count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self._mean = state.get("count", 0), state.get("mean")

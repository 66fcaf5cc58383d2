"""Muon²: Adam's second moment before the orthogonalization (arXiv 2604.09967)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reference.config.experiment import Experiment, NoFields
from reference.optim.rules import Muon, Settings, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from reference.optim.rules import State

SQUARES_BETA2 = 0.95  # as published
EPS = 1e-10


class Muon2(Muon):
    """Muon whose momentum is divided by the root of the gradients' running squares."""

    def new_state(self, like: Tensor, device: torch.device) -> State:
        squares = like.new_zeros(like.shape, device=device)
        return {**super().new_state(like, device), "exp_avg_sq": squares}

    def direction(self, gradients: Tensor, state: State, group: Settings) -> Tensor | None:
        return self._run(muon2_update, gradients, state, group, state["exp_avg_sq"])

    def state_bytes(self, shape: Shape) -> int:
        return super().state_bytes(shape) + 4 * shape[0] * shape[1]


def muon2_update(
    update: Tensor,
    momentum: Tensor,
    second_moment: Tensor,
    rate: Tensor | float,
    beta2: float,
    squares: Tensor,
) -> Tensor:
    """`reference.optim.muon.muon_update` with the second moment `squares` (K, m, n)."""
    from reference.optim.muon import advance, orthogonal_step

    squares.lerp_(update.square(), 1.0 - SQUARES_BETA2)
    mixed = advance(momentum, update, rate)
    update = update.lerp_(mixed, rate).div_(squares.sqrt().add_(EPS))
    return orthogonal_step(update, second_moment, beta2)


def _rules() -> dict[str, type[Any]]:
    return {"muon2": Muon2}


EXPERIMENT = Experiment(
    name="muon2",
    fields=NoFields,
    asked=lambda section: section.get("matrix_optimizer") == "muon2",
    rules=_rules,
)

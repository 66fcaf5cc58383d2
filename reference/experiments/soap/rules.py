"""SOAP and SOAP-Muon as rules for matrices, on the arithmetic of `soap.py` beside this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reference.optim.rules import Muon, Settings, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from reference.optim.rules import State

MAX_DIM, REFRESH_STEPS = 2048, 10  # where a group of matrices does not say
BETA2 = {"soap": 0.95, "soap_muon": 0.90}  # of squares and covariances, as published with each


def rotated_sides(shape: Shape, max_dim: int) -> dict[str, int]:
    """The sides whose basis is turned, with their lengths."""
    sides = zip(("left", "right"), shape, strict=True)
    return {side: size for side, size in sides if size <= max_dim}


class Soap(Muon):
    """Adam in the eigenbasis of Shampoo's covariances, scaled so that Muon's rate fits."""

    counters = ("updates", "momentum_left")
    beta2 = BETA2["soap"]

    def __init__(self, settings: Settings, *, compiled: bool = False) -> None:
        super().__init__(settings, compiled=compiled)
        self.max_dim: int = settings.get("max_dim", MAX_DIM)

    @staticmethod
    def settings(section: Settings) -> dict[str, Any]:
        return {
            **Muon.settings(section),
            "refresh_steps": section.get("soap_refresh_steps", REFRESH_STEPS),
            "max_dim": section.get("soap_max_dim", MAX_DIM),
        }

    def new_state(self, like: Tensor, device: torch.device) -> State:
        import torch

        K, m, n = like.shape
        squares = torch.zeros((K, m, n), device=device)
        state = {**self.momentum(like, device), "exp_avg_sq": squares}
        for side, size in rotated_sides((m, n), self.max_dim).items():
            state[side] = torch.zeros((K, size, size), device=device)
            state[side + "_basis"] = torch.eye(size, device=device).repeat(K, 1, 1)
        return state

    def begin_step(self, group: dict[str, Any]) -> None:
        # On the host, so that a step waits for no device; part of the state.
        group["updates"] = group.get("updates", 0) + 1
        left = group.get("momentum_left", 1.0)  # share of the first moment's zero start
        group["momentum_left"] = left * group["momentum"] if group["updates"] > 1 else left

    def direction(self, gradients: Tensor, state: State, group: Settings) -> Tensor | None:
        from reference.experiments.soap import soap

        step = group["updates"]
        soap.add_to_covariances(state, gradients, self.beta2)
        update = self._update(gradients, state, group, step)
        if step == 1:
            soap.first_bases(state)
        elif soap.refresh_due(step, group.get("refresh_steps", REFRESH_STEPS)):
            soap.refresh_bases(state)
        return update

    def _update(self, gradients: Tensor, state: State, group: Settings, step: int) -> Tensor | None:
        """The direction; None where the first gradient only sets the bases."""
        from reference.experiments.soap import soap

        if step == 1:
            return None
        return soap.soap_update(
            gradients,
            state["momentum"],
            state,
            rate=group["momentum"],
            beta2=self.beta2,
            corrections=(1.0 - group["momentum_left"], 1.0 - self.beta2 ** (step - 1)),
        )

    def state_bytes(self, shape: Shape) -> int:
        sides = rotated_sides(shape, self.max_dim).values()
        squares = 4 * shape[0] * shape[1]
        return super().state_bytes(shape) + squares + sum(2 * 4 * size**2 for size in sides)

    def elements(self, shape: Shape) -> int:
        sides = rotated_sides(shape, self.max_dim).values()
        return shape[0] * shape[1] + sum(size * size for size in sides)

    def workspace_bytes(self) -> int:
        # In fp32: gradient, turned gradient, turned momentum, its divisor and a product.
        return 5 * 4

    def carry(self, state: State, group: Settings, moved: Callable[[Tensor], Tensor]) -> State:
        return {}  # the bases have another size


class SoapMuon(Soap):
    """Muon whose momentum is preconditioned in SOAP's basis."""

    beta2 = BETA2["soap_muon"]

    def new_state(self, like: Tensor, device: torch.device) -> State:
        return {**super().new_state(like, device), **self.second_moment(like, device)}

    def _update(self, gradients: Tensor, state: State, group: Settings, step: int) -> Tensor | None:
        from reference.experiments.soap import soap
        from reference.optim.muon import advance, orthogonal_step

        rate = group["momentum"]
        update = gradients.lerp(advance(state["momentum"], gradients, rate), rate)
        if step > 1:
            update = soap.precondition(update, state, self.beta2)
        if self.compiled and self._compiled_update is None:
            from reference.kernels.compiling import compiled

            self._compiled_update = compiled(orthogonal_step)
        finish = self._compiled_update or orthogonal_step
        return finish(update, state["second_moment"], group["beta2"])

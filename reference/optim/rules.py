"""How the gradients of the blocks' matrices become the direction of a step: one object a rule.

A recipe's `matrix_optimizer` names the rule. Core has `Muon` and `BiMaxwell`; experiments bring
others (see `reference.config.experiment`). This module is also read for the memory plan: importing
it needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from reference.config.experiment import experiments
from reference.config.pretrain import Pretrain

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    State = dict[str, Tensor]  # each a batch (K, …): one entry for each matrix of a group
Shape = tuple[int, int]
Settings = Mapping[str, Any]


class MatrixRule:
    """What an optimizer of matrices does; a new one overrides the first three methods.

    The matrices of one shape (m, n) are worked off as a batch of K. The group's settings of a step
    are `momentum`, `beta2`, what `settings` returned and the counters of `begin_step`.

    Args:
        settings: Of the group, as `settings` made them.
        compiled: Compile what is worth it; for GPUs.
    """

    counters: tuple[str, ...] = ()  # keys of the group's settings that `begin_step` moves on

    def __init__(self, settings: Settings, *, compiled: bool = False) -> None:
        self.compiled = compiled

    def new_state(self, like: Tensor, device: torch.device) -> State:
        """What matrices like these (K, m, n), which hold no values, begin with."""
        return {}

    def direction(self, gradients: Tensor, state: State, group: Settings) -> Tensor | None:
        """The direction (K, m, n) of the step, of Muon's size; None leaves the weights alone.

        Args:
            gradients: (K, m, n) fp32; may be overwritten.
            state: Brought up to date in place.
            group: The group's settings of this step.
        """
        raise NotImplementedError

    def state_bytes(self, shape: Shape) -> int:
        """Bytes of one matrix's state; vectors of one side may be left out."""
        return 0

    @staticmethod
    def settings(section: Settings) -> dict[str, Any]:
        """What the rule reads of a recipe's `[pretrain]`, for `param_groups`: plain values."""
        return {}

    def begin_step(self, group: dict[str, Any]) -> None:
        """Moves the rule's own counters in the group's settings on; once a step."""

    def elements(self, shape: Shape) -> int:
        """Elements that one matrix keeps alive in a step, to bound how many are one batch."""
        return shape[0] * shape[1]

    def workspace_bytes(self) -> int:
        """Bytes alive in a step for each entry of the matrices of a batch."""
        return 4 + 2 + 2 + 2  # the gradient in fp32 and three products in bf16

    def carry(self, state: State, group: Settings, moved: Callable[[Tensor], Tensor]) -> State:
        """The state of matrices that have grown along their sides.

        Args:
            moved: Takes an average of gradients (K, m, n) to the new shape.

        Returns:
            What is known of the new state; the rest begins as `new_state`. Default: nothing.
        """
        return {}


class Muon(MatrixRule):
    """Momentum, orthogonalized (`reference.optim.muon`)."""

    def __init__(self, settings: Settings, *, compiled: bool = False) -> None:
        super().__init__(settings, compiled=compiled)
        self._momentum_dtype: str = settings.get("momentum_dtype", "float32")
        self._compiled_update: Callable[..., Tensor] | None = None

    @staticmethod
    def settings(section: Settings) -> dict[str, Any]:
        return {"momentum_dtype": section.get("momentum_dtype", "float32")}

    def new_state(self, like: Tensor, device: torch.device) -> State:
        return {**self.momentum(like, device), **self.second_moment(like, device)}

    def momentum(self, like: Tensor, device: torch.device) -> State:
        import torch

        dtype = getattr(torch, self._momentum_dtype)
        return {"momentum": torch.zeros_like(like, dtype=dtype, device=device)}

    def second_moment(self, like: Tensor, device: torch.device) -> State:
        """NorMuon's, a row or a column a matrix."""
        K, m, n = like.shape
        return {"second_moment": like.new_zeros((K, m, 1) if m >= n else (K, 1, n), device=device)}

    def direction(self, gradients: Tensor, state: State, group: Settings) -> Tensor | None:
        from reference.optim.muon import muon_update

        return self._run(muon_update, gradients, state, group)

    def _run(
        self,
        update: Callable[..., Tensor],
        gradients: Tensor,
        state: State,
        group: Settings,
        *more: Tensor,
    ) -> Tensor:
        rate: Tensor | float = group["momentum"]
        if self.compiled:
            import torch

            from reference.kernels.compiling import compiled

            # A number would be compiled in, and again whenever it changes.
            rate = torch.tensor(rate, device=gradients.device)
            if self._compiled_update is None:
                self._compiled_update = compiled(update)
            update = self._compiled_update
        return update(
            gradients, state["momentum"], state["second_moment"], rate, group["beta2"], *more
        )

    def state_bytes(self, shape: Shape) -> int:
        return shape[0] * shape[1] * (2 if self._momentum_dtype == "bfloat16" else 4)

    def carry(self, state: State, group: Settings, moved: Callable[[Tensor], Tensor]) -> State:
        # Of the second moments only the proportions matter, and they forget in ten steps.
        return {"momentum": moved(state["momentum"])}


class BiMaxwell(Muon):
    """Muon with two running means of the gradients (`reference.optim.maxwell`); `slow` is long."""

    counters = ("updates",)

    @staticmethod
    def settings(section: Settings) -> dict[str, Any]:
        return {**Muon.settings(section), **_maxwell(section)}

    def momentum(self, like: Tensor, device: torch.device) -> State:
        fast = super().momentum(like, device)
        return {**fast, "slow": fast["momentum"].clone()}

    def begin_step(self, group: dict[str, Any]) -> None:
        group["updates"] = group.get("updates", 0) + 1

    def direction(self, gradients: Tensor, state: State, group: Settings) -> Tensor | None:
        import torch

        from reference.optim.maxwell import bi_maxwell_update, slow_share

        ours = _maxwell(group)
        rates = [group["momentum"], group["momentum"], 0.0]
        if group["updates"] > ours["maxwell_from"]:
            fast, slow = ours["maxwell_fast"], ours["maxwell_slow"]
            rates = [fast, slow, slow_share(fast, slow, ours["maxwell_age"])]
        # torch.compile makes numbers constants of the code and compiles again when they change, so
        # they go in as a tensor.
        mix = torch.tensor(rates).to(gradients.device, non_blocking=True)
        return self._run(bi_maxwell_update, gradients, state, group, state["slow"], mix)

    def state_bytes(self, shape: Shape) -> int:
        return 2 * super().state_bytes(shape)

    def carry(self, state: State, group: Settings, moved: Callable[[Tensor], Tensor]) -> State:
        return {name: moved(state[name]) for name in ("momentum", "slow")}


def _maxwell(section: Settings) -> dict[str, Any]:
    names = ("maxwell_from", "maxwell_fast", "maxwell_slow", "maxwell_age")
    return {name: section.get(name, getattr(Pretrain, name)) for name in names}


def rules() -> dict[str, type[MatrixRule]]:
    """Every rule that `matrix_optimizer` may name, "adamw" apart, which is for any parameter."""
    found: dict[str, type[MatrixRule]] = {"muon": Muon, "bi_maxwell": BiMaxwell}
    for experiment in experiments():
        found.update(experiment.rules())
    return found

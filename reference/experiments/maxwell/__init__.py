"""Bi-Maxwell momentum: two running means of the gradients, of short and long memory, in one.

From `maxwell_from` on, Muon's momentum is a mix of two exponential means whose weights give the
mean age `maxwell_age`. Before it, the two are the ordinary momentum. The published runs found that
the longer memory pays only after about a thousand steps, and costs when it begins with the run.

References:
    modded-nanogpt, pull requests 339 and 340 (July 2026)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reference.config.experiment import Experiment, Problem, Section
from reference.config.fields import setting
from reference.optim.rules import Muon, Settings, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from reference.optim.rules import State


@dataclass(frozen=True)
class Fields:
    """What `[pretrain]` takes for it."""

    maxwell_from: int = setting(
        1000,
        "Step from which bi_maxwell mixes its two running means.",
        unit="steps",
        low=0,
    )
    maxwell_fast: float = setting(
        0.85,
        "Share of the short running mean that a step keeps.",
        low=0,
        high=0.9999,
    )
    maxwell_slow: float = setting(
        0.98,
        "Share of the long running mean that a step keeps.",
        low=0,
        high=0.9999,
    )
    maxwell_age: float = setting(
        30.0,
        "Mean age of the gradients in the mix, between those of the two means.",
        unit="steps",
        low=0,
    )


_FIELDS = tuple(Fields.__dataclass_fields__)


def mean_age(kept: float) -> float:
    """Steps that the gradients in a running mean are old on average; `kept` is its constant."""
    return kept / (1.0 - kept)


def slow_share(fast: float, slow: float, age: float) -> float:
    """Weight of the long mean in the mix whose mean age is `age`."""
    return (age - mean_age(fast)) / (mean_age(slow) - mean_age(fast))


class BiMaxwell(Muon):
    """Muon with two running means; `slow` is the long one."""

    counters = ("updates",)

    @staticmethod
    def settings(section: Settings) -> dict[str, Any]:
        ours = {name: section.get(name, getattr(Fields, name)) for name in _FIELDS}
        return {**Muon.settings(section), **ours}

    def momentum(self, like: Tensor, device: torch.device) -> State:
        fast = super().momentum(like, device)
        return {**fast, "slow": fast["momentum"].clone()}

    def begin_step(self, group: dict[str, Any]) -> None:
        group["updates"] = group.get("updates", 0) + 1

    def direction(self, gradients: Tensor, state: State, group: Settings) -> Tensor | None:
        import torch

        rates = [group["momentum"], group["momentum"], 0.0]
        of_group = {name: group.get(name, getattr(Fields, name)) for name in _FIELDS}
        if group["updates"] > of_group["maxwell_from"]:
            fast, slow = of_group["maxwell_fast"], of_group["maxwell_slow"]
            rates = [fast, slow, slow_share(fast, slow, of_group["maxwell_age"])]
        # As a tensor: compiled code would hold numbers fast, and be made again when they change.
        mix = torch.tensor(rates).to(gradients.device, non_blocking=True)
        return self._run(bi_maxwell_update, gradients, state, group, state["slow"], mix)

    def state_bytes(self, shape: Shape) -> int:
        return 2 * super().state_bytes(shape)


def bi_maxwell_update(
    update: Tensor,
    momentum: Tensor,
    second_moment: Tensor,
    rate: Tensor | float,
    beta2: float,
    slow: Tensor,
    mix: Tensor,
) -> Tensor:
    """`reference.optim.muon.muon_update` with the momentum (1 - mix[2]) momentum + mix[2] slow.

    `mix` (3,): what a step keeps of each mean, and the weight of the second.
    """
    from reference.optim.muon import advance, orthogonal_step

    fast, long = advance(momentum, update, mix[0]), advance(slow, update, mix[1])
    return orthogonal_step(update.lerp_(fast.lerp(long, mix[2]), rate), second_moment, beta2)


def _rules() -> dict[str, type[Any]]:
    return {"bi_maxwell": BiMaxwell}


def _asked(section: Section) -> bool:
    return section.get("matrix_optimizer") == "bi_maxwell"


def _problems(_model: Section, pretrain: Section) -> Iterable[Problem]:
    if not _asked(pretrain):
        return
    fast, slow = (mean_age(pretrain[name]) for name in ("maxwell_fast", "maxwell_slow"))
    if not fast <= pretrain["maxwell_age"] <= slow or fast == slow:
        yield Problem(
            "pretrain.maxwell_age",
            str(pretrain["maxwell_age"]),
            f"between {fast:.3g} and {slow:.3g}, the mean ages of maxwell_fast and maxwell_slow",
        )


EXPERIMENT = Experiment(
    name="maxwell",
    fields=Fields,
    asked=_asked,
    problems=_problems,
    rules=_rules,
)

"""Bi-Maxwell momentum: two running means of the gradients, of short and long memory, in one.

From a step on, Muon's momentum is a mix of two exponential means whose weights give a mean age of
the gradients. Before it, the two are the ordinary momentum. The published runs found that the
longer memory pays only after about a thousand steps, and costs when it begins with the run.

References:
    modded-nanogpt, pull requests 339 and 340 (July 2026)
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.optim.muon import advance, orthogonal_step


def mean_age(kept: float) -> float:
    """Steps that the gradients in a running mean are old on average; `kept` is its constant."""
    return kept / (1.0 - kept)


def slow_share(fast: float, slow: float, age: float) -> float:
    """Weight of the long mean in the mix whose mean age is `age`."""
    return (age - mean_age(fast)) / (mean_age(slow) - mean_age(fast))


@torch.no_grad()
def bi_maxwell_update(
    update: Tensor,
    momentum: Tensor,
    second_moment: Tensor,
    rate: Tensor | float,
    beta2: float,
    slow: Tensor,
    mix: Tensor,
) -> Tensor:
    """`muon_update` with the momentum (1 - mix[2]) momentum + mix[2] slow.

    `mix` (3,): what a step keeps of each mean, and the weight of the second.
    """
    fast, long = advance(momentum, update, mix[0]), advance(slow, update, mix[1])
    return orthogonal_step(update.lerp_(fast.lerp(long, mix[2]), rate), second_moment, beta2)

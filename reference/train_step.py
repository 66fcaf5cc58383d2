"""One optimizer step, and when the model is compiled: for pretraining, fine-tuning and bench."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from reference.estimate import count_flops
from reference.model import GPT
from reference.optim import MuonAdamW
from reference.schedule import Schedule


def train_step(
    model: GPT,
    optimizer: MuonAdamW,
    batches: Sequence[tuple[Tensor, Tensor]],
    schedule: Schedule,
) -> float:
    """Mean loss in nats per target token of one step over all micro-batches.

    Every target of the step weighs the same, also when micro-batches hold unequal numbers of them.
    The weights are updated whatever the loss is: a caller that gets a NaN should stop.

    Args:
        batches: The step's micro-batches (tokens, targets), each (B, T) int64 on the model's
            device; targets below 0 are ignored.

    Returns:
        The loss; reading it is the step's only wait for the device.
    """
    counts = [(targets >= 0).sum() for _, targets in batches]
    count = sum(counts[1:], start=counts[0])
    total = 0.0
    for tokens, targets in batches:
        loss = model.loss(tokens, targets, count=count)
        loss.backward()
        total = total + loss.detach()
    optimizer.set_schedule(schedule)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(total)


# On a CPU the matrix products are most of a step and compiling leaves them alone: it saved 3 % of
# the smoke model's processor time and took minutes on two cores.
CPU_FLOPS = 1e11
CPU_COMPILE_PAYS_AFTER_S = 4 * 3600.0


def maybe_compile(
    model: GPT,
    setting: Literal["auto", "on", "off"],
    device: torch.device | str,
    *,
    tokens: float = 0.0,
) -> bool:
    """Compiles the model's blocks where `setting` asks for it or, for "auto", where it pays.

    That is always on a GPU; on a CPU when a C++ compiler is installed and training `tokens` tokens
    will take long. The choice is a function of its arguments and the machine, so that a resumed
    run computes as the interrupted one did. Equal blocks share one compiled graph.

    Returns:
        Whether the blocks are compiled; the compiling itself happens in the first step.
    """
    if setting == "auto":
        on_cpu = torch.device(device).type == "cpu"
        expected_s = tokens * count_flops(model.config).causal / CPU_FLOPS
        wanted = not on_cpu or (has_cpp_compiler() and expected_s > CPU_COMPILE_PAYS_AFTER_S)
    else:
        wanted = setting == "on"
    if wanted:
        for block in model.blocks:
            block.compile(dynamic=False)
    return wanted


def has_cpp_compiler() -> bool:
    """Whether torch.compile can build code for a CPU here."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))

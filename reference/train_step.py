"""One optimizer step, shared by pretraining, fine-tuning and the benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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

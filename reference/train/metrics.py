"""Figures of merit that need a model or a device: bits per byte and model FLOPs utilisation."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from reference.model.gpt import GPT


@torch.no_grad()
def evaluate_bpb(
    model: GPT, batches: Iterable[tuple[Tensor, Tensor]], token_bytes: Tensor
) -> float:
    """Bits per byte of `model`, comparable across vocabularies.

    Args:
        batches: Pairs (tokens, targets), each (B, T) int64; targets below 0 are ignored.
        token_bytes: (V,) integers, UTF-8 bytes per token; 0 for special tokens, whose loss does
            not count either.

    Returns:
        Total nats over ln 2 times total bytes. Lower is better.

    Raises:
        ValueError: The targets stand for no bytes.
    """
    nats = torch.zeros((), dtype=torch.float64, device=token_bytes.device)
    total_bytes = torch.zeros((), dtype=torch.int64, device=token_bytes.device)
    for tokens, targets in batches:
        losses = model.loss(tokens, targets, reduction="none")  # (B, T)
        lengths = token_bytes[targets.clamp_min(0)].long().masked_fill(targets < 0, 0)
        nats += (losses.double() * (lengths > 0)).sum()
        total_bytes += lengths.sum()
    count = int(total_bytes)
    if count == 0:
        raise ValueError("the targets have no bytes, so there is nothing to evaluate")
    return float(nats) / (math.log(2) * count)


def mfu(flops_per_token: float, tokens_per_s: float, peak_flops: float | None) -> float | None:
    """The share of the peak that the model's own FLOPs use; None where the peak is unknown."""
    return flops_per_token * tokens_per_s / peak_flops if peak_flops else None

"""Softcapped cross-entropy whose head has int8 factors in all three products.

The gradient of a token's logits has one large entry, at the target, and many small ones. Eight bits
beside a value of 1 would lose all entries below 0.004, which together are most of what pushes the
other tokens down. So

- the target's entry is left out of the rounded gradient; its two products, a row of the head and a
  row of hidden states, are added by index without rounding;
- the rest has a scale for each token and BLOCK entries of the vocabulary, and for each entry and
  BLOCK tokens;
- it is rounded up or down at random, with the probabilities that keep its mean: a fixed table of
  thresholds for each place of a tile, the same on every device.

One kernel reads a chunk's logits and writes losses and the sums of exponentials; another reads them
again and writes the gradient in both int8 layouts. The gradient never exists in another type.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from reference.kernels.int8_rounding import BLOCK, Rounded, block_mm, round_both, round_tiles
from reference.kernels.table_gradient import add_rows, find_index

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # of logits, as bf16


class Statistics(NamedTuple):
    """Of each token (n,), fp32: loss; log of the sum of exp(logit - softcap); the cap's slope at
    the target."""

    losses: Tensor
    log_sum: Tensor
    slope: Tensor


def chunks(tokens: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Parts of `tokens`, each but the last of equal size and a multiple of BLOCK."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])
    parts = -(-tokens * vocabulary * 2 // budget)
    step = math.ceil(tokens / parts / BLOCK) * BLOCK
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    rounded: Rounded,
    targets: Tensor,
    row_scale: Tensor,
    vocab_size: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (N,), d/d hidden and d/d weight of sum(row_scale * losses).

    Args:
        hidden: (N, C).
        weight: (V_padded, C); rounded: `round_both` of it.
        targets: (N,) int64; below 0 means ignored.
        row_scale: (N,) fp32, 0 where the target is ignored.
        vocab_size: Columns that take part; the others are padding.
        softcap: 0 leaves the logits uncapped.
    """
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    at_target = torch.empty_like(losses)
    d_hidden = torch.empty_like(hidden)
    d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=hidden.device)
    for part in chunks(targets.numel(), weight.size(0), hidden.device):
        rows, target = hidden[part], targets[part]
        both = round_both(rows.contiguous())
        logits = block_mm(
            both.rows, rounded.rows, both.row_scale, rounded.row_scale, dtype=torch.bfloat16
        )
        found = statistics(logits, target, vocab_size, softcap)
        losses[part] = found.losses
        at_target[part] = row_scale[part] * found.slope
        gradient = round_gradient(logits, found.log_sum, row_scale[part], vocab_size, softcap)
        d_rows = block_mm(gradient.rows, rounded.columns, gradient.row_scale, rounded.column_scale)
        d_rows -= at_target[part, None] * weight[target.clamp_min(0)]
        d_hidden[part] = d_rows
        block_mm(
            gradient.columns, both.columns, gradient.column_scale, both.column_scale, into=d_weight
        )
    add_rows(d_weight, find_index(targets.clamp_min(0)), -at_target[:, None] * hidden)
    return losses, d_hidden, d_weight


def statistics(logits: Tensor, targets: Tensor, vocab_size: int, softcap: float) -> Statistics:
    """Losses and what the gradient needs, of logits (n, V_padded) before the cap."""
    if logits.is_cuda:
        from reference.kernels.triton_loss import statistics as launch

        return Statistics(*launch(logits, targets, vocab_size=vocab_size, softcap=softcap))
    z = _capped(logits[:, :vocab_size].float(), softcap)
    log_sum = torch.logsumexp(z, dim=1)
    ignored = targets < 0
    at = z.gather(1, targets.clamp_min(0)[:, None]).squeeze(1).masked_fill_(ignored, 0.0)
    slope = _slope(at, softcap) if softcap else torch.ones_like(at)
    return Statistics((log_sum - at).masked_fill_(ignored, 0.0), log_sum, slope)


def round_gradient(
    logits: Tensor, log_sum: Tensor, row_scale: Tensor, vocab_size: int, softcap: float
) -> Rounded:
    """The gradient of sum(row_scale * losses) for logits (n, V_padded) but for the target's entry.

    Values are rounded up or down by `thresholds`, not to the nearest.
    """
    if logits.is_cuda:
        from reference.kernels.int8_loss_triton import launch_round_gradient

        return launch_round_gradient(
            logits, log_sum, row_scale, thresholds(logits.device), vocab_size, softcap
        )
    z = _capped(logits.float(), softcap)
    y = torch.exp(z - log_sum[:, None]) * row_scale[:, None]
    if softcap:
        y *= _slope(z, softcap)
    y[:, vocab_size:] = 0.0
    a, b = thresholds(y.device)
    lift = a[:, None] + b
    return round_tiles(y, lift - lift.floor())


def _capped(logits: Tensor, softcap: float) -> Tensor:
    """softcap * tanh(logits / softcap) - softcap."""
    return -2.0 * softcap * torch.sigmoid(-2.0 * logits / softcap) if softcap else logits


def _slope(z: Tensor, softcap: float) -> Tensor:
    """The cap's slope where the capped logit is z + softcap."""
    s = z / (-2.0 * softcap)
    return 4.0 * s * (1.0 - s)


@cache
def thresholds(device: torch.device) -> Tensor:
    """(2, BLOCK) fp32: the value at (m, n) of a tile is rounded up where its fraction reaches
    1 - frac(a[m] + b[n]).

    The steps are those of the R2 sequence, whose points fill the square evenly: errors along a row
    or a column nearly cancel (M. Roberts, "The unreasonable effectiveness of quasirandom
    sequences", 2018).
    """
    steps = torch.tensor([[0.7548776662466927], [0.5698402909980532]], dtype=torch.float64)
    return (steps * torch.arange(BLOCK, dtype=torch.float64) % 1.0).float().to(device)

"""Softcapped cross-entropy of a chunk of logits and its gradient, as one Triton kernel.

One program handles one row of logits (one token). It reads the row twice: once for the softmax's
denominator, once to overwrite the logits with the gradient. The second read of a row is served by
the L2 cache: the rows in flight (a few per multiprocessor, 98 KB each at a vocabulary of 49,152)
are far smaller than the 72 MB of an RTX 4090. So a logit costs two bytes read and two bytes
written in DRAM, where separate PyTorch operations move about 58 bytes.

The cap is computed as a sigmoid, which saves the exponentials that a tanh needs in two directions:
softcap * tanh(l / softcap) = 2 softcap * sigmoid(2 l / softcap) - softcap.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits of one load: 16 a thread
WARPS = 8
_LOWEST = tl.constexpr(-1e30)  # stands for minus infinity where inf - inf would give NaN


@triton.jit
def loss_kernel(
    logits_ptr, targets_ptr, row_scale_ptr, losses_ptr, visible, padded, softcap,
    CAPPED: tl.constexpr, GRADIENT: tl.constexpr, STATISTICS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss of each row; with GRADIENT the row of logits becomes row_scale * dloss/dlogits.

    With STATISTICS `losses` is (3, rows): losses, log of the sum of exp(capped logit - cap), and
    the cap's slope at the target.

    Logits are (rows, padded), contiguous. Columns from `visible` on are padding: they take no part
    in the softmax, and their gradient is zero. A target below 0 gives loss 0 and gradient 0.
    """
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * padded
    target = tl.load(targets_ptr + row)
    columns = tl.arange(0, BLOCK)
    # Sums of exp(z - top) for each lane. A capped logit never exceeds the cap, which then is `top`.
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    top = tl.full((BLOCK,), _LOWEST, dtype=tl.float32)
    # The target's logit is picked up on the way: a load of its own could come after the overwrite.
    picked = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, visible, BLOCK):
        at = start + columns
        z = tl.load(logits + at, mask=at < visible, other=_LOWEST).to(tl.float32)
        if CAPPED:
            z = -2.0 * softcap * tl.sigmoid(-2.0 * z / softcap)  # minus the cap already
            total += tl.where(at < visible, tl.exp(z), 0.0)
        else:
            higher = tl.maximum(top, z)
            total = total * tl.exp(top - higher) + tl.exp(z - higher)
            top = higher
        picked += tl.where(at == target, z, 0.0)
    if CAPPED:
        log_sum = tl.log(tl.sum(total))
    else:
        highest = tl.max(top)
        log_sum = tl.log(tl.sum(total * tl.exp(top - highest))) + highest
    at_target = tl.sum(picked)
    tl.store(losses_ptr + row, tl.where(target >= 0, log_sum - at_target, 0.0))
    if STATISTICS:
        rows = tl.num_programs(0)
        tl.store(losses_ptr + rows + row, log_sum)
        slope = log_sum * 0.0 + 1.0
        if CAPPED:
            s = at_target / (-2.0 * softcap)
            slope = 4.0 * s * (1.0 - s)
        tl.store(losses_ptr + 2 * rows + row, slope)
    if GRADIENT:
        scale = tl.load(row_scale_ptr + row)
        for start in range(0, padded, BLOCK):
            at = start + columns
            z = tl.load(logits + at, mask=at < visible, other=0.0).to(tl.float32)
            slope = scale
            if CAPPED:
                s = tl.sigmoid(-2.0 * z / softcap)
                z = -2.0 * softcap * s
                slope = scale * 4.0 * s * (1.0 - s)
            gradient = (tl.exp(z - log_sum) - tl.where(at == target, 1.0, 0.0)) * slope
            gradient = tl.where(at < visible, gradient, 0.0)
            tl.store(logits + at, gradient.to(logits_ptr.dtype.element_ty), mask=at < padded)


def losses_(
    logits: Tensor,
    targets: Tensor,
    row_scale: Tensor | None,
    *,
    vocab_size: int,
    softcap: float,
    block: int | None = None,
) -> Tensor:
    """Losses (n,) in fp32 nats; overwrites `logits` with their gradient if `row_scale` is given.

    Args:
        logits: (n, V_padded) before the cap, contiguous, bf16, fp16 or fp32.
        targets: (n,) int64; below 0 means ignored.
        row_scale: (n,) fp32 factors of the rows' gradients; None leaves the logits alone.
        vocab_size: Columns that take part; the others are padding.
        softcap: 0 leaves the logits uncapped.
    """
    n, padded = logits.shape
    losses = torch.empty(n, dtype=torch.float32, device=logits.device)
    loss_kernel[(n,)](
        logits, targets, targets if row_scale is None else row_scale, losses,
        vocab_size, padded, float(softcap or 1.0),
        CAPPED=bool(softcap), GRADIENT=row_scale is not None, STATISTICS=False,
        BLOCK=block or BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return losses


def statistics(logits: Tensor, targets: Tensor, *, vocab_size: int, softcap: float) -> Tensor:
    """(3, n) fp32: losses, log of the sum of exp(capped logit - cap), the cap's slope at targets.

    Args:
        logits, targets, vocab_size, softcap: As in `losses_`.
    """
    n, padded = logits.shape
    found = torch.empty((3, n), dtype=torch.float32, device=logits.device)
    loss_kernel[(n,)](
        logits, targets, targets, found, vocab_size, padded, float(softcap or 1.0),
        CAPPED=bool(softcap), GRADIENT=False, STATISTICS=True, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return found

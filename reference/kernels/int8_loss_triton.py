"""The Triton kernel behind `int8_loss.round_gradient`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference.kernels.int8_rounding import BLOCK, SMALLEST, Rounded

WARPS = 8  # with 16, registers are spilled


@triton.jit
def _lifted(y, scale, lift):
    """y / scale, rounded up or down by the thresholds `lift`."""
    scaled = tl.floor(y * tl.div_rn(1.0, scale) + lift)
    return tl.minimum(tl.maximum(scaled, -127.0), 127.0).to(tl.int8)


@triton.jit
def gradient_kernel(
    logits_ptr, log_sum_ptr, factor_ptr, lift_ptr,
    rows_ptr, row_scale_ptr, columns_ptr, column_scale_ptr,
    M, V, visible, softcap, smallest,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile (BLOCK, BLOCK) of factor * softmax's gradient in int8, by rows and by columns."""
    block, across = tl.program_id(0), tl.program_id(1)
    inner = tl.arange(0, BLOCK)
    m, v = block * BLOCK + inner, across * BLOCK + inner
    inside = (m[:, None] < M) & (v[None, :] < V)
    # One 64-bit offset a tile; within it 32 bits are enough.
    first = block.to(tl.int64) * BLOCK * V + across * BLOCK
    at = inner[:, None] * V + inner[None, :]
    z = tl.load(logits_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
    log_sum = tl.load(log_sum_ptr + m, mask=m < M, other=0.0)[:, None]
    factor = tl.load(factor_ptr + m, mask=m < M, other=0.0)[:, None]
    if CAPPED:
        s = tl.sigmoid(-2.0 * z / softcap)
        y = tl.exp(-2.0 * softcap * s - log_sum) * factor * (4.0 * s * (1.0 - s))
    else:
        y = tl.exp(z - log_sum) * factor
    y = tl.where((m[:, None] < M) & (v[None, :] < visible), y, 0.0)
    lift = tl.load(lift_ptr + inner)[:, None] + tl.load(lift_ptr + BLOCK + inner)[None, :]
    lift = lift - tl.floor(lift)
    # A value that is not finite makes its scales NaN, so that it is seen in the products.
    amax = tl.max(tl.abs(y), axis=1)
    scale = tl.div_rn(tl.maximum(amax, smallest), 127.0) + tl.sum(y * 0.0, axis=1)
    tl.store(row_scale_ptr + across.to(tl.int64) * M + m, scale, mask=m < M)
    tl.store(rows_ptr + first + at, _lifted(y, scale[:, None], lift), mask=inside)
    amax = tl.max(tl.abs(y), axis=0)
    scale = tl.div_rn(tl.maximum(amax, smallest), 127.0) + tl.sum(y * 0.0, axis=0)
    tl.store(column_scale_ptr + block.to(tl.int64) * V + v, scale, mask=v < V)
    turned = tl.trans(_lifted(y, scale[None, :], lift))
    first = across.to(tl.int64) * BLOCK * M + block * BLOCK
    to = inner[:, None] * M + inner[None, :]
    tl.store(columns_ptr + first + to, turned, mask=(v[:, None] < V) & (m[None, :] < M))


def launch_round_gradient(
    logits: Tensor, log_sum: Tensor, factor: Tensor, lift: Tensor, visible: int, softcap: float
) -> Rounded:
    """`int8_loss.round_gradient` on a GPU, or in Triton's interpreter."""
    M, V = logits.shape
    down, across = triton.cdiv(M, BLOCK), triton.cdiv(V, BLOCK)
    rows = torch.empty((M, V), dtype=torch.int8, device=logits.device)
    columns = torch.empty((V, M), dtype=torch.int8, device=logits.device)
    row_scale = torch.empty((across, M), device=logits.device)
    column_scale = torch.empty((down, V), device=logits.device)
    gradient_kernel[(down, across)](
        logits, log_sum, factor.contiguous(), lift, rows, row_scale, columns, column_scale,
        M, V, visible, float(softcap or 1.0), SMALLEST,
        CAPPED=bool(softcap), BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return Rounded(rows, row_scale, columns, column_scale)

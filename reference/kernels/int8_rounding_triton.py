"""The Triton kernels behind `int8_rounding`: both int8 layouts of a tile, and the scaled product.

Numbers are combined in the order and with the roundings of the PyTorch formulas; products and sums
are kept apart (`enable_fp_fusion=False` where that matters), so results agree to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference.kernels.int8_rounding import BLOCK, ROUNDING, SMALLEST, Rounded

ROUND_WARPS = 16
GROUP_M = 8  # blocks of rows that walk over the columns together: their factors stay in L2
# BLOCK_M, BLOCK_N, stages, warps of the product; its BLOCK_K is BLOCK. Stages times (BLOCK_M +
# BLOCK_N) times BLOCK bytes fit the 99 KB of shared memory of a block on Ada.
TILES = ((128, 128, 2, 8), (128, 128, 3, 8), (128, 64, 3, 4), (64, 128, 3, 4), (64, 64, 4, 4))


@triton.jit
def _produced(x, other, PRODUCER: tl.constexpr):
    """f(x) in fp32: identity, norm (times 1 / RMS), relu squared, or relu squared's gradient."""
    y = x
    if PRODUCER == 1:
        y = x * other
    elif PRODUCER == 2:
        positive = tl.maximum(x, 0.0)
        y = positive * positive
    elif PRODUCER == 3:
        y = x * (2.0 * tl.maximum(other, 0.0))
    return y


@triton.jit
def _to_int8(y, scale, rounding):
    scaled = (y * tl.div_rn(1.0, scale) + rounding) - rounding
    return tl.minimum(tl.maximum(scaled, -127.0), 127.0).to(tl.int8)


@triton.jit
def tile_kernel(
    x_ptr, other_ptr, rows_ptr, row_scale_ptr, columns_ptr, column_scale_ptr,
    M, N, smallest, rounding,
    PRODUCER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile (BLOCK, BLOCK) of f(x) in int8, by rows and, transposed, by columns."""
    block, across = tl.program_id(0), tl.program_id(1)
    inner = tl.arange(0, BLOCK)
    m, n = block * BLOCK + inner, across * BLOCK + inner
    inside = (m[:, None] < M) & (n[None, :] < N)
    # One 64-bit offset a tile; within it 32 bits are enough.
    first = block.to(tl.int64) * BLOCK * N + across * BLOCK
    at = inner[:, None] * N + inner[None, :]
    x = tl.load(x_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
    other = x
    # Zeros, or NaN: a maximum on a GPU drops NaN.
    zeros = x * 0.0
    if PRODUCER == 1:
        other = tl.load(other_ptr + m, mask=m < M, other=0.0)[:, None]
    elif PRODUCER == 3:
        other = tl.load(other_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
        zeros += other * 0.0
    y = _produced(x, other, PRODUCER)
    amax = tl.max(tl.abs(y), axis=1)
    scale = tl.div_rn(tl.maximum(amax, smallest), 127.0) + tl.sum(zeros, axis=1)
    tl.store(row_scale_ptr + across.to(tl.int64) * M + m, scale, mask=m < M)
    tl.store(rows_ptr + first + at, _to_int8(y, scale[:, None], rounding), mask=inside)
    amax = tl.max(tl.abs(y), axis=0)
    scale = tl.div_rn(tl.maximum(amax, smallest), 127.0) + tl.sum(zeros, axis=0)
    tl.store(column_scale_ptr + block.to(tl.int64) * N + n, scale, mask=n < N)
    turned = tl.trans(_to_int8(y, scale[None, :], rounding))
    first = across.to(tl.int64) * BLOCK * M + block * BLOCK
    to = inner[:, None] * M + inner[None, :]
    tl.store(columns_ptr + first + to, turned, mask=(n[:, None] < N) & (m[None, :] < M))


@triton.jit
def block_mm_kernel(
    a_ptr, b_ptr, c_ptr, scale_a_ptr, scale_b_ptr, M, N, K, blocks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """c (M, N) = or += a (M, K) @ b (N, K).T, int8, a scale for each row and BLOCK_K."""
    pid = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * blocks_n)
    first = group * GROUP_M
    height = min(blocks_m - first, GROUP_M)
    within = pid % (GROUP_M * blocks_n)
    rows = (first + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    a_row = tl.minimum(rows, M - 1).to(tl.int64)  # past the edge the last row is read again
    b_row = tl.minimum(columns, N - 1).to(tl.int64)
    inner = tl.arange(0, BLOCK_K)
    tl.static_assert(BLOCK_K * 127 * 127 < 1 << 22)
    offset = tl.full((BLOCK_M, BLOCK_N), 0x4B400000, dtype=tl.int32)  # the bits of 12582912.0
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for block in range(0, blocks):
        k = block * BLOCK_K + inner
        x = tl.load(a_ptr + a_row[:, None] * K + k[None, :], mask=k[None, :] < K, other=0)
        y = tl.load(b_ptr + b_row[None, :] * K + k[:, None], mask=k[:, None] < K, other=0)
        # int32 to fp32 by bits: 1.5 * 2**23 is read as an int32 and the sum, below 2**22, is added
        # to it. The subtraction is exact and at full rate on Ada; a conversion is at half rate.
        exact = tl.dot(x, y, acc=offset, out_dtype=tl.int32).to(tl.float32, bitcast=True)
        exact -= 12582912.0
        scale_a = tl.load(scale_a_ptr + block * M + a_row)
        scale_b = tl.load(scale_b_ptr + block * N + b_row)
        total += exact * (scale_a[:, None] * scale_b[None, :])
    c = c_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    if ADD:
        total = tl.load(c, mask=inside, other=0.0) + total
    tl.store(c, total.to(c_ptr.dtype.element_ty), mask=inside)


def launch_round_both(x: Tensor, producer: int, other: Tensor | None) -> Rounded:
    """`int8_rounding.round_both` on a GPU, or in Triton's interpreter."""
    M, N = x.shape
    down, across = triton.cdiv(M, BLOCK), triton.cdiv(N, BLOCK)
    rows = torch.empty((M, N), dtype=torch.int8, device=x.device)
    columns = torch.empty((N, M), dtype=torch.int8, device=x.device)
    row_scale = torch.empty((across, M), device=x.device)
    column_scale = torch.empty((down, N), device=x.device)
    tile_kernel[(down, across)](
        x, x if other is None else other.contiguous(), rows, row_scale, columns, column_scale,
        M, N, SMALLEST, ROUNDING,
        PRODUCER=producer, BLOCK=BLOCK, num_warps=ROUND_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return Rounded(rows, row_scale, columns, column_scale)


_tuned: dict[bool, Any] = {}


def _grid(meta: dict[str, Any]) -> tuple[int]:
    return (triton.cdiv(meta["M"], meta["BLOCK_M"]) * triton.cdiv(meta["N"], meta["BLOCK_N"]),)


def configs() -> list[triton.Config]:
    """The tiles that the autotuner times."""
    return [
        triton.Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": BLOCK, "GROUP_M": GROUP_M},
            num_stages=stages,
            num_warps=warps,
        )
        for m, n, stages, warps in TILES
    ]


def launch_block_mm(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    into: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`int8_rounding.block_mm` on a GPU."""
    add = into is not None
    if add not in _tuned:  # a trial run must not add to the caller's matrix
        restore = ["c_ptr"] if add else None
        _tuned[add] = triton.autotune(configs(), key=["M", "N", "K"], restore_value=restore)(
            block_mm_kernel
        )
    (M, K), N = a.shape, b.size(0)
    c = torch.empty((M, N), dtype=dtype, device=a.device) if into is None else into
    _tuned[add][_grid](
        a, b, c, scale_a, scale_b, M, N, K, scale_a.size(0), ADD=add, enable_fp_fusion=False
    )
    return c

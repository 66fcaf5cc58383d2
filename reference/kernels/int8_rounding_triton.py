"""The Triton kernels behind `int8_rounding`: row statistics, both layouts, block-scaled product.

Numbers are combined in the order and with the roundings of the PyTorch formulas; products and sums
are kept apart (`enable_fp_fusion=False` where that matters), so results agree to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference.kernels.int8_rounding import EPSILON, ROUNDING, SMALLEST, TOKENS, Rounded

STATISTICS_BLOCK = 1024
TILE_CHANNELS = 64
GROUP_M = 8
# BLOCK_M, BLOCK_N, stages, warps of the block-scaled product; its BLOCK_K is TOKENS.
TILES = ((128, 128, 2, 8), (128, 64, 3, 4), (64, 128, 3, 4), (64, 64, 4, 4))


@triton.jit
def _produced(x, gate, root, PRODUCER: tl.constexpr):
    """f(x) in fp32: identity, norm (times 1 / RMS), relu squared, or relu squared's gradient."""
    y = x
    if PRODUCER == 1:
        y = x * root
    elif PRODUCER == 2:
        positive = tl.maximum(x, 0.0)
        y = positive * positive
    elif PRODUCER == 3:
        y = x * (2.0 * tl.maximum(gate, 0.0))
    return y


@triton.jit
def statistics_kernel(
    x_ptr, gate_ptr, scale_ptr, root_ptr, N, epsilon, smallest,
    PRODUCER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each row of x (M, N): the int8 scale of f(x), and for the norm 1 / RMS.

    A row with a value that is not finite gets the scale NaN, so that it is seen in the products.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), dtype=tl.float32)
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    zeros = tl.zeros((BLOCK,), dtype=tl.float32)  # or NaN
    for start in range(0, N, BLOCK):
        at = start + columns
        x = tl.load(x_ptr + row * N + at, mask=at < N, other=0.0).to(tl.float32)
        gate = x
        if PRODUCER == 3:
            gate = tl.load(gate_ptr + row * N + at, mask=at < N, other=0.0).to(tl.float32)
        if PRODUCER == 1:
            squares += x * x
            largest = tl.maximum(largest, tl.abs(x))
        else:
            largest = tl.maximum(largest, tl.abs(_produced(x, gate, 1.0, PRODUCER)))
        # Of the inputs, because a maximum on a GPU drops NaN.
        zeros += x * 0.0 + gate * 0.0
    amax = tl.max(largest)
    if PRODUCER == 1:
        root = tl.rsqrt(tl.sum(squares) / N + epsilon)
        tl.store(root_ptr + row, root)
        amax = amax * root
    tl.store(scale_ptr + row, tl.div_rn(tl.maximum(amax, smallest), 127.0) + tl.sum(zeros))


@triton.jit
def _to_int8(y, scale, rounding):
    scaled = tl.minimum(tl.maximum(y * tl.div_rn(1.0, scale), -127.0), 127.0)
    return ((scaled + rounding) - rounding).to(tl.int8)


@triton.jit
def tile_kernel(
    x_ptr, gate_ptr, scale_ptr, root_ptr, rows_ptr, columns_ptr, column_scale_ptr,
    M, N, blocks, smallest, rounding,
    PRODUCER: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile (TOKENS, CHANNELS) of f(x) in int8, by rows and, transposed, by columns."""
    block = tl.program_id(0)
    m = block * TOKENS + tl.arange(0, TOKENS)
    n = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (m[:, None] < M) & (n[None, :] < N)
    at = m[:, None].to(tl.int64) * N + n[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = x
    if PRODUCER == 3:
        gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    root = tl.full((TOKENS, 1), 1.0, dtype=tl.float32)
    if PRODUCER == 1:
        root = tl.load(root_ptr + m, mask=m < M, other=0.0)[:, None]
    y = _produced(x, gate, root, PRODUCER)
    row_scale = tl.load(scale_ptr + m, mask=m < M, other=1.0)[:, None]
    tl.store(rows_ptr + at, _to_int8(y, row_scale, rounding), mask=inside)
    amax = tl.max(tl.abs(y), axis=0)  # (CHANNELS,)
    scale = tl.div_rn(tl.maximum(amax, smallest), 127.0) + tl.sum(x * 0.0 + gate * 0.0, axis=0)
    tl.store(column_scale_ptr + n.to(tl.int64) * blocks + block, scale, mask=n < N)
    turned = tl.trans(_to_int8(y, scale[None, :], rounding))  # (CHANNELS, TOKENS)
    to = n[:, None].to(tl.int64) * M + m[None, :]
    tl.store(columns_ptr + to, turned, mask=(n[:, None] < N) & (m[None, :] < M))


@triton.jit
def block_mm_kernel(
    a_ptr, b_ptr, c_ptr, scale_a_ptr, scale_b_ptr, M, N, K, blocks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """c (M, N) fp32 = or += a (M, K) @ b (N, K).T, int8, a scale for each row and BLOCK_K."""
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
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for block in range(0, blocks):
        k = block * BLOCK_K + inner
        x = tl.load(a_ptr + a_row[:, None] * K + k[None, :], mask=k[None, :] < K, other=0)
        y = tl.load(b_ptr + b_row[None, :] * K + k[:, None], mask=k[:, None] < K, other=0)
        exact = tl.dot(x, y, out_dtype=tl.int32).to(tl.float32)
        scale_a = tl.load(scale_a_ptr + a_row * blocks + block)
        scale_b = tl.load(scale_b_ptr + b_row * blocks + block)
        total += exact * (scale_a[:, None] * scale_b[None, :])
    c = c_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    if ADD:
        total = tl.load(c, mask=inside, other=0.0) + total
    tl.store(c, total, mask=inside)


def launch_round_both(x: Tensor, producer: int, gate: Tensor | None) -> Rounded:
    """`int8_rounding.round_both` on a GPU, or in Triton's interpreter."""
    M, N = x.shape
    blocks = triton.cdiv(M, TOKENS)
    new = torch.empty
    scale, root = new((M, 1), device=x.device), new((M, 1), device=x.device)
    rows = new((M, N), dtype=torch.int8, device=x.device)
    columns = new((N, M), dtype=torch.int8, device=x.device)
    column_scale = new((N, blocks), device=x.device)
    other = x if gate is None else gate.contiguous()
    statistics_kernel[(M,)](
        x, other, scale, root, N, EPSILON, SMALLEST,
        PRODUCER=producer, BLOCK=STATISTICS_BLOCK, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    tile_kernel[(blocks, triton.cdiv(N, TILE_CHANNELS))](
        x, other, scale, root, rows, columns, column_scale, M, N, blocks, SMALLEST, ROUNDING,
        PRODUCER=producer, TOKENS=TOKENS, CHANNELS=TILE_CHANNELS,
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return Rounded(rows, scale, columns, column_scale)


_tuned: dict[bool, Any] = {}


def _grid(meta: dict[str, Any]) -> tuple[int]:
    return (triton.cdiv(meta["M"], meta["BLOCK_M"]) * triton.cdiv(meta["N"], meta["BLOCK_N"]),)


def configs() -> list[triton.Config]:
    """The tiles that the autotuner times."""
    return [
        triton.Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": TOKENS, "GROUP_M": GROUP_M},
            num_stages=stages,
            num_warps=warps,
        )
        for m, n, stages, warps in TILES
    ]


def launch_block_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, into: Tensor | None
) -> Tensor:
    """`int8_rounding.block_mm` on a GPU."""
    add = into is not None
    if add not in _tuned:  # a trial run must not add to the caller's matrix
        restore = ["c_ptr"] if add else None
        _tuned[add] = triton.autotune(configs(), key=["M", "N", "K"], restore_value=restore)(
            block_mm_kernel
        )
    (M, K), N = a.shape, b.size(0)
    c = torch.empty((M, N), device=a.device) if into is None else into
    _tuned[add][_grid](
        a, b, c, scale_a, scale_b, M, N, K, scale_a.size(1), ADD=add, enable_fp_fusion=False
    )
    return c

"""The Triton kernel behind `int8_mm`: int8 products, int32 sums, scales applied on the way out.

Tiles fit the 99 KB of shared memory that a block may use on Ada (compute capability 8.9): stages
times (BLOCK_M + BLOCK_N) times BLOCK_K bytes. Which tile is best for a shape is timed at its first
use.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP_M = 8  # blocks of rows that walk over the columns together: their factors stay in L2
SHARED_BYTES = 101_376
# BLOCK_M, BLOCK_N, BLOCK_K, stages, warps
TILES = (
    (128, 128, 128, 3, 8),
    (128, 128, 64, 4, 4),
    (128, 256, 64, 3, 8),
    (256, 128, 64, 3, 8),
    (128, 64, 128, 3, 4),
    (64, 128, 128, 3, 4),
    (64, 64, 128, 4, 4),
)


@triton.jit
def int8_kernel(
    a_ptr, b_ptr, c_ptr, scale_a_ptr, scale_b_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """c (M, N) = (a (M, K) @ b (N, K).T) * scale_a (M) * scale_b (N); all contiguous."""
    pid = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * blocks_n)
    first = group * GROUP_M
    height = min(blocks_m - first, GROUP_M)
    inside = pid % (GROUP_M * blocks_n)
    rows = (first + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (inside // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Beyond the edge the last row is read again; it is not written.
    a_row = tl.minimum(rows, M - 1).to(tl.int64)
    b_row = tl.minimum(columns, N - 1).to(tl.int64)
    inner = tl.arange(0, BLOCK_K)
    a = a_ptr + a_row[:, None] * K + inner[None, :]
    b = b_ptr + b_row[None, :] * K + inner[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        left = K - start
        x = tl.load(a, mask=inner[None, :] < left, other=0)
        y = tl.load(b, mask=inner[:, None] < left, other=0)
        total = tl.dot(x, y, total, out_dtype=tl.int32)
        a += BLOCK_K
        b += BLOCK_K
    scale_a = tl.load(scale_a_ptr + a_row)
    scale_b = tl.load(scale_b_ptr + b_row)
    result = total.to(tl.float32) * scale_a[:, None] * scale_b[None, :]
    c = c_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(c, result.to(tl.bfloat16), mask=(rows[:, None] < M) & (columns[None, :] < N))


def _grid(meta: dict[str, Any]) -> tuple[int]:
    return (triton.cdiv(meta["M"], meta["BLOCK_M"]) * triton.cdiv(meta["N"], meta["BLOCK_N"]),)


def configs() -> list[triton.Config]:
    """The tiles as the autotuner wants them."""
    return [
        triton.Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": GROUP_M},
            num_stages=stages,
            num_warps=warps,
        )
        for m, n, k, stages, warps in TILES
        if stages * (m + n) * k <= SHARED_BYTES
    ]


_tuned: dict[str, Any] = {}


def launch(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    """`int8_mm.scaled_mm` on CUDA tensors."""
    if "kernel" not in _tuned:
        _tuned["kernel"] = triton.autotune(configs(), key=["M", "N", "K"])(int8_kernel)
    (M, K), N = a.shape, b.size(0)
    c = torch.empty((M, N), dtype=torch.bfloat16, device=a.device)
    _tuned["kernel"][_grid](a, b, c, scale_a, scale_b, M, N, K)
    return c

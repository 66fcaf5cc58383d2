"""The Triton kernel behind `table_gradient.add_rows`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 256  # of a row that one program adds
ROWS = 8  # of one token that are read at a time


@triton.jit
def add_rows_kernel(
    total_ptr, tokens_ptr, order_ptr, rows_ptr, N, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """total (V, C)[token] += sum of rows (N, C)[order[i]] over all i with tokens[i] == token.

    `tokens` are in order. The program of a token's first position adds all its rows, so that
    no two programs write to one row of `total`.
    """
    first = tl.program_id(0)
    token = tl.load(tokens_ptr + first)
    before = tl.load(tokens_ptr + first - 1, mask=first > 0, other=-1)
    if token != before:
        columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        inside = columns < C
        lanes = tl.arange(0, ROWS)
        sums = tl.zeros((CHANNELS,), dtype=tl.float32)
        at = first
        more = token == token
        while more:
            places = at + lanes
            same = tl.load(tokens_ptr + places, mask=places < N, other=-1) == token
            row = tl.load(order_ptr + places, mask=same, other=0)
            values = tl.load(
                rows_ptr + row[:, None] * C + columns[None, :],
                mask=same[:, None] & inside[None, :],
                other=0.0,
            )
            sums += tl.sum(values.to(tl.float32), axis=0)
            more = tl.min(same.to(tl.int32)) == 1
            at += ROWS
        to = total_ptr + token * C + columns
        held = tl.load(to, mask=inside, other=0.0)
        added = sums.to(held.dtype).to(tl.float32) + held.to(tl.float32)
        tl.store(to, added.to(held.dtype), mask=inside)


def launch_add_rows(total: Tensor, tokens: Tensor, order: Tensor, rows: Tensor) -> None:
    """`table_gradient.add_rows` on a GPU, or in Triton's interpreter."""
    N, C = rows.shape
    add_rows_kernel[(N, triton.cdiv(C, CHANNELS))](
        total, tokens, order, rows, N, C, ROWS=ROWS, CHANNELS=CHANNELS, num_warps=4
    )

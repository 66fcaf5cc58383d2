"""Windowed attention in blocks of queries, each meeting only the keys that its window can reach.

What runs everywhere: on a CPU with a backward pass of its own, elsewhere as one masked call of
PyTorch's attention a block. No T x T mask is worked off.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention with a sliding window below T; q, k and v (B, H, T, D), result (B, T, H, D)."""
    if q.device.type == "cpu":
        return _BlockedWindow.apply(q, k, v, window).transpose(1, 2)
    y = torch.cat(
        [
            F.scaled_dot_product_attention(
                q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], attn_mask=mask
            )
            for start, stop, first, mask in _blocks(q.size(2), window, q)
        ],
        dim=2,
    )
    return y.transpose(1, 2)


def _blocks(T: int, window: int, like: Tensor) -> list[tuple[int, int, int, Tensor]]:
    """(first query, past the last query, first key, additive mask) of each block of queries.

    Blocks of half a window waste a third of the keys they meet; much smaller ones lose more to
    the number of calls than they save.
    """
    size = max(64, window // 2)
    # One band serves every block: row r is query r, column c the key at r's offset c - (window-1).
    row = torch.arange(size, device=like.device)[:, None]
    column = torch.arange(size + window - 1, device=like.device)
    hidden = (column < row) | (column >= row + window)
    band = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    band.masked_fill_(hidden, float("-inf"))
    blocks = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        first = max(0, start - window + 1)
        shift = first - (start - window + 1)
        mask = band[: stop - start, shift : shift + stop - first]
        blocks.append((start, stop, first, mask))
    return blocks


class _BlockedWindow(torch.autograd.Function):
    """Windowed attention on a CPU: one flash call a block, gradients added in place."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        B, H, T, D = q.shape
        y = torch.empty((B, T, H, D), dtype=q.dtype).transpose(1, 2)
        sums = []
        for start, stop, first, mask in _blocks(T, window, q):
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], attn_mask=mask
            )
            y[:, :, start:stop] = part
            sums.append(log_sum)
        ctx.window = window
        ctx.save_for_backward(q, k, v, y, *sums)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, y, *sums = ctx.saved_tensors
        B, H, T, D = q.shape
        dq = torch.empty((B, T, H, D), dtype=q.dtype).transpose(1, 2)
        dk = torch.zeros((B, T, H, D), dtype=q.dtype).transpose(1, 2)
        dv = torch.zeros((B, T, H, D), dtype=q.dtype).transpose(1, 2)
        blocks = _blocks(T, ctx.window, q)
        for (start, stop, first, mask), log_sum in zip(blocks, sums, strict=True):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                dy[:, :, start:stop],
                q[:, :, start:stop],
                k[:, :, first:stop],
                v[:, :, first:stop],
                y[:, :, start:stop],
                log_sum,
                0.0,
                False,
                attn_mask=mask,
            )
            dq[:, :, start:stop] = parts[0]
            dk[:, :, first:stop] += parts[1]
            dv[:, :, first:stop] += parts[2]
        return dq, dk, dv, None

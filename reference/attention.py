"""Causal attention with a sliding window and grouped key/value heads.

A window of W means: position i sees the keys j with i - W < j <= i, W keys with itself. The backend
follows the device. Where the window covers all keys it is plain causal attention and PyTorch's
flash kernels do it. Narrower windows run on a GPU in FlashAttention-2's windowed kernel, which
ships inside PyTorch (`torch.nn.attention.varlen`); everywhere else the queries are cut into blocks
and each block meets only the keys that its window can reach, so that no T x T mask is worked off.
"""

from __future__ import annotations

import inspect
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention of T queries over the same T positions.

    Args:
        q: (B, T, H, D).
        k: (B, T, G, D), G dividing H: query head h uses key head h // (H / G).
        v: (B, T, G, D).
        window: Keys a position sees, itself included.

    Returns:
        (B, T, H, D), softmax scale 1 / sqrt(D).
    """
    B, T, H, _ = q.shape
    grouped = k.size(2) != H
    if window >= T:
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            enable_gqa=grouped,
        )
        return y.transpose(1, 2)
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and _windowed_kernel_exists():
        from torch.nn.attention.varlen import varlen_attn

        starts = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q.device)
        y = varlen_attn(
            q.flatten(0, 1),
            k.flatten(0, 1),
            v.flatten(0, 1),
            starts,
            starts,
            T,
            T,
            window_size=(window - 1, 0),
            enable_gqa=grouped,
        )
        return y.view(q.shape)
    if grouped:
        k = k.repeat_interleave(H // k.size(2), dim=2)
        v = v.repeat_interleave(H // v.size(2), dim=2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.device.type == "cpu":
        return _BlockedWindow.apply(q, k, v, window).transpose(1, 2)
    y = torch.cat(
        [
            F.scaled_dot_product_attention(
                q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], attn_mask=mask
            )
            for start, stop, first, mask in _blocks(T, window, q)
        ],
        dim=2,
    )
    return y.transpose(1, 2)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of T new queries over S cached keys, for generation.

    Args:
        q: (B, T, H, D).
        k: (B, S, G, D).
        v: (B, S, G, D).
        mask: (B, 1, T, S) or (1, 1, T, S) bool, True where a query may look; None: everywhere.

    Returns:
        (B, T, H, D).
    """
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        enable_gqa=k.size(2) != q.size(2),
    )
    return y.transpose(1, 2)


@cache
def _windowed_kernel_exists() -> bool:
    """Whether this PyTorch's varlen attention takes a window (2.11 and later, CUDA builds)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    arguments = inspect.signature(varlen_attn).parameters
    return "window_size" in arguments and "enable_gqa" in arguments


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
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
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
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
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

"""Token tables whose gradients are added by index.

PyTorch's backward pass of an embedding makes a gradient of the whole table and adds it to the one
of the micro-steps before: eight bytes of memory traffic for every entry of every table, for each
micro-step, although a micro-step meets a few thousand tokens. Here the rows of one token are summed
in fp32 and added to that token's row of `.grad`. The sums are those of the dense way; on a CPU they
are equal to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.kernels.compiling import has_triton


class Index(NamedTuple):
    """Where each token of a micro-batch of N stands; int64.

    On a GPU `tokens` (N,) are sorted, and `order[i]` is the position of `tokens[i]` in the
    micro-batch. On a CPU `tokens` (U,) holds each token that occurs once, and `order` (N,) says for
    each position which of them it has.
    """

    tokens: Tensor
    order: Tensor


def find_index(tokens: Tensor) -> Index:
    """The index of tokens of any shape, for all tables that they are looked up in."""
    flat = tokens.flatten()
    if flat.is_cuda:
        return Index(*torch.sort(flat, stable=True))
    return Index(*torch.unique(flat, return_inverse=True))


def look_up(tokens: Tensor, table: nn.Embedding, index: Index | None) -> Tensor:
    """Rows of `table` (V, C) for `tokens` (...): (..., C).

    Args:
        index: Of the tokens: the backward pass adds to the gradient of `table`. None: no gradient.
    """
    if index is None or not table.weight.requires_grad:
        return F.embedding(tokens, table.weight.detach())
    return _LookUp.apply(tokens, table.weight, *index)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: nn.Parameter, *index: Tensor) -> Tensor:
        ctx.table = table
        ctx.save_for_backward(*index)
        return F.embedding(tokens, table.detach())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, ...]:
        table = ctx.table
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        add_rows(table.grad, Index(*ctx.saved_tensors), dy.flatten(0, -2))
        return None, None, None, None


@torch.no_grad()
def add_rows(total: Tensor, index: Index, rows: Tensor) -> None:
    """total[token] += the sum of the rows of that token, for every token; in place.

    Args:
        total: (V, C).
        index: Of the N tokens that the rows belong to.
        rows: (N, C). The rows of a token are summed in fp32; the sum is rounded to the type of
            `total` before it is added.
    """
    rows = rows.contiguous()
    if total.is_cuda:
        if has_triton():
            from reference.kernels.table_gradient_triton import launch_add_rows

            launch_add_rows(total, index.tokens, index.order, rows)
        else:  # sums in the type of `total`, in any order
            total.index_add_(0, index.tokens, rows[index.order].to(total.dtype))
        return
    sums = torch.zeros((len(index.tokens), rows.size(1)))
    sums.index_add_(0, index.order, rows.float())
    total.index_add_(0, index.tokens, sums.to(total.dtype))

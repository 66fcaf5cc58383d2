"""A tensor rounded to int8 in both layouts, in one pass over memory, and products of such tensors.

A linear map y = f(x) @ W.T, with f the norm, relu squared or nothing, needs f(x) twice in 8 bits:
by rows for the output, and by columns (tokens along the last axis) for the weight gradient.
Rounding each of them from memory costs two reads of a bf16 tensor, for the largest magnitude and
for the values, and two more for the transpose. Here one kernel reads x once, applies f, and writes
both int8 layouts. f(x) itself never exists in memory.

One pass is enough because a scale belongs to a block of BLOCK values: by rows to BLOCK channels of
a token, by columns to BLOCK tokens of a channel, so that a tile of BLOCK tokens and BLOCK channels
knows its own scales. `block_mm` sums the products of each block exactly in int32, scales the sum,
and adds the blocks in fp32.

On a CPU the same arithmetic runs in PyTorch, with results equal to the kernels' to the bit.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reference.kernels.cpu import linear

Producer = Literal["identity", "norm", "relu2", "relu2_backward"]
PRODUCERS: dict[str, int] = {"identity": 0, "norm": 1, "relu2": 2, "relu2_backward": 3}
BLOCK = 128  # values that share a scale
LARGEST = 127.0
SMALLEST = 1e-12  # an all-zero block keeps zeros instead of becoming NaN
EPSILON = torch.finfo(torch.float32).eps  # as in `F.rms_norm` of fp32
ROUNDING = 12582912.0  # 1.5 * 2**23: adding and subtracting it rounds an fp32 half to even


class Rounded(NamedTuple):
    """f(x) of M tokens and N channels in int8, by rows and by columns.

    f(x)[m, n] is about rows[m, n] * row_scale[n // BLOCK, m] and columns[n, m] *
    column_scale[m // BLOCK, n].
    """

    rows: Tensor  # (M, N) int8
    row_scale: Tensor  # (ceil(N / BLOCK), M) fp32
    columns: Tensor  # (N, M) int8
    column_scale: Tensor  # (ceil(M / BLOCK), N) fp32


def inverse_rms(x: Tensor) -> Tensor:
    """(M, 1) fp32: what the norm multiplies each row of x (M, N) by."""
    return torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + EPSILON)


def produce(x: Tensor, producer: Producer, other: Tensor | None = None) -> Tensor:
    """f(x) in fp32; see `round_both`."""
    x = x.float()
    if producer == "norm":
        assert other is not None
        return x * other
    if producer == "relu2":
        positive = x.clamp_min(0.0)
        return positive * positive
    if producer == "relu2_backward":
        assert other is not None
        return x * (2.0 * other.float().clamp_min(0.0))
    return x


def round_both(x: Tensor, producer: Producer = "identity", other: Tensor | None = None) -> Rounded:
    """f(x) rounded to the nearest int8 value by rows and by columns.

    A value that is not finite makes its scales NaN, so that it is seen in every product.

    Args:
        x: (M, N), contiguous; bf16 or fp32.
        other: For "norm": `inverse_rms(x)`. For "relu2_backward": (M, N), the input of relu
            squared, x being the gradient of its output.

    Raises:
        ValueError: `other` is missing or not wanted, or x is not a contiguous matrix.
    """
    if x.dim() != 2 or not x.is_contiguous():
        raise ValueError("round_both needs a contiguous matrix (tokens, channels)")
    if (other is not None) != (producer in ("norm", "relu2_backward")):
        raise ValueError("`other` goes with the producers norm and relu2_backward, and only there")
    return Rounded(*_round_both(x, other, producer))


@torch.library.custom_op("n4090::int8_round_both", mutates_args=())
def _round_both(
    x: Tensor, other: Tensor | None, producer: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # An operator of its own, because the compiler must neither look into it nor split it.
    if x.is_cuda:
        from reference.kernels.int8_rounding_triton import launch_round_both

        return tuple(launch_round_both(x, PRODUCERS[producer], other))  # type: ignore[return-value]
    return tuple(round_tiles(produce(x, producer, other)))  # type: ignore[return-value,arg-type]


@_round_both.register_fake
def _(x: Tensor, other: Tensor | None, producer: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    M, N = x.shape
    return (
        x.new_empty((M, N), dtype=torch.int8),
        x.new_empty((-(-N // BLOCK), M), dtype=torch.float32),
        x.new_empty((N, M), dtype=torch.int8),
        x.new_empty((-(-M // BLOCK), N), dtype=torch.float32),
    )


def round_tiles(y: Tensor, lift: Tensor | None = None) -> Rounded:
    """y (M, N) fp32 in both int8 layouts, in PyTorch operations.

    Args:
        lift: (BLOCK, BLOCK) from 0 to below 1: instead of to the nearest, a value goes up where its
            fraction reaches 1 - lift at its place in the tile.
    """
    M, N = y.shape
    down, across = -(-M // BLOCK), -(-N // BLOCK)
    if M % BLOCK or N % BLOCK:
        padded = torch.zeros((down * BLOCK, across * BLOCK))
        padded[:M, :N] = y
        y = padded
    tiles = y.view(down, BLOCK, across, BLOCK)
    layouts = []
    for dim in (3, 1):
        amax = tiles.abs().amax(dim=dim, keepdim=True)
        scale = amax.clamp_min(SMALLEST) / LARGEST
        scale = torch.where(scale.isfinite(), scale, torch.nan)
        # A product with the reciprocal: one division a scale instead of one an element.
        scaled = tiles * (1.0 / scale)
        scaled = scaled.round_() if lift is None else scaled.add_(lift[:, None, :]).floor_()
        values = scaled.clamp_(-LARGEST, LARGEST).to(torch.int8).view(y.shape)[:M, :N]
        layouts.append((values, scale.squeeze(dim)))
    (rows, row_scale), (columns, column_scale) = layouts
    return Rounded(
        rows.contiguous(),
        row_scale.permute(2, 0, 1).reshape(across, -1)[:, :M].contiguous(),
        columns.T.contiguous(),
        column_scale.view(down, -1)[:, :N].contiguous(),
    )


def block_mm(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    into: Tensor | None = None,
) -> Tensor:
    """Returns a (M, K) @ b (N, K).T of int8 factors whose scales change every BLOCK columns.

    Args:
        scale_a: (ceil(K / BLOCK), M) fp32; scale_b: (the same, N).
        dtype: Of the result, which is computed in fp32: float32 or bfloat16.
        into: (M, N) fp32 to add to, in place, and to return; None: a new matrix.
    """
    if into is not None:
        _block_mm_add(a, b, scale_a, scale_b, into)
        return into
    return _block_mm(a, b, scale_a, scale_b, dtype == torch.bfloat16)


@torch.library.custom_op("n4090::int8_block_mm", mutates_args=())
def _block_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, half: bool) -> Tensor:
    dtype = torch.bfloat16 if half else torch.float32
    return _sum(a, b, scale_a, scale_b, None, dtype)


@_block_mm.register_fake
def _(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, half: bool) -> Tensor:
    dtype = torch.bfloat16 if half else torch.float32
    return a.new_empty((a.size(0), b.size(0)), dtype=dtype)


@torch.library.custom_op("n4090::int8_block_mm_add", mutates_args=("into",))
def _block_mm_add(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, into: Tensor) -> None:
    _sum(a, b, scale_a, scale_b, into)


@_block_mm_add.register_fake
def _(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, into: Tensor) -> None:
    return None


def _sum(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    into: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    if a.is_cuda:
        from reference.kernels.int8_rounding_triton import launch_block_mm

        return launch_block_mm(a, b, scale_a, scale_b, into, dtype)
    total = torch.zeros((a.size(0), b.size(0)))
    for block in range(scale_a.size(0)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        # At most 128 products of 127 * 127: fp32 holds their sums exactly, in any order.
        exact = linear(a[:, part].float(), b[:, part].float())
        total += exact * (scale_a[block, :, None] * scale_b[block, None, :])
    return total.to(dtype) if into is None else into.add_(total)

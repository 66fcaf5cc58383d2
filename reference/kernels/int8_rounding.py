"""A tensor rounded to int8 in both layouts, in the pass that computes it.

A linear map y = f(x) @ W.T, with f the norm, relu squared or nothing, needs f(x) three times in 8
bits: by rows for the output, and by columns (tokens along the last axis) for the weight gradient.
Rounding each of them from memory costs two reads of a bf16 tensor for the largest magnitude and the
values, and one more of each for the transpose. Here two kernels do all of it: the first reads x and
keeps one or two numbers a row, the second reads x again (from the L2 cache where x fits it),
applies f, and writes both int8 layouts. f(x) itself never exists in memory.

Scales: by rows one a token. By columns one for each channel and each TOKENS tokens, so that a tile
knows its own; `block_mm` sums the products of each such block exactly and scales them afterwards.

On a CPU the same arithmetic runs in PyTorch. The two agree to the bit except for the order of the
norm's sum of squares.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Producer = Literal["identity", "norm", "relu2", "relu2_backward"]
PRODUCERS: dict[str, int] = {"identity": 0, "norm": 1, "relu2": 2, "relu2_backward": 3}
TOKENS = 128  # tokens that share a column's scale
LARGEST = 127.0
SMALLEST = 1e-12  # an all-zero row keeps zeros instead of becoming NaN
EPSILON = torch.finfo(torch.float32).eps  # as in `F.rms_norm` of fp32
ROUNDING = 12582912.0  # 1.5 * 2**23: adding and subtracting it rounds an fp32 half to even


class Rounded(NamedTuple):
    """f(x) of M tokens and N channels in int8, by rows and by columns.

    f(x)[m, n] is about rows[m, n] * row_scale[m] and columns[n, m] * column_scale[n, m // TOKENS].
    """

    rows: Tensor  # (M, N) int8
    row_scale: Tensor  # (M, 1) fp32
    columns: Tensor  # (N, M) int8
    column_scale: Tensor  # (N, ceil(M / TOKENS)) fp32


def produce(x: Tensor, producer: Producer, gate: Tensor | None = None) -> Tensor:
    """f(x) in fp32. For "relu2_backward": x is the gradient of relu(gate)**2, `gate` its input."""
    x = x.float()
    if producer == "norm":
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)
    if producer == "relu2":
        positive = x.clamp_min(0.0)
        return positive * positive
    if producer == "relu2_backward":
        assert gate is not None
        return x * (2.0 * gate.float().clamp_min(0.0))
    return x


def round_both(x: Tensor, producer: Producer = "identity", gate: Tensor | None = None) -> Rounded:
    """f(x) rounded to the nearest int8 value by rows and by columns.

    Args:
        x: (M, N), contiguous; bf16 or fp32.
        gate: (M, N) for "relu2_backward".

    Raises:
        ValueError: `gate` is missing or not wanted, or x is not a contiguous matrix.
    """
    if x.dim() != 2 or not x.is_contiguous():
        raise ValueError("round_both needs a contiguous matrix (tokens, channels)")
    if (gate is not None) != (producer == "relu2_backward"):
        raise ValueError("`gate` goes with the producer relu2_backward, and only with it")
    return Rounded(*_round_both(x, gate, producer))


@torch.library.custom_op("n4090::int8_round_both", mutates_args=())
def _round_both(
    x: Tensor, gate: Tensor | None, producer: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # An operator of its own, because the compiler must neither look into it nor split it.
    if x.is_cuda:
        from reference.kernels.int8_rounding_triton import launch_round_both

        return tuple(launch_round_both(x, PRODUCERS[producer], gate))  # type: ignore[return-value]
    return tuple(round_both_plain(x, producer, gate))  # type: ignore[return-value,arg-type]


@_round_both.register_fake
def _(x: Tensor, gate: Tensor | None, producer: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    M, N = x.shape
    return (
        x.new_empty((M, N), dtype=torch.int8),
        x.new_empty((M, 1), dtype=torch.float32),
        x.new_empty((N, M), dtype=torch.int8),
        x.new_empty((N, -(-M // TOKENS)), dtype=torch.float32),
    )


def round_both_plain(
    x: Tensor, producer: Producer = "identity", gate: Tensor | None = None
) -> Rounded:
    """`round_both` in PyTorch operations."""
    y = produce(x, producer, gate)
    M, N = y.shape
    row_scale = finite_or_nan(y.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST) / LARGEST)
    rows = _to_int8(y, row_scale)
    blocks = -(-M // TOKENS)
    padded = torch.zeros((blocks * TOKENS, N))
    padded[:M] = y
    tiles = padded.view(blocks, TOKENS, N)
    amax = tiles.abs().amax(dim=1)  # (blocks, N)
    scale = finite_or_nan(amax.clamp_min(SMALLEST) / LARGEST)
    columns = _to_int8(tiles, scale[:, None]).view(-1, N)[:M].T.contiguous()
    return Rounded(rows, row_scale, columns, scale.T.contiguous())


def finite_or_nan(scale: Tensor) -> Tensor:
    """Scales with NaN for infinity: a value that is not finite must show in every product."""
    return torch.where(scale.isfinite(), scale, torch.nan)


def _to_int8(y: Tensor, scale: Tensor) -> Tensor:
    # A product with the reciprocal: one division a scale instead of one an element.
    scaled = (y * (1.0 / scale)).clamp(-LARGEST, LARGEST)
    return ((scaled + ROUNDING) - ROUNDING).to(torch.int8)


def block_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, *, into: Tensor | None = None
) -> Tensor:
    """Returns a (M, K) @ b (N, K).T of int8 factors whose scales change every TOKENS columns; fp32.

    Each block's products are summed exactly in int32, scaled, and added in fp32 in order.

    Args:
        scale_a: (M, ceil(K / TOKENS)) fp32; scale_b: (N, the same).
        into: (M, N) fp32 to add to, in place; None: a new matrix. Not in compiled code.
    """
    return _block_mm(a, b, scale_a, scale_b) if into is None else _sum(a, b, scale_a, scale_b, into)


@torch.library.custom_op("n4090::int8_block_mm", mutates_args=())
def _block_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    return _sum(a, b, scale_a, scale_b, None)


@_block_mm.register_fake
def _(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    return a.new_empty((a.size(0), b.size(0)), dtype=torch.float32)


def _sum(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, into: Tensor | None) -> Tensor:
    if a.is_cuda:
        from reference.kernels.int8_rounding_triton import launch_block_mm

        return launch_block_mm(a, b, scale_a, scale_b, into)
    total = torch.zeros((a.size(0), b.size(0)))
    for block in range(scale_a.size(1)):
        part = slice(block * TOKENS, (block + 1) * TOKENS)
        # At most 128 products of 127 * 127: fp32 holds their sums exactly, in any order.
        exact = a[:, part].float() @ b[:, part].float().T
        total += exact * (scale_a[:, block, None] * scale_b[None, :, block])
    return total if into is None else into.add_(total)

"""Linear maps trained with `rounding`: int8 in all three products, weights rounded once a step.

`StepWeights` holds the int8 weights of every map in both layouts. `refresh` fills them after each
optimizer step, so that micro-steps of the same optimizer step share one rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.experiments.fused_int8.rounding import (
    EPSILON,
    LARGEST,
    SMALLEST,
    Producer,
    block_mm,
    round_both,
)
from reference.kernels import int8_mm


class Weight(NamedTuple):
    """A weight (out, in) in int8, one scale a row of each layout."""

    forward: Tensor  # (out, in) int8
    forward_scale: Tensor  # (out, 1) fp32
    backward: Tensor  # (in, out) int8, contiguous: the factor of the input's gradient
    backward_scale: Tensor  # (in, 1) fp32


def round_weight(weight: Tensor) -> Weight:
    """A weight (out, in) rounded to the nearest int8 value in both layouts."""

    def by_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
        scale = matrix.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST) / LARGEST
        return (matrix / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale

    weight = weight.detach().float()
    return Weight(*by_rows(weight), *by_rows(weight.T.contiguous()))


class StepWeights:
    """The int8 weights of a model's maps, by parameter; valid until the weights change."""

    def __init__(self) -> None:
        self._rounded: dict[nn.Parameter, Weight] = {}

    def refresh(self, weights: Iterable[nn.Parameter]) -> None:
        """Rounds `weights` again: call it after every optimizer step."""
        self._rounded = {weight: round_weight(weight) for weight in weights}

    def __getitem__(self, weight: nn.Parameter) -> Weight:
        return self._rounded[weight]


def mapped(
    x: Tensor, weight: nn.Parameter, rounded: Weight, producer: Producer = "identity"
) -> Tensor:
    """f(x) @ weight.T with f named by `producer`; gradients for x and weight.

    Args:
        x: (M, in) bf16 or fp32, contiguous.
        rounded: `weight` as `StepWeights` holds it. The result is computed from it alone.

    Returns:
        (M, out) in x's dtype.
    """
    if producer == "relu2_backward":
        raise ValueError("relu2_backward is a gradient, not a function in front of a map")
    return _Mapped.apply(x, weight, rounded, producer)


class _Mapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, rounded: Weight, producer: Producer) -> Tensor:
        both = round_both(x, producer)
        # The columns are an eighth of a bf16 copy's traffic later, and half of its memory.
        ctx.save_for_backward(x, both.columns, both.column_scale, *rounded)
        ctx.producer, ctx.weight_dtype = producer, weight.dtype
        y = int8_mm.scaled_mm(both.rows, rounded.forward, both.row_scale, rounded.forward_scale)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, columns, column_scale, *rest = ctx.saved_tensors
        rounded = Weight(*rest)
        both = round_both(dy.contiguous())
        d_input = int8_mm.scaled_mm(
            both.rows, rounded.backward, both.row_scale, rounded.backward_scale
        )
        d_weight = block_mm(both.columns, columns, both.column_scale, column_scale)
        dx = backward_of(ctx.producer, d_input.float(), x.float()).to(x.dtype)
        return dx, d_weight.to(ctx.weight_dtype), None, None


def backward_of(producer: Producer, dy: Tensor, x: Tensor) -> Tensor:
    """The gradient for x of f(x), from the gradient `dy` for f(x); both (M, N) fp32."""
    if producer == "norm":
        root = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)
        y = x * root
        return root * (dy - y * (dy * y).mean(dim=1, keepdim=True))
    if producer == "relu2":
        return dy * (2.0 * x.clamp_min(0.0))
    return dy

"""Norm, norm with rotation, and relu squared, each in few passes over memory.

Eager PyTorch walks over the activations once for every small operation and once or twice more in
its backward pass; on a CPU that costs as much as the matrix products of a small model. Compiled
code and GPUs get the plain formulas, which their compiler fuses better than this.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps  # what F.rms_norm adds for fp32


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without a scale."""
    if _plain(x):
        return F.rms_norm(x, (x.size(-1),))
    return _Norm.apply(x)


def norm_and_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS norm, then rotary positions: turns each (x[d], x[d + D/2]) by its position's angle.

    A rotation keeps lengths, so it does not matter which comes first.

    Args:
        x: (B, T, heads, D).
        cos: (T, 1, D/2) or (B, T, 1, D/2); a factor in it and in `sin` scales the result.
    """
    if _plain(x):
        first, second = norm(x).chunk(2, dim=-1)
        return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)
    return _NormAndRotate.apply(x, cos, sin)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0) squared."""
    if _plain(x):
        return F.relu(x).square()
    return _ReluSquared.apply(x)


def _plain(x: Tensor) -> bool:
    return x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling()


def _scale(x: Tensor) -> Tensor:
    """1 / RMS of each vector, (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.size(-1)).add_(EPSILON).rsqrt_()


def _norm_backward(dy: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """dx = scale * (dy - y * mean(dy * y)) for y = x * scale."""
    mean = torch.linalg.vecdot(dy, y).unsqueeze(-1).div_(-y.size(-1))
    return torch.addcmul(dy, y, mean).mul_(scale)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """Rotation by the angle (sign 1) or back (-1)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty(x.shape, dtype=x.dtype)
    left, right = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=sign)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=-sign)
    return turned


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _scale(x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _norm_backward(dy, *ctx.saved_tensors)


class _NormAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        scale = _scale(x)
        y = x * scale
        ctx.save_for_backward(y, scale, cos, sin)
        return _turn(y, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, None, None]:
        y, scale, cos, sin = ctx.saved_tensors
        return _norm_backward(_turn(dz, cos, sin, -1), y, scale), None, None


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.clamp_min(0.0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (dy * positive).mul_(2.0)

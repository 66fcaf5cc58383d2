"""Matrix products in fp32 on a CPU, through the faster of the two libraries inside PyTorch.

PyTorch sends fp32 products to MKL, which keeps its AVX-512 kernels for Intel's own processors:
on an AMD EPYC with AVX-512 oneDNN does them in under half the time (`n4090-kit bench train`
prints which one ran). The choice is a rule and not a trial, so that a resumed run makes the same
one and repeats the same bits. Everything that is no eager fp32 product on a CPU goes PyTorch's way.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T with gradients: x (..., K), weight (N, K) -> (..., N)."""
    if not _takes_onednn(x, weight):
        return F.linear(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight)
    return _onednn(x, weight)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b without gradients: (M, K), (K, N) -> (M, N)."""
    return _onednn(a, b.mT) if _takes_onednn(a, b) else a @ b


def add_matmul_(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out += a @ b, in place and without gradients: (M, N), (M, K), (K, N)."""
    if _takes_onednn(a, b):
        return out.add_(_onednn(a, b.mT))
    return out.addmm_(a, b) if out.dtype == a.dtype else out.add_(a @ b)


def batched_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of each pair without gradients: (B, M, K), (B, K, N) -> (B, M, N)."""
    if not _takes_onednn(a, b):
        return a @ b
    return torch.stack([_onednn(left, right.mT) for left, right in zip(a, b, strict=True)])


def baddbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """beta * x + alpha * (a @ b) of each triple, without gradients: as `torch.baddbmm`."""
    if not _takes_onednn(a, b):
        return torch.baddbmm(x, a, b, beta=beta, alpha=alpha)
    return batched_matmul(a, b).mul_(alpha).add_(x, alpha=beta)


def cpu_library() -> str:
    """ "onednn" or "blas": where fp32 products on this CPU go."""
    return "onednn" if _onednn_is_faster() else "blas"


def _takes_onednn(a: Tensor, b: Tensor) -> bool:
    return (
        a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and _onednn_is_faster()
    )


@cache
def _onednn_is_faster() -> bool:
    """Whether BLAS is MKL on a processor that is not Intel's, and oneDNN is there."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = _onednn(dy, weight.mT) if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = _onednn(dy.flatten(0, -2).mT, x.flatten(0, -2).mT)
        return dx, d_weight

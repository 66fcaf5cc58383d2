"""Muon's update of a batch of matrices of one shape.

Muon replaces a matrix's momentum by the nearest (semi-)orthogonal matrix, so that every direction
of the update has the same size. Here, in order: Nesterov momentum; rows scaled to equal length
(MuonEq, arXiv 2603.28254); five Polar Express steps (arXiv 2505.16932); the norm an orthogonal
matrix would have (Muon+, arXiv 2602.21545); a factored second moment that evens out neurons
(NorMuon, arXiv 2510.05491).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference.kernels.cpu import baddbmm, batched_matmul

# Odd polynomials a x + b x^3 + c x^5, one a step, minimax for singular values in [1e-3, 1]; each
# coefficient triple is the published one of arXiv 2505.16932, with its safety factor of 1.02.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
NORM_MARGIN = 1.01  # keeps the largest singular value below 1 when bf16 rounds


@torch.no_grad()
def orthogonalize(batch: Tensor) -> Tensor:
    """Approximately U V^T of each matrix U S V^T: (K, m, n) in, same shape and dtype out.

    Rows are brought to equal length first, the Frobenius norm to sqrt(min(m, n)) afterwards. The
    iterations run in bf16 on a GPU.
    """
    m, n = batch.shape[-2:]
    x = batch
    row = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (K, m, 1)
    whole = torch.linalg.vector_norm(row, dim=-2, keepdim=True)  # (K, 1, 1)
    target = whole / math.sqrt(m)
    x = x * (target / row.clamp_min(1e-6) / (whole * NORM_MARGIN + 1e-6))
    if x.is_cuda:
        x = x.bfloat16()
    if m > n:  # the Gram matrix of the shorter side is the small one
        x = x.mT
    for a, b, c in POLAR_EXPRESS:
        gram = batched_matmul(x, x.mT)
        x = baddbmm(x, baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    if m > n:
        x = x.mT
    x = x.to(batch.dtype)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    return x * (math.sqrt(min(m, n)) / norm)


def _even_out(update: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """NorMuon: divides by a running RMS per row (tall) or column (wide), keeping each norm."""
    m, n = update.shape[-2:]
    dim = -1 if m >= n else -2
    mean_square = update.square().mean(dim=dim, keepdim=True)
    second_moment.lerp_(mean_square.to(second_moment.dtype), 1.0 - beta2)
    scale = second_moment.clamp_min(1e-10).rsqrt()
    before = mean_square.sum(dim=(-2, -1), keepdim=True)
    after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True)
    return update.mul_(scale * (before / after.clamp_min(1e-20)).sqrt())


def advance(momentum: Tensor, gradient: Tensor, rate: Tensor | float) -> Tensor:
    """`momentum` a step further, in place; returns it in the gradient's type."""
    mixed = momentum if momentum.dtype == gradient.dtype else momentum.to(gradient.dtype)
    mixed = mixed.lerp_(gradient, 1.0 - rate)
    if mixed is not momentum:
        momentum.copy_(mixed)
    return mixed


def orthogonal_step(update: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """The part of Muon after the momentum: orthogonalized, neurons evened out."""
    return _even_out(orthogonalize(update), second_moment, beta2)


def muon_update(
    update: Tensor,
    momentum: Tensor,
    second_moment: Tensor,
    rate: Tensor | float,
    beta2: float,
) -> Tensor:
    """The step's direction from the gradients `update` (K, m, n), which it may overwrite.

    All states are brought up to date in place; momentum may be kept in bf16.
    """
    mixed = advance(momentum, update, rate)
    return orthogonal_step(update.lerp_(mixed, rate), second_moment, beta2)

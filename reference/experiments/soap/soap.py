"""SOAP: Adam in the eigenbasis of Shampoo's two covariances (arXiv 2409.11321).

Of the gradients G of a matrix two running covariances are kept, G G^T (left) and G^T G (right).
In the basis of their eigenvectors Adam's second moment is nearly diagonal. The basis comes from an
eigendecomposition at the first gradient, and every few steps from one power iteration and a QR
decomposition. A side longer than `max_dim` keeps its own axes, which is the paper's one-sided form.

SOAP-Muon uses the same basis to precondition Muon's momentum (modded-nanogpt pull request 278;
on all matrices: 321). Everything works on a batch (K, m, n); no call here waits for the device,
except the eigendecomposition of the very first step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference.kernels.cpu import batched_matmul
from reference.optim.muon import advance

EARLY_STEPS = 20
EPS = 1e-10
# Adam's steps have about this root mean square an entry (arXiv 2502.16982, 2.2).
ADAM_RMS = 0.2

State = dict[str, Tensor]


def add_to_covariances(state: State, gradient: Tensor, beta2: float) -> None:
    """G G^T and G^T G of the gradients (K, m, n) into the running means."""
    if "left" in state:
        state["left"].lerp_(batched_matmul(gradient, gradient.mT), 1.0 - beta2)
    if "right" in state:
        state["right"].lerp_(batched_matmul(gradient.mT, gradient), 1.0 - beta2)


def into_basis(x: Tensor, state: State) -> Tensor:
    """Q_left^T x Q_right."""
    if "left" in state:
        x = batched_matmul(state["left_basis"].mT, x)
    return batched_matmul(x, state["right_basis"]) if "right" in state else x


def out_of_basis(x: Tensor, state: State) -> Tensor:
    """Q_left x Q_right^T."""
    if "left" in state:
        x = batched_matmul(state["left_basis"], x)
    return batched_matmul(x, state["right_basis"].mT) if "right" in state else x


def soap_update(
    gradient: Tensor,
    momentum: Tensor,
    state: State,
    *,
    rate: float,
    beta2: float,
    corrections: tuple[float, float],
) -> Tensor:
    """The direction (K, m, n) of SOAP's step, scaled so that Muon's learning rate fits.

    Args:
        rate: Adam's first beta, of this step.
        corrections: What the two moments are divided by because they began at zero.
    """
    m, n = gradient.shape[-2:]
    turned = into_basis(gradient, state)
    state["exp_avg_sq"].lerp_(turned.square_(), 1.0 - beta2)
    turned = into_basis(advance(momentum, gradient, rate), state)
    first, second = corrections
    scale = (state["exp_avg_sq"] / second).sqrt_().add_(EPS)
    update = out_of_basis(turned / first / scale, state)
    # Muon's update has the Frobenius norm sqrt(min(m, n)), so this root mean square an entry.
    return update * (math.sqrt(min(m, n) / (m * n)) / ADAM_RMS)


def precondition(update: Tensor, state: State, beta2: float) -> Tensor:
    """SOAP-Muon: Nesterov momentum (K, m, n) over the root of its squares, in the basis."""
    turned = into_basis(update, state)
    state["exp_avg_sq"].lerp_(turned.square(), 1.0 - beta2)
    return out_of_basis(turned / state["exp_avg_sq"].sqrt().add_(EPS), state)


def refresh_due(step: int, refresh_steps: int) -> bool:
    """Whether the bases are refreshed after step `step` (from 1).

    Also after each of the first `EARLY_STEPS`: the covariances of so few gradients still turn fast,
    and matrices behind one that begins at zero have no gradient at all in the first step.
    """
    return step <= EARLY_STEPS or step % refresh_steps == 0


def first_bases(state: State) -> None:
    """Eigenvectors of the covariances, largest eigenvalue first."""
    for side in ("left", "right"):
        if side not in state:
            continue
        covariance, basis = state[side], state[side + "_basis"]
        try:
            vectors = torch.linalg.eigh(covariance).eigenvectors.flip(-1)
        # No convergence: as good a start, found by iteration.
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            vectors = torch.linalg.qr(covariance).Q
        basis.copy_(vectors)


def refresh_bases(state: State) -> None:
    """One power iteration and QR a side, in the order of the estimated eigenvalues.

    The second moment's rows and columns move along with the axes they belong to.
    """
    for side, dim in (("left", -2), ("right", -1)):
        if side not in state:
            continue
        covariance, basis = state[side], state[side + "_basis"]
        product = batched_matmul(covariance, basis)
        estimates = (basis * product).sum(dim=-2)  # (K, size): q^T C q of each axis
        order = torch.argsort(estimates, dim=-1, descending=True, stable=True)
        product = product.gather(-1, order.unsqueeze(-2).expand_as(product))
        basis.copy_(torch.linalg.qr(product).Q)
        squares = state["exp_avg_sq"]
        index = order.unsqueeze(-1 if dim == -2 else -2).expand_as(squares)
        squares.copy_(squares.gather(dim, index))

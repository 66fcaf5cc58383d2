"""Softcapped cross-entropy of a large vocabulary without its (tokens, V) logits.

The logits of a batch outweigh everything else in a small model. So hidden states meet the head a
chunk of tokens at a time, and each chunk's gradient is formed while its logits still lie in the
cache: one pass, three matrix products a chunk, nothing kept but the gradients of hidden states and
head. The result is the plain formula's up to rounding; no approximation is made.

On a GPU with Triton one kernel (`reference.kernels.triton_loss`) turns a chunk's bf16 logits into
losses and gradients in place, and the head's gradient is summed inside its matrix product.

The cap is worked out as a sigmoid, which CPUs compute several times faster than a tanh:
softcap * tanh(l / softcap) = 2 softcap * sigmoid(2 l / softcap) - softcap, and a softmax does not
see the constant.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.kernels import int8_loss
from reference.kernels.compiling import has_triton
from reference.kernels.cpu import add_matmul_, linear, matmul
from reference.kernels.eight_bit import FACTOR_MULTIPLE, Factor, Kind, multiply, quantize
from reference.kernels.int8_rounding import Rounded

Reduction = Literal["mean", "sum", "none"]


class SoftTargets(Protocol):
    """Targets of a micro-batch that take part in the gradient beside the tokens themselves."""

    def mixed(
        self, gradient: Tensor, scores: Tensor, part: slice, vocab_size: int, softcap: float
    ) -> Tensor:
        """The gradient by the capped logits of the tokens `part`, soft targets mixed in.

        Args:
            gradient: (n, V_padded) of the cross-entropy; may be overwritten.
            scores: (n, V_padded), what `scores_of` made of the student's states.
        """


CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}  # fp32 logits of one chunk
# Logits of one chunk of the Triton path. Each chunk costs a read and a write of the head's whole
# fp32 gradient, so a chunk that fits the L2 cache (300 tokens) would move ten times the bytes.
FUSED_CHUNK_BYTES = 256 << 20


def softcapped_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    softcap: float,
    reduction: Reduction = "mean",
    count: Tensor | int | None = None,
    kind: Kind = "bf16",
    each: Tensor | None = None,
    soft: SoftTargets | None = None,
    int8: Rounded | None = None,
) -> Tensor:
    """Cross-entropy in nats of softcap * tanh(hidden @ weight.T / softcap) against `targets`.

    Args:
        hidden: (N, C) in the compute dtype.
        weight: (V_padded, C), fp32 or the compute dtype; rows from `vocab_size` on are padding.
        targets: (N,) int64; below 0 means ignored: no loss, no gradient.
        softcap: 0 leaves the logits alone.
        reduction: "mean" over the targets that count, "sum", or "none" (zeros where ignored).
        count: With "mean", divides by this instead: the targets of a whole step of micro-batches.
        kind: Of the factors of the logits; both gradients stay in the compute dtype.
        each: (N,) fp32 to be filled with each target's loss on the way, 0 where ignored; not for
            "none", whose result that is.
        soft: A teacher's targets, of a share in the gradient; the value stays the cross-entropy.
        int8: The weight in int8 for all three products; not with `soft`.

    Returns:
        fp32 scalar, or (N,) for "none". With no target at all "mean" is 0.
    """
    if reduction == "none":
        return _EachLoss.apply(hidden, weight, targets, vocab_size, softcap)
    scale = _mean_scale(targets, reduction, count)
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        losses = _losses(hidden, weight, targets, vocab_size, softcap)
        if each is not None:
            each.copy_(losses)
        return losses.sum() * scale
    return _TotalLoss.apply(
        hidden, weight, targets, vocab_size, softcap, scale, kind, each, soft, int8
    )


def full_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    softcap: float,
    reduction: Reduction = "mean",
    count: Tensor | int | None = None,
    kind: Kind = "bf16",
    each: Tensor | None = None,
    int8: Rounded | None = None,
) -> Tensor:
    """`softcapped_cross_entropy` by the plain formula, with all logits in memory at once.

    What nanochat does; here to be measured against. Ignores `kind` and `int8`.
    """
    logits = softcapped_logits(hidden, weight, vocab_size=vocab_size, softcap=softcap)
    losses = F.cross_entropy(
        logits, targets.masked_fill(targets < 0, -100), reduction="none", ignore_index=-100
    )
    if reduction == "none":
        return losses
    if each is not None:
        each.copy_(losses.detach())
    return losses.sum() * _mean_scale(targets, reduction, count)


def _mean_scale(targets: Tensor, reduction: Reduction, count: Tensor | int | None) -> Tensor:
    if reduction == "sum":
        return torch.ones((), device=targets.device)
    if count is None:
        count = (targets >= 0).sum()
    scale = 1.0 / torch.as_tensor(count).float().clamp_min(1.0)
    if scale.device == targets.device:
        return scale
    # A fill, not a copy: the host would wait for the device at every micro-batch.
    return torch.full((), float(scale), device=targets.device)


def softcapped_logits(hidden: Tensor, weight: Tensor, *, vocab_size: int, softcap: float) -> Tensor:
    """(..., V) fp32 logits, padding columns left out."""
    logits = linear(hidden, weight[:vocab_size].to(hidden.dtype)).float()
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _chunk_tokens(weight: Tensor) -> int:
    budget = CHUNK_BYTES.get(weight.device.type, CHUNK_BYTES["cpu"])
    return max(64, budget // (4 * weight.size(0)) // 64 * 64)


def _takes_triton(hidden: Tensor) -> bool:
    return hidden.is_cuda and has_triton()


def fused_chunks(tokens: int, row_bytes: int) -> list[slice]:
    """Parts of `tokens` rows, equal but for the last, of at most FUSED_CHUNK_BYTES of logits each.

    Equal parts, because a short last one would cost the head's gradient as much as a whole one.
    """
    parts = max(1, -(-tokens * row_bytes // FUSED_CHUNK_BYTES))
    step = max(64, -(-tokens // parts) + 63) // 64 * 64
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def scores_of(
    hidden: Tensor, weight: Tensor, softcap: float, rounded: tuple[Factor, Kind] | None = None
) -> Tensor:
    """Sigmoid of the scaled logits, or the logits where there is no cap: (n, V_padded) fp32.

    `rounded` is the weight in 8 bits, where the logits are to be computed so.
    """
    # The scaling goes to the small factor; the sigmoid runs in place.
    rows = hidden * (2.0 / softcap) if softcap else hidden
    if rounded is None:
        logits = linear(rows, weight).float()
    else:
        factor, kind = rounded
        logits = multiply(quantize(rows, kind), factor, kind, torch.float32)
    return logits.sigmoid_() if softcap else logits


def probabilities(
    scores: Tensor, vocab_size: int, softcap: float, temperature: float = 1.0
) -> Tensor:
    """Softmax over the first `vocab_size` columns of what `scores_of` made, 0 in the padding."""
    logits = scores * ((2.0 * softcap or 1.0) / temperature)
    if vocab_size < logits.size(1):
        logits[:, vocab_size:] = float("-inf")
    return torch.softmax(logits, dim=1)


def _token_losses(
    scores: Tensor, probabilities: Tensor, targets: Tensor, softcap: float, vocab_size: int
) -> Tensor:
    """(n,) -log p(target). A capped logit cannot underflow; an uncapped one needs log-sum-exp."""
    index = targets.clamp_min(0)[:, None]
    if softcap:
        losses = -probabilities.gather(1, index).log()
    else:
        visible = scores[:, :vocab_size]
        losses = torch.logsumexp(visible, dim=1, keepdim=True) - scores.gather(1, index)
    return losses.squeeze(1).masked_fill_(targets < 0, 0.0)


def _losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, softcap: float
) -> Tensor:
    """(N,) losses without gradients."""
    weight = weight.to(hidden.dtype)
    if _takes_triton(hidden):
        from reference.kernels import triton_loss

        return torch.cat(
            [
                triton_loss.losses_(
                    hidden[part] @ weight.T,
                    targets[part],
                    None,
                    vocab_size=vocab_size,
                    softcap=softcap,
                )
                for part in fused_chunks(targets.numel(), weight.size(0) * weight.element_size())
            ]
        )
    step = _chunk_tokens(weight)
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    for start in range(0, targets.numel(), step):
        part = slice(start, start + step)
        scores = scores_of(hidden[part], weight, softcap)
        index = targets[part].clamp_min(0)[:, None]
        logits = scores.mul_(2.0 * softcap) if softcap else scores
        log_sum = torch.logsumexp(logits[:, :vocab_size], dim=1)
        losses[part] = log_sum - logits.gather(1, index).squeeze(1)
    return losses.masked_fill_(targets < 0, 0.0)


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_scale: Tensor,
    vocab_size: int,
    softcap: float,
    kind: Kind = "bf16",
    soft: SoftTargets | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (N,), d/d hidden and d/d weight of sum(row_scale * losses); row_scale (N,) fp32."""
    if soft is None and _takes_triton(hidden):
        return fused_loss_and_gradients(
            hidden, weight, targets, row_scale, vocab_size, softcap, kind
        )
    cast = weight.to(hidden.dtype)
    step = _chunk_tokens(weight)
    fits = not any(n % FACTOR_MULTIPLE for n in (hidden.size(0), *weight.shape))
    rounded = (quantize(weight, kind), kind) if kind != "bf16" and fits else None
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=hidden.device)
    for start in range(0, targets.numel(), step):
        part = slice(start, start + step)
        rows, target, scale = hidden[part], targets[part], row_scale[part, None]
        scores = scores_of(rows, cast, softcap, rounded)
        gradient = probabilities(scores, vocab_size, softcap)  # (n, V_padded)
        losses[part] = _token_losses(scores, gradient, target, softcap, vocab_size)
        gradient.scatter_add_(
            1, target.clamp_min(0)[:, None], torch.full_like(scale, -1.0)
        )  # softmax minus one-hot
        if soft is not None:
            gradient = soft.mixed(gradient, scores, part, vocab_size, softcap)
        if softcap:
            # The capped logit's slope is 4 s (1 - s); the 4 goes to the rows.
            gradient = torch.ops.aten.sigmoid_backward(gradient, scores)
            scale = 4.0 * scale
        gradient = gradient.to(hidden.dtype)
        # The row scale is cheaper on (n, C) than on (n, V).
        d_hidden[part] = matmul(gradient, cast) * scale
        scaled_rows = (rows * scale).to(hidden.dtype)
        add_matmul_(d_weight, gradient.T, scaled_rows)
    return losses, d_hidden, d_weight.to(weight.dtype)


def fused_loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_scale: Tensor,
    vocab_size: int,
    softcap: float,
    kind: Kind = "bf16",
) -> tuple[Tensor, Tensor, Tensor]:
    """`_loss_and_gradients` through the Triton kernel: same arguments, same results."""
    from reference.kernels import triton_loss

    cast = weight.to(hidden.dtype)
    fits = not any(n % FACTOR_MULTIPLE for n in (hidden.size(0), *weight.shape))
    rounded = quantize(weight, kind) if kind != "bf16" and fits else None
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    d_weight = torch.empty(weight.shape, dtype=torch.float32, device=hidden.device)
    for part in fused_chunks(targets.numel(), weight.size(0) * hidden.element_size()):
        rows = hidden[part]
        if rounded is None:
            logits = rows @ cast.T  # (n, V_padded)
        else:
            logits = multiply(quantize(rows, kind), rounded, kind, hidden.dtype)
        losses[part] = triton_loss.losses_(
            logits, targets[part], row_scale[part], vocab_size=vocab_size, softcap=softcap
        )
        torch.mm(logits, cast, out=d_hidden[part])
        _sum_into(d_weight, logits.T, rows, first=part.start == 0)
    return losses, d_hidden, d_weight.to(weight.dtype)


def _sum_into(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total = a @ b, or total += a @ b; in fp32 inside the product where the device can."""
    beta = 0.0 if first else 1.0
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=beta)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)
    else:
        total.mul_(beta).add_(a @ b) if beta else total.copy_(a @ b)


class _TotalLoss(torch.autograd.Function):
    """Scaled sum of the losses; its gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        softcap: float,
        scale: Tensor | float,
        kind: Kind,
        each: Tensor | None,
        soft: SoftTargets | None,
        int8: Rounded | None,
    ) -> Tensor:
        row_scale = (targets >= 0) * scale
        if int8 is not None and soft is None:
            losses, d_hidden, d_weight = int8_loss.loss_and_gradients(
                hidden, weight, int8, targets, row_scale, vocab_size, softcap
            )
        else:
            losses, d_hidden, d_weight = _loss_and_gradients(
                hidden, weight, targets, row_scale, vocab_size, softcap, kind, soft
            )
        ctx.save_for_backward(d_hidden, d_weight)
        if each is not None:
            each.copy_(losses)
        return losses.sum() * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        if grad.device.type == "cpu" and grad.item() == 1.0:  # the usual case, spared two passes
            return d_hidden, d_weight, *[None] * 8
        d_hidden, d_weight = d_hidden * grad.to(d_hidden.dtype), d_weight * grad
        return d_hidden, d_weight, *[None] * 8


class _EachLoss(torch.autograd.Function):
    """A loss a token; each token's weight is known in the backward pass only, which recomputes."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        softcap: float,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.constants = (vocab_size, softcap)
        return _losses(hidden, weight, targets, vocab_size, softcap)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        _, d_hidden, d_weight = _loss_and_gradients(
            hidden, weight, targets, (targets >= 0) * grad, *ctx.constants
        )
        return d_hidden, d_weight, None, None, None

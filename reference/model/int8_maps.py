"""The blocks' linear maps in int8: rounded where a tensor is made, weights rounded once a step.

A block has two pairs of maps. The inner maps read the normed state: queries, keys and values, which
are one product here, and the MLP's first map (with "swiglu" its first two, merged as well). The
outer map writes back to the state. `RoundedMaps` holds both in int8, in the two layouts that the
three products need. `StepWeights` rounds the weights again after every optimizer step, so that its
micro-steps share one rounding. Learned scales of the norm's channels (`model.norm_scales`) are
rounded with the columns of the weights that read them, so that they cost nothing a token:
norm(x) * s @ W.T is norm(x) @ (W * s).T.

The norm and relu squared, forward and backward, are computed by the kernels that round
(`reference.kernels.int8_rounding`): their results never exist in the activations' type.

On a CPU the same arithmetic runs in PyTorch operations, so that a whole int8 training step can be
studied without a GPU. What the model computes between the maps is fp32 there unless `model.dtype`
says otherwise.

References:
    INT8 training with row scales: SwitchBack, https://arxiv.org/abs/2304.13013
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from reference.kernels.cpu import linear, matmul
from reference.kernels.eight_bit import FACTOR_MULTIPLE
from reference.kernels.int8_rounding import (
    Producer,
    Rounded,
    block_mm,
    inverse_rms,
    produce,
    round_both,
)

if TYPE_CHECKING:
    from reference.model.gpt import GPT, MLP, Attention


class Passes(NamedTuple):
    """Which of a map's three products have int8 factors; the others have the activations' type."""

    forward: bool = True
    input_grad: bool = True
    weight_grad: bool = True


ALL_PASSES = Passes()


class RoundedMaps(NamedTuple):
    """The weights of an attention or an MLP in int8; `inner` holds several maps as one."""

    inner: Rounded
    outer: Rounded
    passes: Passes
    # (out, in) fp32 that the weights' gradients are added to; None: they are returned to autograd.
    inner_grad: Tensor | None = None
    outer_grad: Tensor | None = None
    scale: Tensor | None = None  # (in,) of the inner maps' inputs, which `inner` holds as well


def round_weight(weight: Tensor) -> Rounded:
    """Returns a weight (out, in) in int8: rows for the output, columns for the input's gradient."""
    return round_both(weight.detach().float().contiguous())


class StepWeights:
    """The int8 weights of a model's blocks. They are rounded again when a weight has changed.

    Args:
        layers: "attention", "mlp": the parts of a block whose maps take int8 factors; "head", which
            takes them in all three products. Maps whose sizes are no multiples of 16 keep the
            activations' type.

    Attributes:
        head: The head's weight in int8 (see `reference.kernels.int8_loss`), if "head" is named.
    """

    def __init__(self, model: GPT, layers: Sequence[str], passes: Passes = ALL_PASSES) -> None:
        self.layers, self.passes = tuple(layers), passes
        self.head: Rounded | None = None
        self._model = model
        self._modules = list(_modules(model, layers))
        self._versions: list[int] = []

    def __len__(self) -> int:
        return len(self._modules)

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the weights if one of them has changed since the last call."""
        for module in self._modules:
            if module.int8 is not None:
                _attach_gradients(module)
        head = self._model.head[0]
        versions = [p._version for m in self._modules for p in (*inner(m), outer(m))]
        scales = [scale for m in self._modules if (scale := norm_scale(m)) is not None]
        versions += [id(head), head._version, *(scale._version for scale in scales)]
        if versions == self._versions:
            return
        if "head" in self.layers and not any(n % FACTOR_MULTIPLE for n in head.shape):
            self.head = round_both(head.detach())
        for module in self._modules:
            scale = norm_scale(module)
            read = _scaled(_merged(inner(module)), scale)
            new = (round_weight(read), round_weight(outer(module)))
            if module.int8 is None:
                sums = [
                    torch.empty((n, w.size(1)), device=w.device)
                    for w, n in (
                        (inner(module)[0], sum(len(w) for w in inner(module))),
                        (outer(module), len(outer(module))),
                    )
                ]
                module.int8 = RoundedMaps(*new, self.passes, sums[0], sums[1], scale)
                _attach_gradients(module)
            else:  # compiled code keeps the tensors it was given
                for old, value in zip(module.int8[:2], new, strict=True):
                    for kept, tensor in zip(old, value, strict=True):
                        kept.copy_(tensor)
        self._versions = versions

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Turns the gradients of the scaled weights U = W * s into those of W and s.

        dW = s * dU, and ds = W * dU summed over the outputs. Called once a step, after the last
        micro-step and before the optimizer.
        """
        for module in self._modules:
            scale = norm_scale(module)
            if module.int8 is None or module.int8.inner_grad is None or scale is None:
                continue
            total = module.int8.inner_grad
            scale.grad = (total * _merged(inner(module))).sum(0)
            total.mul_(scale)

    def remove(self) -> None:
        """Gives all maps back to the activations' type."""
        for module in self._modules:
            module.int8 = None
        self._versions = []


def use_int8(model: GPT, layers: Sequence[str], passes: Passes = ALL_PASSES) -> None:
    """Gives the maps of the named layers int8 factors in training; all others lose theirs.

    Args:
        layers: "attention", "mlp", "head"; empty: no map.
    """
    held = model.step_weights
    if held is not None:
        if (held.layers, held.passes) == (tuple(layers), passes):
            return
        held.remove()
    model.step_weights = StepWeights(model, layers, passes) if layers and any(passes) else None


def _modules(model: GPT, layers: Sequence[str]) -> Iterator[Attention | MLP]:
    for block in model.layers:
        for name, module in (("attention", block.attn), ("mlp", block.mlp)):
            weights = (*inner(module), outer(module))
            if name in layers and not any(n % FACTOR_MULTIPLE for w in weights for n in w.shape):
                yield module


def inner(module: Attention | MLP) -> tuple[nn.Parameter, ...]:
    """The weights (out, in) of the maps that read the normed state, in the order of merging."""
    names = ("c_q", "c_k", "c_v", "c_fc", "c_up")
    return tuple(getattr(module, name).weight for name in names if hasattr(module, name))


def outer(module: Attention | MLP) -> nn.Parameter:
    """The weight (out, in) of the map that writes to the state."""
    return cast("nn.Parameter", module.c_proj.weight)


def norm_scale(module: Attention | MLP) -> nn.Parameter | None:
    """The learned scales (in,) of the channels that the inner maps read, if there are any."""
    return cast("nn.Parameter | None", getattr(module, "norm_scale", None))


def _attach_gradients(module: Attention | MLP) -> None:
    """Makes the sums of `module.int8` the gradients of weights that have none, from zero on."""
    assert module.int8 is not None
    for weights, total in (
        (inner(module), module.int8.inner_grad),
        ((outer(module),), module.int8.outer_grad),
    ):
        if total is not None and weights[0].grad is None:
            total.zero_()
            for weight, part in zip(weights, total.split([len(w) for w in weights]), strict=True):
                weight.grad = part


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight if scale is None else weight * scale


def _merged(weights: Sequence[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(list(weights))


def mapped(
    x: Tensor,
    weights: Sequence[Tensor],
    rounded: Rounded,
    producer: Producer = "identity",
    passes: Passes = ALL_PASSES,
    total: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Returns f(x) * scale @ cat(weights).T, f named by `producer`; gradients for x and weights.

    Args:
        x: (..., in) bf16 or fp32.
        weights: One or several (out, in).
        rounded: `weights` times `scale` in int8, merged.
        total: (sum of out, in) fp32: the weights' gradient is added to it and not returned.
        scale: (in,) fp32. `total` then takes the gradient of the scaled weights (see
            `StepWeights.finish_gradients`).

    Returns:
        (..., sum of out) in x's dtype.
    """
    if producer == "relu2_backward":
        raise ValueError("relu2_backward is a gradient, not a function in front of a map")
    if scale is not None and total is None:
        raise ValueError("the gradient of scaled weights needs a sum to go to")
    rows = x.flatten(0, -2).contiguous()
    y = _Mapped.apply(rows, producer, tuple(passes), total, scale, *rounded, *weights)
    return y.view(*x.shape[:-1], -1)


def relu2_mlp(x: Tensor, fc: Tensor, proj: Tensor, maps: RoundedMaps) -> Tensor:
    """Returns relu(norm(x) * scale @ fc.T)**2 @ proj.T for x (..., C); gradients for x and weights.

    The scale is that of `maps`; see `mapped` for its gradient.
    """
    if maps.scale is not None and maps.inner_grad is None:
        raise ValueError("the gradient of scaled weights needs a sum to go to")
    rows = x.flatten(0, -2).contiguous()
    sums = (maps.inner_grad, maps.outer_grad, maps.scale)
    y = _MLP.apply(rows, tuple(maps.passes), *sums, *maps.inner, *maps.outer, fc, proj)
    return y.view(x.shape)


class _Product:
    """The three products of one map: int8 where `passes` says so, else in the activations' type."""

    def __init__(
        self,
        weight: Rounded,
        plain: Sequence[Tensor],
        passes: Passes,
        scale: Tensor | None = None,
    ) -> None:
        self.weight, self.plain, self.passes, self.scale = weight, plain, passes, scale

    def output(self, x: Tensor, producer: Producer) -> tuple[Tensor, Tensor, Tensor]:
        """f(x) @ weight.T, and what the weight's gradient needs: int8 columns and their scales."""
        both, other = None, inverse_rms(x) if producer == "norm" else None
        if self.passes.forward or self.passes.weight_grad:
            both = round_both(x, producer, other)
        if self.passes.forward:
            assert both is not None
            y = block_mm(
                both.rows,
                self.weight.rows,
                both.row_scale,
                self.weight.row_scale,
                dtype=torch.bfloat16,
            ).to(x.dtype)
        else:
            y = linear(produce(x, producer, other).to(x.dtype), self._plain(x.dtype))
        if both is None or not self.passes.weight_grad:
            return y, x.new_empty(0), x.new_empty(0)
        return y, both.columns, both.column_scale

    def rounded(
        self, dy: Tensor, producer: Producer = "identity", gate: Tensor | None = None
    ) -> Rounded | None:
        """f(dy) in int8, if one of the two gradients takes it so."""
        if self.passes.input_grad or self.passes.weight_grad:
            return round_both(dy, producer, gate)
        return None

    def input_grad(self, both: Rounded | None, dy: Tensor) -> Tensor:
        """dy @ weight; `dy` is read only where the product is not in int8."""
        if not self.passes.input_grad:
            return matmul(dy, self._plain(dy.dtype))
        assert both is not None
        return block_mm(
            both.rows,
            self.weight.columns,
            both.row_scale,
            self.weight.column_scale,
            dtype=torch.bfloat16,
        ).to(dy.dtype)

    def weight_grad(
        self,
        both: Rounded | None,
        dy: Tensor,
        columns: Tensor,
        scale: Tensor,
        fx: Tensor,
        total: Tensor | None,
    ) -> list[Tensor | None]:
        """dy.T @ fx in fp32 for each weight, or None for each where `total` takes it.

        `dy` and `fx` are read only where the product is not in int8.
        """
        if not self.passes.weight_grad:
            found = matmul(dy.T, fx).float()
            found = found if total is None else total.add_(found)
        else:
            assert both is not None
            found = block_mm(both.columns, columns, both.column_scale, scale, into=total)
        if total is not None:
            return [None] * len(self.plain)
        return list(found.split([len(weight) for weight in self.plain]))

    def _plain(self, dtype: torch.dtype) -> Tensor:
        return _scaled(_merged(self.plain), self.scale).to(dtype)


class _Mapped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        producer: Producer,
        passes: tuple[bool, ...],
        total: Tensor | None,
        channels: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        product = _Product(Rounded(*tensors[:4]), tensors[4:], Passes(*passes), channels)
        y, columns, scale = product.output(x, producer)
        ctx.save_for_backward(x, columns, scale, total, channels, *tensors)
        ctx.producer, ctx.passes = producer, passes
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, columns, scale, total, channels, *tensors = ctx.saved_tensors
        passes = Passes(*ctx.passes)
        product = _Product(Rounded(*tensors[:4]), tensors[4:], passes, channels)
        dy = dy.contiguous()
        both = product.rounded(dy)
        fx = x if passes.weight_grad else _plain_input(x, ctx.producer)
        d_weights = product.weight_grad(both, dy, columns, scale, fx, total)
        d_input = product.input_grad(both, dy)
        dx = backward_of(ctx.producer, d_input.float(), x.float()).to(x.dtype)
        return dx, *[None] * 8, *d_weights


class _MLP(torch.autograd.Function):
    """Both maps in one function: the gradient between them exists in int8 alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        passes: tuple[bool, ...],
        fc_total: Tensor | None,
        proj_total: Tensor | None,
        channels: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        fc, proj = _mlp_products(tensors, passes, channels)
        h, *columns_x = fc.output(x, "norm")
        y, *columns_h = proj.output(h, "relu2")
        ctx.save_for_backward(
            x, h, *columns_x, *columns_h, fc_total, proj_total, channels, *tensors
        )
        ctx.passes = passes
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, columns_x, scale_x, columns_h, scale_h, fc_total, proj_total, channels, *tensors = (
            ctx.saved_tensors
        )
        passes = Passes(*ctx.passes)
        fc, proj = _mlp_products(tensors, passes, channels)
        dy = dy.contiguous()
        both = proj.rounded(dy)
        fh = h if passes.weight_grad else _plain_input(h, "relu2")
        d_proj = proj.weight_grad(both, dy, columns_h, scale_h, fh, proj_total)
        d_bent = proj.input_grad(both, dy)
        both = fc.rounded(d_bent, "relu2_backward", h)
        dh = d_bent  # not read where both gradients are in int8
        if not (passes.input_grad and passes.weight_grad):
            dh = produce(d_bent, "relu2_backward", h).to(h.dtype)
        fx = x if passes.weight_grad else _plain_input(x, "norm")
        d_fc = fc.weight_grad(both, dh, columns_x, scale_x, fx, fc_total)
        d_normed = fc.input_grad(both, dh)
        dx = backward_of("norm", d_normed.float(), x.float()).to(x.dtype)
        return dx, *[None] * 12, *d_fc, *d_proj


def _mlp_products(
    tensors: Sequence[Tensor], passes: tuple[bool, ...], scale: Tensor | None
) -> tuple[_Product, _Product]:
    return (
        _Product(Rounded(*tensors[:4]), tensors[8:9], Passes(*passes), scale),
        _Product(Rounded(*tensors[4:8]), tensors[9:], Passes(*passes)),
    )


def _plain_input(x: Tensor, producer: Producer) -> Tensor:
    """f(x) in the type of x."""
    return produce(x, producer, inverse_rms(x) if producer == "norm" else None).to(x.dtype)


def backward_of(producer: Producer, dy: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient for x, given `dy` for f(x); both (M, N) fp32."""
    if producer == "norm":
        root = inverse_rms(x)
        y = x * root
        return root * (dy - y * (dy * y).mean(dim=1, keepdim=True))
    if producer == "relu2":
        return dy * (2.0 * x.clamp_min(0.0))
    return dy

"""Linear maps of the blocks, in the activations' type or with 8-bit factors.

Which of a map's three products (output, input gradient, weight gradient) takes 8-bit factors, and
of which kind, is `Products`; `reference.kernels.eight_bit` does the arithmetic. 8-bit factors are
for training only: without gradients a map always works in the activations' type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reference.kernels.cpu import linear
from reference.kernels.eight_bit import FACTOR_MULTIPLE, Kind, product

PASSES = ("forward", "input_grad", "weight_grad")
LAYERS = ("attention", "mlp", "head")


class Products(NamedTuple):
    """The kind of factors of each of a map's products."""

    forward: Kind = "bf16"
    input_grad: Kind = "bf16"
    weight_grad: Kind = "bf16"

    @classmethod
    def of(cls, kind: Kind, passes: Sequence[str] = PASSES) -> Products:
        """`kind` for the named products, the activations' type for the others."""
        return cls(*(kind if name in passes else "bf16" for name in PASSES))


PLAIN = Products()


class Linear(nn.Linear):
    """A bias-free linear map whose fp32 weight is cast where it is used."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.products = PLAIN

    def forward(self, x: Tensor) -> Tensor:
        if self.products == PLAIN or not torch.is_grad_enabled():
            return linear(x, self.weight.to(x.dtype))
        rows = x.flatten(0, -2)
        return _Mixed.apply(rows, self.weight, *self.products).view(*x.shape[:-1], -1)


class _Mixed(torch.autograd.Function):
    """x @ weight.T with each of the three products in its own kind of factors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, forward: Kind, input_grad: Kind, weight_grad: Kind
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kinds = (input_grad, weight_grad)
        return product(x, weight, forward, x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        for_input, for_weight = ctx.kinds
        dy = dy.contiguous()
        dx = product(dy, weight.T, for_input, x.dtype, gradient=True)
        dw = product(dy.T, x.T, for_weight, x.dtype, gradient=True)
        return dx, dw.to(weight.dtype), None, None, None


def eligible(model: nn.Module, layers: Sequence[str]) -> Iterator[tuple[str, Linear]]:
    """The maps of the named layers whose sizes the 8-bit kernels take; gates are too narrow."""
    for name, module in model.named_modules():
        kind = "mlp" if ".mlp." in name else "attention" if ".attn." in name else "head"
        if (
            isinstance(module, Linear)
            and kind != "head"
            and kind in layers
            and not any(size % FACTOR_MULTIPLE for size in module.weight.shape)
        ):
            yield name, module


def set_products(
    model: nn.Module, layers: Sequence[str], products: Products | Mapping[str, Any]
) -> int:
    """Gives every eligible map its products, one for all or by shape ("NxK"); how many took them.

    A shape that is not in the mapping stays in the activations' type.
    """
    changed = 0
    for _, module in eligible(model, layers):
        if isinstance(products, Products):
            module.products = products
        else:
            module.products = Products(*products.get(shape_name(module), PLAIN))
        changed += module.products != PLAIN
    return changed


def shape_name(module: nn.Linear) -> str:
    """OUTxIN, as recipes' notes and tables name a map's shape."""
    return f"{module.out_features}x{module.in_features}"

"""Whether compiled blocks with 8-bit factors have the gradients that eager ones have.

torch 2.11 compiled such blocks so that the gradients of their weights came out as zeros, without a
word, and the loss still fell a little because the tables learned. A run therefore compares one
compiled forward and backward pass of each kind of block with the eager one before its first step,
with the shapes, kernels and factors that it will train with. It takes well under a second a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference.errors import TrainerError
from reference.kernels.attention import Documents
from reference.model.gpt import GPT, Block
from reference.model.linear import PLAIN, Linear

# Of a gradient's norm. Compiled code rounds to bf16 in other places, and a factor that then falls
# to the other side of a rounding step moves by a whole step: a few hundredths in practice.
TOLERANCE = 0.2


def check_compiled_gradients(
    model: GPT, rows: int, seq_len: int, documents: Documents | None = None
) -> int:
    """Compares one compiled pass of each kind of block with the eager pass.

    Weights stay as they are. Nothing happens without compiled blocks or without 8-bit factors.

    Args:
        rows: Sequences of a micro-batch, as in training: other shapes would be compiled anew.
        documents: Where the rows' documents begin, for a run that keeps documents apart.

    Returns:
        How many blocks were compared.

    Raises:
        TrainerError: The gradients of a weight differ by more than `TOLERANCE` of their norm.
    """
    kinds: dict[Any, int] = {}
    if model.step_weights is not None:
        model.step_weights.refresh()
    for layer, block in enumerate(model.layers):
        factors = tuple(m.products for m in block.modules() if isinstance(m, Linear))
        int8 = block.attn.int8 is not None, block.mlp.int8 is not None
        eight_bit = any(int8) or any(f != PLAIN for f in factors)
        if block._compiled_call_impl is not None and eight_bit:
            gated = model.config.has_value_embedding(layer)
            # The last of its kind: the first block's two inputs are one tensor, a case of its own.
            kinds[block.attn.window, gated, factors, int8] = layer
    for layer in kinds.values():
        _check_block(model, layer, rows, seq_len, documents)
    return len(kinds)


def _check_block(
    model: GPT, layer: int, rows: int, seq_len: int, documents: Documents | None
) -> None:
    block, config = model.layers[layer], model.config
    generator = torch.Generator(model.device).manual_seed(layer)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=model.device)
        return drawn.to(model.dtype)

    states = draw(2, rows, seq_len, config.n_embd)
    value = None
    if config.has_value_embedding(layer):
        value = draw(rows, seq_len, config.kv_dim)
    upstream = draw(rows, seq_len, config.n_embd)
    rope = model.rope(seq_len)

    def gradients(call: Callable[..., Tensor]) -> dict[str, Tensor]:
        x, x0 = (state.clone().requires_grad_() for state in states)
        scales = [torch.ones((), device=x.device, dtype=x.dtype).requires_grad_() for _ in "xy"]
        gated = None if value is None else value.clone().requires_grad_()
        if model.step_weights is not None:
            model.step_weights.refresh()
        call(x, x0, *scales, gated, rope, None, documents).backward(upstream)
        found = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
        block.zero_grad(set_to_none=True)
        return {"input": x.grad, **found}

    with _nonzero_weights(block, generator):
        eager = gradients(block.forward)
        compiled = gradients(block)
    for name, wanted in eager.items():
        found = compiled.get(name, torch.zeros_like(wanted))
        norm = float(wanted.float().norm())
        error = float((found.float() - wanted.float()).norm()) / max(norm, 1e-30)
        if not error <= TOLERANCE and norm > 0:
            raise TrainerError(
                "bad_input",
                f"compiled block {layer} computes other gradients than the eager block: {name} is "
                f"off by {error:.3g} of its norm (torch {torch.__version__})",
                'Set pretrain.compile = "off" or pretrain.matmul = "bf16", or install the torch '
                "version of requirements/cuda.lock.",
            )


class _nonzero_weights:
    """Fills weights that begin as zeros, behind which all gradients are zero; puts them back."""

    def __init__(self, block: Block, generator: torch.Generator) -> None:
        self._weights = [p for p in block.parameters() if not p.any()]
        self._generator = generator

    @torch.no_grad()
    def __enter__(self) -> None:
        for weight in self._weights:
            weight.normal_(0.0, weight.size(-1) ** -0.5, generator=self._generator)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for weight in self._weights:
            weight.zero_()

"""Whether the maps of a model's blocks are faster in int8 than in bf16 on the GPU at hand.

A forward and a backward pass of a block's MLP, and of its attention's maps without attention
itself, are timed in both types: rounding included, compiled as in training, at the micro-batch of
training. Before that, the int8 results are compared with the bf16 results. A part that is not
faster, whose kernels are missing or fail, or whose results are wrong stays in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.kernels.attention_trial import Timer, short_reason
from reference.kernels.compiling import compiled_alone
from reference.model.gpt import GPT, MLP, Attention
from reference.model.int8_maps import Passes, RoundedMaps, inner, outer, round_weight

# Of a result's norm, between int8 and bf16: rounding explains a few hundredths.
TOLERANCE = 0.15


class Row(NamedTuple):
    """A part of a block ("attention" or "mlp"), its type, milliseconds or the reason for none."""

    part: str
    kind: str
    ms: float | None
    reason: str | None


def choose_int8(
    model: GPT,
    layers: Sequence[str],
    tokens: tuple[int, int],
    *,
    passes: Passes,
    timer: Timer,
) -> tuple[list[str], list[Row]]:
    """The parts of `layers` that are faster in int8, and all that was timed.

    Args:
        tokens: Sequences of a micro-batch, tokens of a sequence.
        passes: Products that take int8 factors.
    """
    chosen, rows = [], []
    for part in layers:
        try:
            times = time_part(model, part, tokens, passes, timer)
        except Exception as error:  # a kernel that a GPU or build lacks: the reason is reported
            rows.append(Row(part, "int8", None, short_reason(error)))
            continue
        rows += [Row(part, kind, ms, None) for kind, ms in times.items()]
        if times["int8"] < times["bf16"]:
            chosen.append(part)
    return chosen, rows


def time_part(
    model: GPT, part: str, tokens: tuple[int, int], passes: Passes, timer: Timer
) -> dict[str, float]:
    """Milliseconds of a forward and backward pass of a part of a block, by type.

    Raises:
        ValueError: The int8 results differ from the bf16 results by more than `TOLERANCE`.
    """
    config, device = model.config, model.device
    module: Attention | MLP = Attention(config, 0) if part == "attention" else MLP(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0.0, weight.size(-1) ** -0.5, generator=generator)
    module = module.to(device)
    x = torch.randn((*tokens, config.n_embd), generator=generator).to(device, model.dtype)
    rope = model.rope(tokens[1])

    def run(states: Tensor) -> Tensor:
        if isinstance(module, MLP):
            return module(states)
        q, k, v = module.project(states, None, rope)
        H, G = config.n_head, config.n_kv_head
        return module.output((q + (k + v).repeat_interleave(H // G, dim=2)).flatten(2))

    times, results = {}, {}
    for kind in ("bf16", "int8"):
        if kind == "int8":
            module.int8 = RoundedMaps(
                round_weight(torch.cat(inner(module))), round_weight(outer(module)), passes
            )
        function = compiled_alone(run) if device.type == "cuda" else run
        results[kind] = _pass(function, module, x)
        times[kind] = timer(lambda f=function: _pass(f, module, x))  # type: ignore[misc]
    for name, plain in results["bf16"].items():
        error = float((results["int8"][name] - plain).norm() / plain.norm())
        if not error < TOLERANCE:
            raise ValueError(f"{name} differs from bf16 by {error:.3g} of its norm")
    return times


def _pass(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output of a forward and backward pass and all gradients."""
    states = x.detach().requires_grad_()
    y = function(states)
    y.backward(x)
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return {"output": y.detach(), "input's gradient": states.grad, **found}  # type: ignore[dict-item]

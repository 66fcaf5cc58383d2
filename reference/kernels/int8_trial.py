"""Whether the maps of a model are faster in int8 than in bf16 on the GPU at hand.

A forward and a backward pass of a block's MLP, of its attention's maps without attention itself,
and of the loss with the head are timed in both types: rounding included, compiled as in training,
at the micro-batch of training. Before that, the int8 results are compared with the bf16 results. A
part that is not faster, whose kernels are missing or fail, or whose results are wrong stays in
bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.kernels.attention_trial import Timer, short_reason
from reference.kernels.compiling import compiled_alone
from reference.kernels.int8_rounding import round_both
from reference.model.gpt import GPT, MLP, Attention
from reference.model.int8_maps import Passes, RoundedMaps, inner, outer, round_weight
from reference.model.loss import softcapped_cross_entropy

# Of a result's norm, between int8 and bf16: rounding explains a few hundredths.
TOLERANCE = 0.15


class Row(NamedTuple):
    """A part ("attention", "mlp" or "head"), its type, milliseconds or the reason for none."""

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
    """Milliseconds of a forward and backward pass of a part of the model, by type.

    Raises:
        ValueError: The int8 results differ from the bf16 results by more than `TOLERANCE`.
    """
    passing = _head_pass(model, tokens) if part == "head" else _block_pass(model, part, tokens)
    times, results = {}, {}
    for kind, chosen in (("bf16", None), ("int8", passes)):
        function = passing(chosen)
        results[kind] = function()
        times[kind] = timer(function)
    for name, plain in results["bf16"].items():
        error = float((results["int8"][name] - plain).norm() / plain.norm())
        if not error < TOLERANCE:
            raise ValueError(f"{name} differs from bf16 by {error:.3g} of its norm")
    return times


Pass = Callable[[], dict[str, Tensor]]  # returns the output and all gradients


def _block_pass(model: GPT, part: str, tokens: tuple[int, int]) -> Callable[[Passes | None], Pass]:
    """Makes passes of a block's part with made-up weights: in int8, or for None in bf16."""
    # The norm's scales become part of the rounded weights: they change no kernel.
    config, device = replace(model.config, norm_scales=False), model.device
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

    def make(passes: Passes | None) -> Pass:
        if passes is not None:
            whole = round_weight(torch.cat(inner(module)))
            module.int8 = RoundedMaps(whole, round_weight(outer(module)), passes)
        function = compiled_alone(run) if device.type == "cuda" else run
        return lambda: _pass(function, module, x)

    return make


def _head_pass(model: GPT, tokens: tuple[int, int]) -> Callable[[Passes | None], Pass]:
    """Makes passes of the loss with a made-up head: in int8, or for None in bf16."""
    config, device = model.config, model.device
    generator = torch.Generator().manual_seed(0)
    N = tokens[0] * tokens[1]
    hidden = torch.randn((N, config.n_embd), generator=generator).to(device, model.dtype)
    size = (config.padded_vocab_size, config.n_embd)
    weight = (torch.randn(size, generator=generator) * config.n_embd**-0.5).to(device)
    targets = torch.randint(0, config.vocab_size, (N,), generator=generator).to(device)

    def make(passes: Passes | None) -> Pass:
        rounded = None if passes is None else round_both(weight)

        def function() -> dict[str, Tensor]:
            h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            loss = softcapped_cross_entropy(
                h,
                w,
                targets,
                vocab_size=config.vocab_size,
                softcap=config.softcap,
                int8=rounded,
            )
            loss.backward()
            return {"loss": loss.detach(), "d_hidden": h.grad, "d_weight": w.grad}

        return function

    return make


def _pass(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output of a forward and backward pass and all gradients."""
    states = x.detach().requires_grad_()
    y = function(states)
    y.backward(x)
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return {"output": y.detach(), "input's gradient": states.grad, **found}  # type: ignore[dict-item]

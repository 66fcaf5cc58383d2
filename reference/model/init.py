"""The values that a model's weights begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from reference.model.gpt import GPT


@torch.no_grad()
def set_initial_values(model: GPT, seed: int, *, on_device: bool) -> None:
    """Sets every parameter of `model` from `seed`.

    Values are drawn on the CPU, in the order of the state dict, unless `on_device`. Uniform draws
    have the standard deviation that their comment names and no outliers.
    """
    config = model.config
    device = model.device if on_device else torch.device("cpu")
    generator = torch.Generator(device).manual_seed(seed)
    layers = torch.arange(config.n_layer) / max(config.n_layer - 1, 1)
    width = 3**0.5 * config.n_embd**-0.5  # standard deviation 1/sqrt(C)
    for name, parameter in model.named_parameters():
        value = torch.empty(parameter.shape, device=device)
        if name == "wte.weight":
            value.normal_(0.0, 0.8, generator=generator)
        elif name == "lm_head.weight":
            value.normal_(0.0, 0.001, generator=generator)
        elif name.endswith("norm_scale"):
            value.fill_(1.0)
        elif name == "resid_scale":
            value.copy_(1.15 - 0.10 * layers)
        elif name == "x0_scale":
            value.copy_(0.20 - 0.15 * layers)
        elif name == "smear_scale" or "c_proj" in name:
            value.zero_()  # a block starts as the identity
        elif name == "backout_scale":
            value.fill_(0.2)
        elif "gate" in name:  # value gates and smear's
            value.uniform_(0.0, 0.02, generator=generator)
        elif "c_fc" in name:
            value.uniform_(-0.4 * width, 0.4 * width, generator=generator)
        else:  # c_q, c_k, c_v, c_up, value_embeds
            value.uniform_(-width, width, generator=generator)
        parameter.copy_(value)

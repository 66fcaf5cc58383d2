"""The same model written plainly: `bench`'s yardstick and an independent check of the formulas.

Ordinary eager PyTorch as a textbook would have it: one function a formula, attention through an
explicit T x T mask, all logits at once, `torch.nn.functional.cross_entropy`, `torch.optim.AdamW`.
It reads a `GPT`'s weights by name and shares no other code with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.config.model import ModelConfig


def plain_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)


def plain_rotate(x: Tensor, base: float) -> Tensor:
    """Rotary positions of x (B, H, T, D)."""
    T, D = x.shape[-2:]
    frequency = 1.0 / base ** (torch.arange(0, D, 2, device=x.device).float() / D)
    angle = torch.arange(T, device=x.device).float()[:, None] * frequency  # (T, D/2)
    cos, sin = angle.cos(), angle.sin()
    left, right = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Softmax attention; q (B, H, T, D), k and v (B, G, T, D)."""
    H, T, D = q.shape[1:]
    k = k.repeat_interleave(H // k.size(1), dim=1)
    v = v.repeat_interleave(H // v.size(1), dim=1)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    visible = ((distance >= 0) & (distance < window)).to(q.device)
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)
    return torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1) @ v


def plain_logits(weights: dict[str, Tensor], config: ModelConfig, tokens: Tensor) -> Tensor:
    """(B, T, V) capped logits of tokens (B, T) under a `GPT`'s named parameters."""
    B, T = tokens.shape
    D = config.head_dim
    x = plain_norm(weights["wte.weight"][tokens])
    if config.smear:
        gate = torch.sigmoid(x[:, 1:, :24] @ weights["smear_gate.weight"].T)
        x = torch.cat([x[:, :1], x[:, 1:] + weights["smear_scale"] * gate * x[:, :-1]], dim=1)
    x0 = x
    for layer in range(config.n_layer):
        w = {
            name.removeprefix(f"blocks.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        x = weights["resid_scale"][layer] * x
        if config.x0_mix:
            x = x + weights["x0_scale"][layer] * x0
        n = plain_norm(x)
        q, k, v = (
            (n @ w[f"attn.c_{name}.weight"].T).view(B, T, -1, D).transpose(1, 2) for name in "qkv"
        )
        if "attn.value_gate.weight" in w:
            gate = 3 * torch.sigmoid(n[..., :12] @ w["attn.value_gate.weight"].T)  # (B, T, G)
            value = weights[f"value_embeds.{layer}.weight"][tokens].view(B, T, -1, D)
            v = v + (gate[..., None] * value).transpose(1, 2)
        q = 1.2 * plain_norm(plain_rotate(q, config.rope_base))
        k = 1.2 * plain_norm(plain_rotate(k, config.rope_base))
        y = plain_attention(q, k, v, config.windows[layer])
        x = x + y.transpose(1, 2).reshape(B, T, -1) @ w["attn.c_proj.weight"].T
        n = plain_norm(x) * w.get("mlp.norm_scale", 1.0)
        inner = n @ w["mlp.c_fc.weight"].T
        if config.ffn == "swiglu":
            inner = F.silu(inner) * (n @ w["mlp.c_up.weight"].T)
        else:
            inner = F.relu(inner).square()
        x = x + inner @ w["mlp.c_proj.weight"].T
        if layer == config.n_layer // 2:
            middle = x
    if config.backout:
        x = x - weights["backout_scale"] * middle
    head = 0.025 * weights["wte.weight"] if config.tied else weights["lm_head.weight"]
    x = plain_norm(x) * weights.get("final_norm_scale", 1.0)
    logits = (x @ head.T)[..., : config.vocab_size].float()
    return config.softcap * torch.tanh(logits / config.softcap) if config.softcap else logits


def plain_loss(
    weights: dict[str, Tensor], config: ModelConfig, tokens: Tensor, targets: Tensor
) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not below 0."""
    logits = plain_logits(weights, config, tokens)
    return F.cross_entropy(
        logits.flatten(0, 1),
        targets.clamp_min(-100).flatten().masked_fill(targets.flatten() < 0, -100),
    )

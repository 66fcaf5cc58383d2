"""Our network as one that other programs already have: Qwen3, which also norms queries and keys.

A model maps when its recipe left out what Qwen3 has no part for. What remains is rewritten exactly:

- the norm after the embedding goes into the embedding table;
- the learned scale of each layer's input goes into the matrices that write to the residual stream:
  norms do not see a common factor of their input, except for its sign, which their weights take;
- the factor of queries and keys is the weight of their norms;
- our rotation turns the other way: the two halves of each head's rows are swapped;
- relu squared is relu(x) * x, a gated unit whose two input matrices are the same;
- a head that is the embedding table becomes a table of its own.

Shapes: V vocabulary without padding, C n_embd, D head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.kernels.fused import EPSILON
from reference.model.gpt import GPT, QUERY_KEY_SCALE, ModelConfig

# The line of [model] that maps, and what stands in the way without it.
NEEDED = {
    "value_embeddings": (False, "value embeddings"),
    "x0_mix": (False, "the mix of each layer's input with the first layer's"),
    "smear": (False, "smear"),
    "backout": (False, "backout"),
    "softcap": (0.0, "the cap on the logits"),
}
# llama.cpp fixes more of Qwen3 than transformers does.
NEEDED_BY_LLAMA_CPP = {
    "ffn": ("swiglu", "relu squared"),
    "window_pattern": ("L", "sliding windows"),
}


def obstacles(config: ModelConfig, *, llama_cpp: bool = False) -> dict[str, str]:
    """The settings (`model.smear=false`) for a model that maps -> the part that does not map.

    Empty for a model that maps.
    """
    found = {}
    for name, (wanted, part) in NEEDED.items():
        if getattr(config, name) != wanted:
            found[_line(name, wanted)] = part
    if llama_cpp:
        if config.ffn != "swiglu":
            found[_line("ffn", "swiglu")] = NEEDED_BY_LLAMA_CPP["ffn"][1]
        if set(config.windows) != {config.seq_len}:
            found[_line("window_pattern", "L")] = NEEDED_BY_LLAMA_CPP["window_pattern"][1]
    return found


def _line(name: str, value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool | float) else value
    return f"model.{name}={text}"


def qwen3_tensors(model: GPT) -> dict[str, Tensor]:
    """The fp32 weights of `Qwen3ForCausalLM` that compute the same logits.

    Raises:
        ValueError: The scale of a layer's input is 0; no trained model has that.
    """
    config = model.config
    weights = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    scales = weights["resid_scale"].double().cumprod(0)
    if not bool((scales != 0).all()):
        raise ValueError("the learned scale of a layer's input is 0")
    signs = scales.sign().float()
    V, C = config.vocab_size, config.n_embd
    table, ones = weights["wte.weight"][:V], torch.ones(C)
    head, head_scale = model.head
    tensors = {
        "model.embed_tokens.weight": F.rms_norm(table, (C,), eps=EPSILON),
        "model.norm.weight": signs[-1] * weights.get("final_norm_scale", ones),
        "lm_head.weight": head.detach().float().cpu()[:V] * head_scale,
    }
    for layer in range(config.n_layer):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        up = weights[f"{ours}mlp.c_fc.weight"]
        layer_tensors = {
            "input_layernorm.weight": signs[layer].expand(C),
            "post_attention_layernorm.weight": signs[layer]
            * weights.get(f"{ours}mlp.norm_scale", ones),
            "self_attn.q_proj.weight": _swapped(weights[f"{ours}attn.c_q.weight"], config.head_dim),
            "self_attn.k_proj.weight": _swapped(weights[f"{ours}attn.c_k.weight"], config.head_dim),
            "self_attn.v_proj.weight": weights[f"{ours}attn.c_v.weight"],
            "self_attn.o_proj.weight": weights[f"{ours}attn.c_proj.weight"] / scales[layer],
            "self_attn.q_norm.weight": torch.full((config.head_dim,), QUERY_KEY_SCALE),
            "self_attn.k_norm.weight": torch.full((config.head_dim,), QUERY_KEY_SCALE),
            "mlp.gate_proj.weight": up,
            "mlp.up_proj.weight": weights.get(f"{ours}mlp.c_up.weight", up),
            "mlp.down_proj.weight": weights[f"{ours}mlp.c_proj.weight"] / scales[layer],
        }
        tensors |= {f"{theirs}{name}": value for name, value in layer_tensors.items()}
    return {name: value.float().clone().contiguous() for name, value in tensors.items()}


def _swapped(weight: Tensor, head_dim: int) -> Tensor:
    """The rows of each head with their halves exchanged."""
    return weight.view(-1, 2, head_dim // 2, weight.size(1)).flip(1).reshape(weight.shape)


def qwen3_config(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of the same model in transformers, without ids of tokens."""
    short = min(config.windows)
    sliding = short < config.seq_len
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "hidden_act": "silu" if config.ffn == "swiglu" else "relu",
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": EPSILON,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "attention_bias": False,
        "tie_word_embeddings": False,
        "use_sliding_window": sliding,
        "sliding_window": short if sliding else None,
        "max_window_layers": 0,
        "layer_types": [
            "sliding_attention" if window < config.seq_len else "full_attention"
            for window in config.windows
        ],
    }

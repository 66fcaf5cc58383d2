"""What a recipe costs, by arithmetic alone: parameters, FLOPs, memory, hours. Needs no torch.

Two counts of FLOPs stand side by side. nanochat's counts every attention layer as if a position
saw its whole window; ours halves what causality hides. The first is for comparison with published
figures, the second is what the hardware has to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from reference.config import SMEAR_GATE_CHANNELS, VALUE_GATE_CHANNELS, ModelConfig

# Dense bf16 peak with fp32 accumulation, FLOP/s, by the device's reported name; the vendor's data
# sheets. A "*" stands for any form factor of the same peak.
PEAK_BF16_FLOPS = {
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4070": 58.3e12,
    "NVIDIA GeForce RTX 4080": 97.5e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 5090": 209.5e12,
    "NVIDIA A100*": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200*": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
RTX_4090_FLOPS = PEAK_BF16_FLOPS["NVIDIA GeForce RTX 4090"]
VRAM_BYTES = 24 * 2**30
ASSUMED_MFU = 0.75  # bf16, nanochat's count
ASSUMPTIONS = (
    "165.2 TFLOP/s peak: RTX 4090 data sheet, bf16 with fp32 accumulation",
    "75 % of it in nanochat's count: nanochat's own d20 was measured at 80.5 % on a 4090"
    " (karpathy/nanochat issue 157), windowed attention and a smaller head cost some of that",
    "weights fp32 except bf16 token tables; Adam states in their table's type",
    "activations as compiled code keeps them, no checkpointing",
)


class Parameters(NamedTuple):
    """Counts by kind; `scaling` is what nanochat's horizon rule multiplies."""

    embedding: int
    value_embedding: int
    unembedding: int
    matrix: int
    scalar: int

    @property
    def scaling(self) -> int:
        return self.matrix + self.unembedding

    @property
    def total(self) -> int:
        return sum(self)


class FlopsPerToken(NamedTuple):
    """Training FLOPs of one token, forward and backward."""

    matmul: int
    attention: int  # every position counted with its full window
    causal_attention: float  # only the pairs that are computed

    @property
    def nanochat(self) -> int:
        return self.matmul + self.attention

    @property
    def causal(self) -> float:
        return self.matmul + self.causal_attention


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of a GPU by its reported name; None for one not in the table."""
    for pattern, flops in PEAK_BF16_FLOPS.items():
        if fnmatchcase(device_name, pattern):
            return flops
    return None


def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters of a model, padding rows included."""
    C, V, L = config.n_embd, config.padded_vocab_size, config.n_layer
    gated = sum(config.has_value_embedding(layer) for layer in range(L))
    block = 2 * C * C + 2 * C * config.kv_dim + 8 * C * C
    return Parameters(
        embedding=V * C,
        value_embedding=gated * V * config.kv_dim,
        unembedding=V * C,
        matrix=L * block + gated * VALUE_GATE_CHANNELS * config.n_kv_head,
        scalar=2 * L + (SMEAR_GATE_CHANNELS + 1) * config.smear + config.backout,
    )


def count_flops(config: ModelConfig) -> FlopsPerToken:
    """FLOPs per token: 6 per matrix entry, 12 per channel and visible key."""
    parameters = count_parameters(config)
    T = config.seq_len
    attention = sum(12 * config.n_embd * min(window, T) for window in config.windows)
    # A window of W meets 1, 2, …, W keys, then W for each further position.
    causal = sum(
        12 * config.n_embd * (W * (W + 1) / 2 + (T - W) * W) / T
        for W in (min(window, T) for window in config.windows)
    )
    return FlopsPerToken(
        matmul=6 * (parameters.scaling + SMEAR_GATE_CHANNELS * config.smear),
        attention=attention,
        causal_attention=causal,
    )


def plan_vram(config: ModelConfig, device_batch_size: int) -> dict[str, int]:
    """Bytes of GPU memory by purpose while training in bf16."""
    p = count_parameters(config)
    tables = p.embedding + p.value_embedding
    fp32 = p.total - tables
    tokens = device_batch_size * config.seq_len
    C, L = config.n_embd, config.n_layer
    # Kept for the backward pass by compiled code, in elements a token: both residual states, both
    # normed inputs, q and k before and after their norm, v, the attention's output, and the MLP's
    # inner state; what follows by one cheap pass is computed again.
    per_layer = 2 * C + 2 * C + 2 * C + 3 * config.kv_dim + C + 4 * C
    gated = sum(config.has_value_embedding(layer) for layer in range(L))
    activations = tokens * (L * per_layer + gated * 2 * config.kv_dim + 4 * C) * 2
    chunk = min(tokens, max(64, (512 << 20) // (4 * config.padded_vocab_size)))
    largest = max(
        (L * 4 * C * C, L * (2 * C * C)), default=0
    )  # the biggest batch of equal matrices
    return {
        "weights": 4 * fp32 + 2 * tables,
        "gradients": 4 * fp32 + 2 * tables,
        "optimizer": 4 * p.matrix + 8 * (p.unembedding + p.scalar) + 4 * tables,
        "activations": activations,
        "logits": chunk * config.padded_vocab_size * (4 + 4 + 2) + 4 * p.unembedding,
        "workspace": min(largest, 64 << 20) * (4 + 2 + 2 + 2) + 2 * p.scaling,
    }


def estimate(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, FLOPs, memory and hours of a resolved recipe.

    Returns:
        `parameters` (by kind, `scaling`, `total`), `flops_per_token` (`nanochat`, `causal`),
        `tokens`, `flops` (both counts), `vram_bytes` (by purpose, `total`, `fits_24gb`),
        `rtx4090` (`tokens_per_s`, `pretrain_hours`, `assumptions`). Where the recipe trains for
        a time instead of a number of steps, `tokens` follows from the predicted speed.
    """
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    pretrain = recipe["pretrain"]
    parameters, flops = count_parameters(config), count_flops(config)
    tokens_per_s = ASSUMED_MFU * RTX_4090_FLOPS / flops.nanochat
    if pretrain.get("num_steps"):
        tokens = pretrain["num_steps"] * pretrain["total_batch_size"]
    else:
        tokens = int(tokens_per_s * 3600 * pretrain.get("hours", 0))
    vram = plan_vram(config, pretrain["device_batch_size"])
    total = sum(vram.values())
    return {
        "parameters": {
            **parameters._asdict(),
            "scaling": parameters.scaling,
            "total": parameters.total,
        },
        "flops_per_token": {"nanochat": flops.nanochat, "causal": flops.causal},
        "tokens": tokens,
        "tokens_per_scaling_parameter": tokens / parameters.scaling,
        "flops": {"nanochat": flops.nanochat * tokens, "causal": flops.causal * tokens},
        "vram_bytes": {**vram, "total": total, "fits_24gb": total < VRAM_BYTES},
        "rtx4090": {
            "tokens_per_s": tokens_per_s,
            "pretrain_hours": tokens / tokens_per_s / 3600,
            "assumptions": list(ASSUMPTIONS),
        },
    }

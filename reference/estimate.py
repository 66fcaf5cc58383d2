"""What a recipe costs, by arithmetic alone: parameters, FLOPs, memory, hours. Needs no torch.

Two counts of FLOPs stand side by side. nanochat's counts every attention layer as if a position
saw its whole window; ours halves what causality hides. The first is for comparison with published
figures, the second is what the hardware has to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from reference.config import SMEAR_GATE_CHANNELS, ModelConfig
from reference.memory import (
    GIB,
    USABLE_SHARE,
    VRAM_BYTES,
    Parameters,
    count_parameters,
    fitting_micro_batch,
    plan_vram,
)

__all__ = ["Parameters", "count_flops", "count_parameters", "estimate", "peak_flops", "plan_vram"]

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
ASSUMED_MFU = 0.75  # bf16, nanochat's count
ASSUMPTIONS = (
    "165.2 TFLOP/s peak: RTX 4090 data sheet, bf16 with fp32 accumulation",
    "75 % of it in nanochat's count: nanochat's own d20 was measured at 80.5 % on a 4090"
    " (karpathy/nanochat issue 157), windowed attention and a smaller head cost some of that",
    "weights fp32 except bf16 token tables; Adam states in their table's type",
    "activations as compiled code keeps them, no checkpointing",
)


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


def estimate(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, FLOPs, memory and hours of a resolved recipe.

    Returns:
        `parameters` (by kind, `scaling`, `total`), `flops_per_token` (`nanochat`, `causal`),
        `tokens`, `flops` (both counts), `vram_bytes` (by purpose, `total`, `fits_24gb`) of the
        micro-batch that a 24 GB card gets, `micro_batch` (`sequences`, `per_step`,
        `smallest_vram_bytes`: the plan of one sequence at a time),
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
    cap = pretrain.get("vram_cap_gib") or 0
    memory = min(VRAM_BYTES, int(cap * GIB)) if cap else VRAM_BYTES
    micro_batch = fitting_micro_batch(config, pretrain, memory)
    vram = plan_vram(config, micro_batch, pretrain)
    total = sum(vram.values())
    smallest = sum(plan_vram(config, 1, pretrain).values())
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
        "vram_bytes": {**vram, "total": total, "fits_24gb": total < USABLE_SHARE * VRAM_BYTES},
        "micro_batch": {
            "sequences": micro_batch,
            "per_step": max(1, pretrain["total_batch_size"] // (micro_batch * config.seq_len)),
            "smallest_vram_bytes": smallest,
        },
        "rtx4090": {
            "tokens_per_s": tokens_per_s,
            "pretrain_hours": tokens / tokens_per_s / 3600,
            "assumptions": list(ASSUMPTIONS),
        },
    }

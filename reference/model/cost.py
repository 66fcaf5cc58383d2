"""What a recipe costs, by arithmetic alone: parameters, FLOPs, memory, hours. Needs no torch.

Two counts of FLOPs stand side by side. nanochat's counts every attention layer as if a position
saw its whole window; ours halves what causality hides. The first is for comparison with published
figures, the second is what the hardware has to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from reference.config.experiment import asked_for
from reference.config.model import SMEAR_GATE_CHANNELS, ModelConfig
from reference.model.structure import Parameters, count_parameters
from reference.train.memory import (
    GIB,
    USABLE_SHARE,
    VRAM_BYTES,
    fitting_micro_batch,
    plan_vram,
)

__all__ = [
    "Parameters",
    "RunCost",
    "count_flops",
    "count_parameters",
    "estimate",
    "peak_flops",
    "plan_vram",
]

# Dense bf16 peak with fp32 accumulation, FLOP/s, by the device's reported name; the vendor's data
# sheets. A "*" stands for any form factor of the same peak.
PEAK_BF16_FLOPS = {
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4060": 30.2e12,
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
ASSUMED_MFU = 0.75  # bf16, nanochat's count, of cards that the time model does not know
ASSUMPTIONS = (
    "speed: the time model of a step (`n4090-kit bench train --predict rtx4090` prints it with its"
    " error against published speeds)",
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


class Cost(NamedTuple):
    """Training FLOPs of one token, by both counts."""

    nanochat: float
    causal: float


@dataclass(frozen=True)
class RunCost:
    """What a token costs at each share of a run: less while its model is small, more when taught.

    A teacher's forward pass is a third of what its training would be.
    """

    begins: tuple[float, ...]
    costs: tuple[Cost, ...]

    @classmethod
    def from_recipe(cls, config: ModelConfig, section: Mapping[str, Any]) -> RunCost:
        """By a recipe's `[pretrain]`; `config` is its finished model."""
        levers = asked_for(section)
        begins = {0.0, *(share for lever in levers for share in lever.changes_at(section))}
        costs = []
        for begin in sorted(begins):
            model = config
            for lever in levers:
                model = lever.model_at(model, section, begin)
            flops = count_flops(model)
            cost = Cost(flops.nanochat, flops.causal)
            for lever in levers:
                teacher = lever.taught_by(config, section, begin)
                if teacher is not None:
                    extra = count_flops(teacher)
                    cost = Cost(cost.nanochat + extra.nanochat / 3, cost.causal + extra.causal / 3)
            costs.append(cost)
        return cls(tuple(sorted(begins)), tuple(costs))

    @property
    def varies(self) -> bool:
        return len(set(self.costs)) > 1

    def at(self, progress: float) -> Cost:
        """Of a step at `progress` (0 to 1)."""
        return self.costs[sum(begin <= progress for begin in self.begins) - 1]

    def mean(self, *, by_time: bool) -> Cost:
        """Of the run's tokens, whose parts are equal in tokens or, `by_time`, in time.

        Equal time means more tokens where they are cheap.
        """
        ends = (*self.begins[1:], 1.0)
        parts = [end - begin for begin, end in zip(self.begins, ends, strict=True)]
        if by_time:
            parts = [part / cost.nanochat for part, cost in zip(parts, self.costs, strict=True)]
        return Cost(
            *(
                sum(part * cost[i] for part, cost in zip(parts, self.costs, strict=True))
                / sum(parts)
                for i in range(2)
            )
        )


def estimate(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, FLOPs, memory and hours of a resolved recipe.

    Returns:
        `parameters` (by kind, `scaling`, `total`) and `flops_per_token` (`nanochat`, `causal`) of
        the finished model, `tokens`, `flops` of the whole run, growth and teacher included (both
        counts), `vram_bytes` (by purpose, `total`, `fits_24gb`) of the
        micro-batch that a 24 GB card gets, `micro_batch` (`sequences`, `per_step`,
        `smallest_vram_bytes`: the plan of one sequence at a time),
        `rtx4090` (`tokens_per_s`, `pretrain_hours`, `assumptions`). Where the recipe trains for
        a time instead of a number of steps, `tokens` follows from the predicted speed.
    """
    from reference.model.day import plan_day
    from reference.model.step_time import predict_recipe  # which counts FLOPs with this module

    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    pretrain = recipe["pretrain"]
    parameters, flops = count_parameters(config), count_flops(config)
    cost = RunCost.from_recipe(config, pretrain)
    mean = cost.mean(by_time=not pretrain.get("num_steps"))
    if not cost.varies:
        mean = Cost(flops.nanochat, flops.causal)
    # The time model sees the finished model; while a smaller one trains, its FLOPs count.
    tokens_per_s = predict_recipe(recipe).tokens_per_s * flops.nanochat / mean.nanochat
    if pretrain.get("num_steps"):
        tokens = pretrain["num_steps"] * pretrain["total_batch_size"]
        hours = tokens / tokens_per_s / 3600
    else:
        day = plan_day(recipe, tokens_per_s)
        tokens, hours = int(day.tokens), day.hours["pretrain"]
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
        "flops": {"nanochat": mean.nanochat * tokens, "causal": mean.causal * tokens},
        "vram_bytes": {**vram, "total": total, "fits_24gb": total < USABLE_SHARE * VRAM_BYTES},
        "micro_batch": {
            "sequences": micro_batch,
            "per_step": max(1, pretrain["total_batch_size"] // (micro_batch * config.seq_len)),
            "smallest_vram_bytes": smallest,
        },
        "rtx4090": {
            "tokens_per_s": tokens_per_s,
            "pretrain_hours": hours,
            "assumptions": list(ASSUMPTIONS),
        },
    }

"""What training needs of a GPU's memory, by arithmetic alone, and the micro-batch that fits.

Needs no torch. Weights, gradients and optimizer states are counted exactly; activations as compiled
code keeps them; the workspace is the largest thing alive for a moment. `n4090-kit bench train`
prints the plan beside what the device measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reference.config.experiment import VramPlan, asked_for
from reference.config.model import ModelConfig
from reference.model.structure import (
    Parameters,
    attention_maps,
    block_activations,
    count_parameters,
    matrix_shapes,
    mlp_maps,
)
from reference.optim.rules import MatrixRule, rules

GIB = 2**30
VRAM_BYTES = 24 * GIB
# Of a card's memory, what the process may fill: the rest is CUDA's context, cuBLAS's workspaces,
# fragmentation and the desktop.
USABLE_SHARE = 0.90
LOGITS_CHUNK_BYTES = 256 << 20  # of bf16 logits at a time on a GPU (`reference.model.loss`)
MUON_CHUNK_ELEMENTS = 64 << 20  # matrices that Muon works off at once
BLOCK_PARTS = ("attention", "mlp")
CPU_SEQUENCES = 8  # the micro-batch of a recipe that leaves it open, where there is no GPU


def plan_vram(
    config: ModelConfig, device_batch_size: int, pretrain: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Bytes of GPU memory by purpose while training.

    Products whose factors the clock decides ("fastest") count as bf16 ones, which keep more.

    Args:
        pretrain: The recipe's section, for its switches that move memory; None: all at default.
    """
    section = dict(pretrain or {})
    plan = _plan_phase(config, device_batch_size, section)
    if _eight_bit_layers(section) and section.get("matmul_until", 1.0) < 1.0:
        # The last part of the run has bf16 products, and the larger of both has to fit.
        last = _plan_phase(config, device_batch_size, {**section, "matmul": "bf16"})
        plan = max(plan, last, key=lambda phase: sum(phase.values()))
    return plan


def _plan_phase(
    config: ModelConfig, device_batch_size: int, section: Mapping[str, Any]
) -> dict[str, int]:
    """`plan_vram` while the recipe's kind of products is in force."""
    p = count_parameters(config)
    tables = p.value_embedding + (0 if config.tied_until else p.embedding)  # in bf16
    fp32 = p.total - tables
    tokens = device_batch_size * config.seq_len
    chunk = min(tokens, max(64, LOGITS_CHUNK_BYTES // (2 * config.padded_vocab_size)))
    # bf16 logits that become their gradient in place; all at once where the loss is not chunked.
    logits = chunk * config.padded_vocab_size * 2
    if not section.get("fused_loss", True):
        logits = tokens * config.padded_vocab_size * (2 + 4 + 4 + 4)
    head = p.unembedding or p.tied_head
    weights = 4 * fp32 + 2 * tables
    known = VramPlan(weights, head, tokens, chunk)
    added: dict[str, int] = {}
    for experiment in asked_for(section):
        added.update(experiment.vram_bytes(config, section, known))
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": _optimizer_bytes(config, p, section),
        "activations": tokens * _activation_bytes(config, section),
        "logits": logits + 4 * head,
        "workspace": _workspace(config, p, tokens, section),
        **added,
    }


def _optimizer_bytes(config: ModelConfig, p: Parameters, section: Mapping[str, Any]) -> int:
    """The matrices' states; two moments of all else, the tables' second one factored where asked.

    Muon's factored second moment, a row or column a matrix, is left out.
    """
    rule = _matrix_rule(section)
    matrices = 8 * p.matrix  # both moments of adamw
    if rule is not None:
        shapes = matrix_shapes(config).items()
        matrices = sum(count * rule.state_bytes(shape) for shape, count in shapes)
    embedding = 4 if config.tied_until else 2  # bytes of one entry
    tables = embedding * p.embedding + 2 * p.value_embedding
    if section.get("factored_second_moment"):
        V, C = config.padded_vocab_size, config.n_embd
        gated = p.value_embedding // (V * config.kv_dim)
        second = 4 * (V + C) + gated * 4 * (V + config.kv_dim)
    else:
        second = tables
    return matrices + 8 * (p.unembedding + p.scalar) + tables + second


def _matrix_rule(section: Mapping[str, Any]) -> MatrixRule | None:
    """The rule of the blocks' matrices; None for adamw."""
    rule = rules().get(section.get("matrix_optimizer", "muon"))
    return None if rule is None else rule(rule.settings(section))


def _activation_bytes(config: ModelConfig, section: Mapping[str, Any]) -> int:
    """Bytes a token that compiled code keeps for the backward pass."""
    gated = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
    layers = config.n_layer * (2 * block_activations(config) - _saved_by_rounding(config, section))
    return layers + 2 * (gated * config.kv_dim + 4 * config.n_embd)


def _eight_bit_layers(section: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of the blocks whose maps have 8-bit factors."""
    if section.get("matmul", "bf16") in ("bf16", "fastest"):
        return ()
    return tuple(name for name in section.get("matmul_layers", BLOCK_PARTS) if name in BLOCK_PARTS)


def _saved_by_rounding(config: ModelConfig, section: Mapping[str, Any]) -> int:
    """Bytes a token and block that 8-bit factors spare, by what PyTorch's partitioner keeps.

    Normed inputs are kept as 8-bit factors. The MLP's bent activations are worked out again for
    fp8, and kept as 8-bit factors for int8, as the attention's result is beside itself.
    """
    if "weight_grad" not in section.get("matmul_passes", ("weight_grad",)):
        return 0  # a bf16 product of the weight's gradient needs its factor in bf16
    spared, int8, C = 0, section.get("matmul") == "int8", config.n_embd
    for part in _eight_bit_layers(section):
        spared += C
        if part == "mlp":
            spared += config.ffn_dim if int8 else 2 * config.ffn_dim
        elif int8:
            spared -= C
    return spared


def _copied_entries(config: ModelConfig, p: Parameters, section: Mapping[str, Any]) -> int:
    """Weights with a copy of 2 bytes: in bf16, or in int8 in both layouts. fp8 keeps none."""
    if section.get("matmul") == "int8":
        return p.scaling
    parts, layer = _eight_bit_layers(section), config.n_layer - 1
    maps = {"attention": attention_maps(config, layer), "mlp": mlp_maps(config)}
    rounded = sum(rows * columns for part in parts for rows, columns in maps[part].values())
    return p.scaling - config.n_layer * rounded


def _workspace(config: ModelConfig, p: Parameters, tokens: int, section: Mapping[str, Any]) -> int:
    """The copies of all matrices, and the larger of a chunk of them and a block's gradients.

    How often such a chunk is alive at once is the rule's to say.
    """
    C, L = config.n_embd, config.n_layer
    largest = min(L * C * max(C, config.ffn_dim), MUON_CHUNK_ELEMENTS)
    rule = _matrix_rule(section)
    muon = largest * (10 if rule is None else rule.workspace_bytes())
    widest = max(config.ffn_dim, C + 2 * config.kv_dim)
    backward = tokens * 3 * widest * 2
    return max(muon, backward) + 2 * _copied_entries(config, p, section)


def fitting_micro_batch(
    config: ModelConfig, pretrain: Mapping[str, Any], memory_bytes: int | None
) -> int:
    """Sequences of a micro-batch that stay within a card's memory.

    The recipe's `device_batch_size`, halved until the plan fits; where that is 0, the largest power
    of two that divides the step's sequences and fits. The step's batch stays what it is.

    Args:
        memory_bytes: The card's memory, or its cap; None where there is no GPU.
    """
    wanted = pretrain["device_batch_size"]
    sequences = max(1, pretrain["total_batch_size"] // config.seq_len)
    if not wanted:
        limit = CPU_SEQUENCES if memory_bytes is None else 256
        wanted = 1
        while wanted < limit and sequences % (2 * wanted) == 0:
            wanted *= 2
    if memory_bytes is None:
        return wanted
    usable = USABLE_SHARE * memory_bytes
    while wanted > 1 and sum(plan_vram(config, wanted, pretrain).values()) > usable:
        wanted = wanted // 2 if wanted % 2 == 0 else 1
    return wanted

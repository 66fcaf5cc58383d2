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
    block_activations,
    count_parameters,
    matrix_shapes,
)
from reference.optim.rules import MatrixRule, rules

GIB = 2**30
VRAM_BYTES = 24 * GIB
# Of a card's memory, what the process may fill: the rest is CUDA's context, cuBLAS's workspaces,
# fragmentation and the desktop.
USABLE_SHARE = 0.90
LOGITS_CHUNK_BYTES = 256 << 20  # of bf16 logits at a time on a GPU (`reference.model.loss`)
MUON_CHUNK_ELEMENTS = 64 << 20  # matrices that Muon works off at once
CPU_SEQUENCES = 8  # the micro-batch of a recipe that leaves it open, where there is no GPU


def plan_vram(
    config: ModelConfig, device_batch_size: int, pretrain: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Bytes of GPU memory by purpose while training in bf16.

    Args:
        pretrain: The recipe's section, for its switches that move memory; None: all at default.
    """
    section = pretrain or {}
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
        "activations": tokens * _activations_per_token(config) * 2,
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


def _activations_per_token(config: ModelConfig) -> int:
    """Elements that compiled code keeps for the backward pass, a token."""
    gated = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
    layers = config.n_layer * block_activations(config)
    return layers + gated * config.kv_dim + 4 * config.n_embd


def _workspace(config: ModelConfig, p: Parameters, tokens: int, section: Mapping[str, Any]) -> int:
    """The bf16 copies of all matrices, and the larger of a chunk of them and a block's gradients.

    How often such a chunk is alive at once is the rule's to say.
    """
    C, L = config.n_embd, config.n_layer
    largest = min(L * C * max(C, config.ffn_dim), MUON_CHUNK_ELEMENTS)
    rule = _matrix_rule(section)
    muon = largest * (10 if rule is None else rule.workspace_bytes())
    widest = max(config.ffn_dim, C + 2 * config.kv_dim)
    backward = tokens * 3 * widest * 2
    if section.get("matmul", "bf16") != "bf16":
        # Both factors of a product in 8 bits, and a turned copy of each.
        backward += 2 * (tokens * (C + config.ffn_dim) + C * config.ffn_dim)
    return max(muon, backward) + 2 * p.scaling


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

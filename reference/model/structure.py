"""The weights of a model as shapes: modules are built from them, costs are counted by them.

A new weight is one entry here and its use in `reference.model.gpt`. Parameters, FLOPs, optimizer
states and the memory plan follow. Needs no torch.

Shapes are (outputs, inputs), as the weights of the maps are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from reference.config.model import SMEAR_GATE_CHANNELS, VALUE_GATE_CHANNELS, ModelConfig

Shape = tuple[int, int]
OUTPUT = "c_proj"  # the maps whose result is added to the residual stream


def attention_maps(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """Linear maps of a layer's attention, in the order of their initial draws."""
    C, keys = config.n_embd, config.kv_dim
    maps = {"c_q": (C, C), "c_k": (keys, C), "c_v": (keys, C), OUTPUT: (C, C)}
    if config.has_value_embedding(layer):
        maps["value_gate"] = (config.n_kv_head, VALUE_GATE_CHANNELS)
    return maps


def mlp_maps(config: ModelConfig) -> dict[str, Shape]:
    """Linear maps of a layer's MLP, in the order of their initial draws."""
    C, inner = config.n_embd, config.ffn_dim
    up = {"c_up": (inner, C)} if config.ffn == "swiglu" else {}
    return {"c_fc": (inner, C), **up, OUTPUT: (C, inner)}


def block_maps(config: ModelConfig, layer: int) -> Iterator[tuple[str, Shape]]:
    """All linear maps of a layer."""
    yield from attention_maps(config, layer).items()
    yield from mlp_maps(config).items()


def scalar_sizes(config: ModelConfig) -> dict[str, int]:
    """Weights that are neither matrices of blocks nor tables, with their number of entries."""
    return {
        "norm_scale": config.n_layer * config.n_embd * config.norm_scales,
        "final_norm_scale": config.n_embd * config.norm_scales,
        "resid_scale": config.n_layer,
        "x0_scale": config.n_layer * config.x0_mix,
        "smear_gate": SMEAR_GATE_CHANNELS * config.smear,
        "smear_scale": int(config.smear),
        "backout_scale": int(config.backout),
    }


class Parameters(NamedTuple):
    """Counts by kind; `scaling` is what nanochat's horizon rule multiplies."""

    embedding: int
    value_embedding: int
    unembedding: int
    matrix: int
    scalar: int
    tied_head: int = 0  # matrix entries that are used as a head and counted as an embedding

    @property
    def scaling(self) -> int:
        return self.matrix + self.unembedding + self.tied_head

    @property
    def total(self) -> int:
        return sum(self) - self.tied_head


def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters of a model, padding rows included."""
    table = config.padded_vocab_size * config.n_embd
    gated = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
    return Parameters(
        embedding=table,
        value_embedding=gated * config.padded_vocab_size * config.kv_dim,
        unembedding=0 if config.tied else table,
        matrix=sum(m * n * count for (m, n), count in matrix_shapes(config).items()),
        scalar=sum(scalar_sizes(config).values()),
        tied_head=table if config.tied else 0,
    )


def matrix_shapes(config: ModelConfig) -> dict[Shape, int]:
    """How many of the blocks' matrices have each shape."""
    layers = range(config.n_layer)
    return dict(Counter(shape for layer in layers for _, shape in block_maps(config, layer)))


def block_activations(config: ModelConfig) -> int:
    """Elements a token that PyTorch's partitioner keeps of one block, its value embedding apart.

    Both residual states and both normed inputs; the result of every map of the whole input that is
    not added to the residual stream; what goes into those that are; queries and keys after their
    norm.
    """
    C = config.n_embd
    maps = [*attention_maps(config, config.n_layer - 1).items(), *mlp_maps(config).items()]
    results = sum(rows for name, (rows, columns) in maps if name != OUTPUT and columns == C)
    inputs = sum(columns for name, (_, columns) in maps if name == OUTPUT)
    return 4 * C + results + inputs + C + config.kv_dim

"""Blocks are compiled as one graph whatever is switched on, with the results of eager code.

The graphs are made and run without building machine code, which takes a GPU or minutes.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

from reference.config.model import ModelConfig
from reference.kernels.attention import find_documents, prepare_flex
from reference.model.gpt import GPT
from reference.model.int8_maps import use_int8
from reference.model.linear import Products, set_products
from reference.model.structure import block_activations
from reference.train.memory import plan_vram

CONFIG = ModelConfig(64, n_layer=2, n_embd=32, n_head=2, n_kv_head=1, seq_len=16, short_window=8,
                     window_pattern="L")  # fmt: skip
CASES = {
    "fp8": ({}, "fp8", False, "auto"),
    "int8": ({}, "int8", False, "auto"),
    "int8, swiglu": ({"ffn": "swiglu"}, "int8", False, "auto"),
    "documents by mask, tied": ({"tied_until": 1.0}, "bf16", True, "mask"),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(changes, kind):
    model = GPT(dataclasses.replace(CONFIG, **changes))
    model.init_weights(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    set_kind(model, kind)
    return model.place()


def set_kind(model, kind):
    if kind == "int8":
        use_int8(model, ("attention", "mlp"))
    else:
        set_products(model, ("attention", "mlp"), Products.of(kind))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning",
                            "ignore:The .grad attribute of a Tensor:UserWarning")  # fmt: skip
@pytest.mark.parametrize("case", CASES)
def test_a_block_is_one_graph_and_computes_the_same(case):
    changes, kind, documents, backend = CASES[case]
    tokens = torch.randint(1, 64, (2, 16), generator=torch.Generator().manual_seed(3))
    bounds = find_documents(tokens.numpy(), 7) if documents else None
    results = []
    for compiled in (False, True):
        model = build(changes, kind)
        model.set_backends(backend, backend)
        if compiled:
            for block in model.blocks:
                block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
        loss = model.loss(tokens, tokens.roll(1, 1), documents=bounds)
        loss.backward()
        results.append((loss.detach(), model.blocks[0].mlp.c_fc.weight.grad))
    torch.testing.assert_close(*(r[0] for r in results), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*(r[1] for r in results), atol=1e-3, rtol=1e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning",
                            "ignore:flex_attention called without:UserWarning")  # fmt: skip
def test_flex_attention_is_part_of_the_blocks_graph():
    tokens = torch.randint(1, 64, (2, 16), generator=torch.Generator().manual_seed(3))
    results = []
    for backend in ("mask", "flex"):
        model = build({"window_pattern": "SL"}, "bf16")
        model.set_backends(backend, backend)
        if backend == "flex":
            for window in (*CONFIG.windows, 8):
                prepare_flex(16, window, torch.device("cpu"))
            for block in model.blocks:
                block.compile(dynamic=False, fullgraph=True, backend="eager")
        with torch.no_grad():
            results.append(model(tokens))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning",
                            "ignore:The .grad attribute of a Tensor:UserWarning")  # fmt: skip
@pytest.mark.parametrize("changes", [{}, {"ffn": "swiglu", "n_kv_head": 2}], ids=str)
def test_the_memory_plan_counts_what_the_compiler_keeps(changes):
    """The partitioner of every compiled block is asked for what it saves for the backward pass."""
    saved: list[torch.fx.Node] = []

    def look(graph, _):
        outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        saved.extend(node for node in outputs[1:] if isinstance(node, torch.fx.Node))
        return make_boxed_func(graph)

    config = dataclasses.replace(CONFIG, n_layer=1, n_embd=64, **changes)
    model = GPT(config)
    model.init_weights(0)
    model.place("cpu", "bfloat16")
    partition = aot_autograd(
        fw_compiler=look,
        bw_compiler=lambda graph, _: make_boxed_func(graph),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    model.blocks[0].compile(dynamic=False, fullgraph=True, backend=partition)
    tokens = torch.randint(0, 64, (2, 16))
    model.loss(tokens, tokens).backward()
    kept, seen = 0, set()
    for node in saved:
        value = node.meta.get("val")
        # Of the activations' type and of every token; turned weights have other sizes. The
        # attention's output is kept as one tensor under two shapes.
        if not isinstance(value, torch.Tensor) or value.dtype != torch.bfloat16:
            continue
        if (
            value.numel() % 32
            or node.name.startswith("alias")
            or (value.dim() == 3 and (value.shape[0] == 16))
        ):
            continue
        if value.dim() == 2 and value.shape[0] != 32:
            continue
        if node.name.startswith("permute") and value.dim() == 2:
            continue
        seen.add(node.name)
        kept += value.numel() // 32
    gate_input, gate = 12, config.n_kv_head
    planned = block_activations(config) + config.kv_dim + gate_input + gate
    assert kept == pytest.approx(planned, rel=0.03), sorted(seen)


def kept_bytes(config: ModelConfig, kind: str, rows: int) -> int:
    """Bytes of all tokens that the partitioner keeps of a block with one kind of factors."""
    saved: list[torch.fx.Node] = []

    def look(graph, _):
        outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        saved.extend(node for node in outputs[1:] if isinstance(node, torch.fx.Node))
        return make_boxed_func(graph)

    model = GPT(config)
    model.init_weights(0)
    model.place("cpu", "bfloat16")
    if kind == "int8":
        use_int8(model, ["attention", "mlp"])
    else:
        set_products(model, ("attention", "mlp"), Products.of(kind))
    partition = aot_autograd(
        fw_compiler=look,
        bw_compiler=lambda graph, _: make_boxed_func(graph),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    model.blocks[0].compile(dynamic=False, fullgraph=True, backend=partition)
    tokens = torch.randint(0, 64, (rows, config.seq_len))
    model.loss(tokens, tokens).backward()
    kept = 0
    for node in saved:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.numel() % tokens.numel():
            continue  # weights: their sizes are no multiples of the tokens
        # A scale a row is 4 bytes a token; in bf16 attention's result is kept under two shapes.
        if value.element_size() <= 2 and not (kind == "bf16" and node.name.startswith("alias")):
            kept += value.numel() * value.element_size()
    return kept


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning",
                            "ignore:The .grad attribute of a Tensor:UserWarning")  # fmt: skip
@pytest.mark.parametrize("kind", ["fp8", "fp8_rowwise", "int8"])
def test_the_memory_plan_counts_what_8_bit_factors_spare(kind):
    config = dataclasses.replace(
        CONFIG, n_layer=1, n_embd=64, n_kv_head=2, seq_len=40, short_window=16
    )
    plain, rounded = kept_bytes(config, "bf16", 2), kept_bytes(config, kind, 2)
    plans = [plan_vram(config, 2, {"matmul": matmul})["activations"] for matmul in ("bf16", kind)]
    assert plain - rounded == pytest.approx(plans[0] - plans[1], rel=0.03)


def test_a_run_that_ends_in_bf16_is_planned_for_the_larger_of_both():
    sections = [{"matmul": "fp8", "matmul_until": until} for until in (0.95, 1.0)]
    changing, fp8 = (sum(plan_vram(CONFIG, 64, section).values()) for section in sections)
    assert fp8 < changing == sum(plan_vram(CONFIG, 64, {}).values())

"""Blocks are compiled as one graph whatever is switched on, with the results of eager code.

The graphs are made and run without building machine code, which takes a GPU or minutes.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reference.attention import find_documents, prepare_flex
from reference.config import ModelConfig
from reference.linear import Products, set_products
from reference.model import GPT

CONFIG = ModelConfig(64, n_layer=2, n_embd=32, n_head=2, n_kv_head=1, seq_len=16, short_window=8,
                     window_pattern="L")  # fmt: skip
CASES = {
    "fp8": ({}, "fp8", False, "auto"),
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
    set_products(model, ("attention", "mlp"), Products.of(kind))
    return model.place()


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

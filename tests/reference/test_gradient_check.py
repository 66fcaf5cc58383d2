"""Compiled blocks with 8-bit factors have the gradients of eager ones, or no run begins."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.kernels.attention import find_documents
from reference.kernels.eight_bit import KINDS
from reference.kernels.gradient_check import check_compiled_gradients
from reference.model import linear
from reference.model.gpt import GPT
from reference.model.int8_maps import use_int8
from reference.model.linear import Products, set_products

pytestmark = pytest.mark.filterwarnings(  # Dynamo's own, under warnings as errors
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:The .grad attribute of a Tensor:UserWarning",
)
CONFIG = ModelConfig(512, n_layer=1, n_embd=32, n_head=2, n_kv_head=2, seq_len=16, short_window=8)
EIGHT_BIT = [kind for kind in KINDS if kind != "bf16"]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_model(kind, dtype="bfloat16", **changes):
    model = GPT(dataclasses.replace(CONFIG, **changes))
    model.init_weights(0)
    model.place("cpu", dtype)
    if kind == "int8":
        use_int8(model, ("attention", "mlp"))
    else:
        set_products(model, ("attention", "mlp"), Products.of(kind))
    for block in model.blocks:
        block.compile(dynamic=False, backend="aot_eager")
    return model


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_gradients_of_compiled_blocks_are_those_of_eager_blocks(kind):
    model = compiled_model(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert check_compiled_gradients(model, 2, 16) == 1
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None, name


def test_documents_and_shared_key_heads_are_compared_too():
    model = compiled_model("int8", "float32", n_layer=2, n_kv_head=1, ffn="swiglu")
    model.set_backends("mask", "mask")
    tokens = torch.zeros((2, 16), dtype=torch.int64)
    tokens[:, 10] = 1
    # With a value embedding and without.
    assert check_compiled_gradients(model, 2, 16, find_documents(tokens.numpy(), 1)) == 2


def test_nothing_is_compared_without_8_bit_factors_or_without_compiling():
    assert check_compiled_gradients(compiled_model("bf16"), 2, 16) == 0
    eager = GPT(CONFIG)
    set_products(eager, ("mlp",), Products.of("fp8"))
    assert check_compiled_gradients(eager, 2, 16) == 0


def test_gradients_that_are_lost_in_compiling_end_the_run(monkeypatch):
    """As torch 2.11 did it: no error, only zeros."""
    backward = linear._Mixed.backward

    def lossy(ctx, dy):
        dx, dw, *rest = backward(ctx, dy)
        if torch.compiler.is_compiling():
            dw = dw * 0
        return (dx, dw, *rest)

    monkeypatch.setattr(linear._Mixed, "backward", staticmethod(lossy))
    model = compiled_model("fp8")
    with pytest.raises(TrainerError, match="other gradients than the eager block") as error:
        check_compiled_gradients(model, 2, 16)
    assert 'pretrain.matmul = "bf16"' in error.value.hint
    assert not model.blocks[0].attn.c_proj.weight.any()

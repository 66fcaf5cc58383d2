"""Gradients of token tables by index: equal to the dense ones, on a CPU to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference.config.model import ModelConfig
from reference.kernels.table_gradient import find_index, look_up
from reference.model.gpt import GPT


def test_sums_over_micro_steps_equal_the_dense_ones_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    mine, dense = (nn.Embedding(50, 24, _weight=torch.ones(50, 24)) for _ in range(2))
    for _ in range(3):
        tokens = torch.randint(0, 20, (4, 33), generator=generator)
        dy = torch.randn(4, 33, 24, generator=generator)
        y = look_up(tokens, mine, find_index(tokens))
        assert torch.equal(y, dense(tokens))
        y.backward(dy)
        dense(tokens).backward(dy)
    assert torch.equal(mine.weight.grad, dense.weight.grad)
    assert not mine.weight.grad[20:].any()


def test_rows_of_bf16_tables_are_summed_in_fp32() -> None:
    table = nn.Embedding(4, 8, _weight=torch.zeros(4, 8, dtype=torch.bfloat16))
    tokens = torch.ones(300, dtype=torch.int64)
    look_up(tokens, table, find_index(tokens)).backward(torch.ones(300, 8, dtype=torch.bfloat16))
    assert (table.weight.grad[1] == 300).all()  # sums in bf16 would have stopped at 256


@pytest.mark.parametrize("tied_until", [0.0, 1.0])
def test_a_models_tables_have_the_gradients_of_the_dense_way(tied_until, monkeypatch) -> None:
    config = ModelConfig(
        64, n_layer=4, n_embd=32, n_head=2, n_kv_head=2, seq_len=16, tied_until=tied_until
    )
    tokens = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(3))
    found = []
    for dense in (False, True):
        if dense:
            monkeypatch.setattr("reference.model.gpt.look_up", lambda t, table, _: table(t))
        model = GPT(config)
        model.init_weights(0)
        model.place()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05)
        for _ in range(2):
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[1].items():
        assert gradient is not None
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-6, atol=1e-8)

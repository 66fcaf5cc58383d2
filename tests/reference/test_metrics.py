"""Bits per byte by hand."""

from __future__ import annotations

import math

import pytest
import torch

from reference.train.metrics import evaluate_bpb, mfu


class FixedLosses:
    """Stands for a model whose loss at a target is the target's number plus one, in nats."""

    def loss(self, tokens, targets, reduction):
        assert reduction == "none"
        return (targets + 1).float()


def test_bits_per_byte_by_hand():
    token_bytes = torch.tensor([0, 1, 2, 4], dtype=torch.int32)  # token 0 is special
    targets = torch.tensor([[0, 1, 2, -1], [3, 3, -1, 0]])
    batches = [(targets, targets), (targets[:1], targets[:1])]
    # Nats 2 + 3 + 4 + 4 over 1 + 2 + 4 + 4 bytes, then 2 + 3 over 3; nothing of the special token.
    expected = (13 + 5) / (11 + 3) / math.log(2)
    assert evaluate_bpb(FixedLosses(), batches, token_bytes) == pytest.approx(expected)


def test_targets_without_bytes_are_an_error():
    targets = torch.tensor([[0, -1]])
    with pytest.raises(ValueError, match="no bytes"):
        evaluate_bpb(FixedLosses(), [(targets, targets)], torch.tensor([0, 1]))


def test_a_uniform_model_costs_the_entropy_of_the_vocabulary():
    from reference.model.gpt import GPT, ModelConfig

    model = GPT(ModelConfig(100, n_layer=1, n_embd=32, n_head=1, n_kv_head=1, seq_len=8))
    model.init_weights(0)
    model.lm_head.weight.data.zero_()
    targets = torch.arange(1, 17).view(2, 8)
    bits = evaluate_bpb(model, [(targets, targets)], torch.full((100,), 3))
    assert bits == pytest.approx(math.log2(100) / 3, rel=1e-6)


def test_utilisation_needs_a_known_peak():
    assert mfu(2.886e9, 43_000, 165.2e12) == pytest.approx(0.751, abs=1e-3)
    assert mfu(2.886e9, 43_000, None) is None

"""Attention against the softmax formula, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch

from reference.kernels.attention import cached_attention, causal_attention


def formula(q, k, v, window):
    """Softmax attention in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    H, T, D = q.shape[1:]
    heads = torch.arange(H) // (H // k.size(1))
    k, v = k[:, heads], v[:, heads]
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(D)
    hidden = torch.tensor([[not i - window < j <= i for j in range(T)] for i in range(T)])
    scores = scores.masked_fill(hidden, -math.inf)
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v).transpose(1, 2)


@pytest.mark.parametrize(
    ("T", "window"), [(1, 8), (7, 7), (40, 100), (40, 1), (150, 64), (200, 130), (130, 129)]
)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_equals_the_softmax_formula(T, window, groups):
    generator = torch.Generator().manual_seed(T * window + groups)
    shapes = [(2, T, 4, 16), (2, T, groups, 16), (2, T, groups, 16)]
    inputs = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    y = causal_attention(*inputs, window)
    expected = formula(*twins, window)
    torch.testing.assert_close(y.double(), expected, atol=2e-6, rtol=1e-5)
    dy = torch.randn(y.shape, generator=generator)
    y.backward(dy)
    expected.backward(dy.double())
    for x, twin in zip(inputs, twins, strict=True):
        torch.testing.assert_close(x.grad, twin.grad, atol=1e-5, rtol=1e-5)


def test_cached_attention_follows_its_mask():
    q, k, v = torch.randn(1, 3, 4, 8), torch.randn(1, 5, 2, 8), torch.randn(1, 5, 2, 8)
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    mask[..., 3:] = False
    torch.testing.assert_close(
        cached_attention(q, k, v, mask), cached_attention(q, k[:, :3], v[:, :3], None)
    )

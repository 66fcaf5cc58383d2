"""The chunked cross-entropy against the plain formula over all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import reference.model.loss
from reference.model.loss import softcapped_cross_entropy, softcapped_logits


def plain(hidden, weight, targets, vocab_size, softcap):
    logits = hidden @ weight[:vocab_size].T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(
        logits, targets.masked_fill(targets < 0, -100), ignore_index=-100, reduction="none"
    )


@pytest.fixture
def case(monkeypatch):
    """Inputs that need several chunks, the last one short."""
    monkeypatch.setitem(reference.model.loss.CHUNK_BYTES, "cpu", 64 * 4 * 128)
    generator = torch.Generator().manual_seed(0)
    hidden = 3 * torch.randn(150, 16, generator=generator)
    weight = torch.randn(128, 16, generator=generator)
    targets = torch.randint(0, 100, (150,), generator=generator)
    targets[::7] = -1
    targets[70:80] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("softcap", [15.0, 2.0, 0.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "count"])
def test_loss_and_gradients_equal_the_plain_formula(case, softcap, reduction):
    hidden, weight, targets = case
    ours = [x.clone().requires_grad_() for x in (hidden, weight)]
    twins = [x.double().requires_grad_() for x in (hidden, weight)]
    losses = plain(*twins, targets, 100, softcap)
    options = {"vocab_size": 100, "softcap": softcap}
    if reduction == "none":
        row_weights = torch.linspace(-1, 2, 150)
        loss = (softcapped_cross_entropy(*ours, targets, reduction="none", **options)) @ row_weights
        expected = losses @ row_weights.double()
    elif reduction == "count":
        loss = 3 * softcapped_cross_entropy(*ours, targets, count=1000, **options)
        expected = 3 * losses.sum() / 1000
    else:
        loss = softcapped_cross_entropy(*ours, targets, reduction=reduction, **options)
        expected = losses.sum() / ((targets >= 0).sum() if reduction == "mean" else 1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for mine, twin in zip(ours, twins, strict=True):
        scale = twin.grad.abs().max()
        torch.testing.assert_close(mine.grad.double() / scale, twin.grad / scale, rtol=0, atol=2e-6)
    assert not ours[1].grad[100:].any()


def test_loss_without_gradients_is_the_same_number(case):
    hidden, weight, targets = case
    with torch.no_grad():
        without = softcapped_cross_entropy(hidden, weight, targets, vocab_size=100, softcap=15.0)
    with_gradients = softcapped_cross_entropy(
        hidden.requires_grad_(), weight, targets, vocab_size=100, softcap=15.0
    )
    torch.testing.assert_close(without, with_gradients.detach())


def test_no_target_at_all_is_a_loss_of_zero_with_zero_gradient():
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(64, 8)
    loss = softcapped_cross_entropy(
        hidden, weight, torch.full((5,), -1), vocab_size=60, softcap=15.0
    )
    loss.backward()
    assert loss.item() == 0.0
    assert not hidden.grad.any()


def test_no_tensor_of_the_size_of_all_logits_is_made():
    hidden, weight = torch.randn(8192, 8, requires_grad=True), torch.randn(4096, 8)
    targets = torch.randint(0, 4096, (8192,))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        softcapped_cross_entropy(hidden, weight, targets, vocab_size=4096, softcap=15.0).backward()
    assert largest <= 8192 * 4096 // 16


def test_logits_are_capped_cropped_and_fp32():
    hidden, weight = 100 * torch.randn(2, 3, 8), torch.randn(64, 8)
    logits = softcapped_logits(hidden.bfloat16(), weight, vocab_size=50, softcap=15.0)
    assert logits.shape == (2, 3, 50)
    assert logits.dtype == torch.float32
    assert logits.abs().max() <= 15.0

"""The few-pass operations against the formulas they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference.kernels.fused import norm, norm_and_rotate, relu_squared


def angles(T, D):
    angle = torch.outer(torch.arange(T, dtype=torch.float64), 0.3 ** torch.arange(D // 2))
    return angle.cos()[:, None], angle.sin()[:, None]


def rotate_then_norm(x):
    cos, sin = angles(x.size(1), x.size(3))
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)
    return 1.2 * turned / turned.square().mean(-1, keepdim=True).sqrt()


def fused_norm_and_rotate(x):
    cos, sin = angles(x.size(1), x.size(3))
    return norm_and_rotate(x, (1.2 * cos).to(x.dtype), (1.2 * sin).to(x.dtype))


@pytest.mark.parametrize(
    ("fused", "formula"),
    [
        (norm, lambda x: x / x.square().mean(-1, keepdim=True).sqrt()),
        (relu_squared, lambda x: torch.where(x > 0, x * x, torch.zeros_like(x))),
        (fused_norm_and_rotate, rotate_then_norm),
    ],
    ids=["norm", "relu_squared", "norm_and_rotate"],
)
@pytest.mark.parametrize("strided", [False, True])
def test_values_and_gradients_equal_the_formula(fused, formula, strided):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, 32, generator=generator)
    x = x[..., ::2] if strided else x
    mine, twin = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = fused(mine * 1.0), formula(twin * 1.0)
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    dy = torch.randn(y.shape, generator=generator)
    y.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(mine.grad.double(), twin.grad, atol=1e-5, rtol=1e-5)


def test_other_dtypes_take_the_plain_formula():
    x = torch.randn(2, 3, 2, 8)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x.double()), F.rms_norm(x.double(), (8,)))


def test_a_zero_vector_has_finite_values_and_gradients():
    x = torch.zeros(1, 4, requires_grad=True)
    norm(x).sum().backward()
    assert torch.isfinite(x.grad).all()

"""Both libraries give the same products and gradients; the choice between them is a rule."""

import pytest
import torch

from reference.kernels import cpu as matmul

SHAPES = [(1, 8, 8), (7, 33, 65), (64, 96, 32)]


@pytest.fixture(params=["onednn", "blas"])
def library(request, monkeypatch):
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: request.param == "onednn")
    return request.param


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_and_its_gradients_agree_with_fp64(library, shape):
    M, K, N = shape
    x, weight = draw(2, M, K).requires_grad_(), draw(N, K).requires_grad_()
    y = matmul.linear(x, weight)
    y.square().sum().backward()
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    y64 = x64 @ weight64.T
    y64.square().sum().backward()
    for found, exact in ((y, y64), (x.grad, x64.grad), (weight.grad, weight64.grad)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_frozen_side_gets_no_gradient(library):
    x, weight = draw(3, 8), draw(4, 8).requires_grad_()
    matmul.linear(x, weight).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 8))


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_products_agree_with_fp64(library, shape):
    M, K, N = shape
    a, b, x = draw(2, M, K), draw(2, K, N), draw(2, M, N)
    exact = a.double() @ b.double()
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(matmul.matmul(a[0], b[0]).double(), exact[0], **close)
    torch.testing.assert_close(matmul.batched_matmul(a, b).double(), exact, **close)
    both = matmul.baddbmm(x, a, b, beta=0.5, alpha=-2.0)
    torch.testing.assert_close(both.double(), 0.5 * x.double() - 2.0 * exact, **close)
    total = matmul.add_matmul_(x[0].clone(), a[0], b[0])
    torch.testing.assert_close(total.double(), x[0].double() + exact[0], **close)


def test_equal_calls_give_equal_bits(library):
    x, weight = draw(64, 96), draw(48, 96)
    assert torch.equal(matmul.linear(x, weight), matmul.linear(x.clone(), weight.clone()))


def test_other_dtypes_go_pytorchs_way(monkeypatch):
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(matmul, "_onednn", lambda *_: pytest.fail("fp32 on a CPU only"))
    for dtype in (torch.float64, torch.bfloat16):
        x, weight = draw(3, 8).to(dtype), draw(4, 8).to(dtype)
        assert torch.equal(matmul.linear(x, weight), torch.nn.functional.linear(x, weight))


def test_the_rule_reads_the_processor_and_not_a_clock(monkeypatch):
    for vendor, library in (("AuthenticAMD", "onednn"), ("GenuineIntel", "blas")):
        matmul._onednn_is_faster.cache_clear()
        monkeypatch.setattr(matmul.Path, "read_text", lambda self, v=vendor: f"vendor_id\t: {v}\n")
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        assert matmul.cpu_library() == library
    matmul._onednn_is_faster.cache_clear()

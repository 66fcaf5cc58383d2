"""The faster CPU library gives the same linear maps, and only fp32 on a CPU goes there."""

import pytest
import torch
import torch.nn.functional as F

from kit.core_eval import cpu_linear


@pytest.fixture(params=[True, False], ids=["onednn", "blas"])
def library(request, monkeypatch):
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: request.param)
    return request.param


@pytest.mark.parametrize("bias", [True, False])
def test_linear_agrees_with_fp64(library, bias):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(33, 65, bias=bias)
    x = torch.randn(3, 7, 33, generator=generator)
    with torch.inference_mode(), cpu_linear.faster_linear():
        found = layer(x)
    exact = layer.double()(x.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32


def test_the_context_reaches_linear_and_ends(monkeypatch, library):
    calls = []
    kept = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda *args: calls.append(1) or kept(*args)
    )
    x, weight = torch.ones(2, 4), torch.ones(3, 4)
    with torch.inference_mode():
        with cpu_linear.faster_linear():
            F.linear(x, weight)
            F.linear(x.double(), weight.double())
            F.linear(x.bfloat16(), weight.bfloat16())
        F.linear(x, weight)
    assert len(calls) == int(library)

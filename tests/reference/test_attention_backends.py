"""Attention kernels: documents, agreement with the formula, the trial and what it says.

What only a GPU can run (FlexAttention's backward pass, PyTorch's windowed kernel) is compared with
the formula by `python -m reference.gpu_check`; here the calls are checked up to the kernel, with
stand-ins that compute the formula from exactly the arguments the kernels get.
"""

from __future__ import annotations

import math
import sys
import types
from itertools import pairwise

import numpy as np
import pytest
import torch

from reference.config.model import ModelConfig
from reference.kernels.attention import (
    _BACKENDS,
    SMALL_TILES,
    automatic,
    causal_attention,
    find_documents,
    lacks,
    takes,
)
from reference.kernels.attention_trial import choose_backends, try_backend
from reference.model.gpt import GPT
from reference.train.step import Micro, split

CPU = torch.device("cpu")
BOS = 7


def packed(B=3, T=24, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 12, (B, T))
    tokens[:, 0] = BOS
    return tokens


def formula(q, k, v, window, ids=None):
    """Softmax attention in float64; `ids` (B, T) numbers the documents."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    H, T, D = q.shape[1:]
    heads = torch.arange(H) // (H // k.size(1))
    scores = torch.einsum("bhid,bhjd->bhij", q, k[:, heads]) / math.sqrt(D)
    seen = torch.tensor([[i - window < j <= i for j in range(T)] for i in range(T)])[None]
    if ids is not None:
        seen = seen & (ids[:, :, None] == ids[:, None, :])
    weights = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v[:, heads]).transpose(1, 2)


def inputs(T=24, G=2, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, T, 4, 8), (3, T, G, 8), (3, T, G, 8)]
    return [torch.randn(s, generator=generator).requires_grad_(requires_grad) for s in shapes]


def ids_of(tokens):
    return torch.from_numpy(np.cumsum(tokens == BOS, axis=1))


def test_documents_begin_at_every_bos_and_every_row():
    tokens = np.array([[1, 2, BOS, 3, BOS, 4], [BOS, 1, 2, 3, 4, 5]])
    found = find_documents(tokens, BOS)
    assert found.starts.tolist() == [[0, 0, 2, 2, 4, 4], [0] * 6]
    offsets = found.offsets.tolist()
    assert offsets[:4] == [0, 2, 4, 6] and set(offsets[4:]) == {12}
    assert found.goes_on.tolist() == [[False, True, False, True, False, True], [False] + [True] * 5]
    assert found.offsets.dtype == found.starts.dtype == torch.int32
    sizes = {len(find_documents(packed(seed=s), BOS).offsets) for s in range(20)}
    assert len(sizes) <= 2, "compiled code would see too many sizes"


@pytest.mark.parametrize("window", [24, 5, 1])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_documents_do_not_see_each_other_forward_and_backward(window, groups):
    tokens = packed()
    mine, twins = inputs(G=groups), inputs(G=groups)
    y = causal_attention(*mine, window, documents=find_documents(tokens, BOS))
    expected = formula(*twins, window, ids_of(tokens))
    torch.testing.assert_close(y.double(), expected, atol=2e-6, rtol=1e-5)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(dy)
    expected.backward(dy.double())
    for x, twin in zip(mine, twins, strict=True):
        torch.testing.assert_close(x.grad, twin.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["blocks", "mask", "sdpa"])
@pytest.mark.parametrize("window", [24, 6])
def test_backends_of_a_cpu_agree_with_the_formula(backend, window):
    if not takes(backend, 24, window, False):
        pytest.skip("not a call for it")
    mine, twins = inputs(), inputs()
    y, expected = causal_attention(*mine, window, backend=backend), formula(*twins, window)
    torch.testing.assert_close(y.double(), expected, atol=2e-6, rtol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    for x, twin in zip(mine, twins, strict=True):
        torch.testing.assert_close(x.grad, twin.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("backend", ["flex", "flex_small"])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [24, 6])
def test_flex_attention_agrees_with_the_formula(window, documents, backend):
    """Forward only: PyTorch has no backward pass of it for a CPU."""
    tokens = packed()
    bounds = find_documents(tokens, BOS) if documents else None
    q, k, v = inputs(requires_grad=False)
    y = causal_attention(q, k, v, window, documents=bounds, backend=backend)
    ids = ids_of(tokens) if documents else None
    torch.testing.assert_close(y.double(), formula(q, k, v, window, ids), atol=2e-6, rtol=1e-5)


def ragged(q, k, v, offsets, window):
    """The formula on rows laid end to end, cut at `offsets`."""
    edges = sorted(set(offsets.tolist()))
    parts = [formula(q[None, a:b], k[None, a:b], v[None, a:b], window)[0]
             for a, b in pairwise(edges)]  # fmt: skip
    return torch.cat(parts).float()


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", ["fa2", "fa3", "varlen"])
def test_packages_are_called_with_windows_and_documents_as_they_want_them(
    monkeypatch, name, documents
):
    calls = []

    def equal_rows(q, k, v, *, causal, window_size, **options):
        calls.append(("rows", causal, window_size, options))
        y = formula(q, k, v, window_size[0] + 1).float()
        return (y, None) if name == "fa3" else y

    def ends(q, k, v, offsets, offsets_k, longest, longest_k, *, window_size, **options):
        assert offsets is offsets_k and longest == longest_k == 24
        assert options.pop("enable_gqa", True) and offsets.dtype == torch.int32
        calls.append(("ends", options.pop("causal", True), window_size, options))
        return ragged(q, k, v, offsets, window_size[0] + 1)

    if name == "varlen":
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", ends)
    else:
        module = {"fa2": "flash_attn", "fa3": "flash_attn_interface"}[name]
        fake = types.SimpleNamespace(flash_attn_func=equal_rows, flash_attn_varlen_func=ends)
        monkeypatch.setitem(sys.modules, module, fake)
    tokens = packed()
    bounds = find_documents(tokens, BOS) if documents else None
    q, k, v = inputs(requires_grad=False)
    y = causal_attention(q, k, v, 6, documents=bounds, backend=name)
    ids = ids_of(tokens) if documents else None
    torch.testing.assert_close(y.double(), formula(q, k, v, 6, ids), atol=1e-5, rtol=1e-5)
    assert calls == [("ends" if documents or name == "varlen" else "rows", True, (5, 0), {})]


def test_flash_packages_are_told_to_be_deterministic(monkeypatch):
    seen = {}
    fake = types.SimpleNamespace(
        flash_attn_func=lambda q, k, v, **options: seen.update(options) or q
    )
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    causal_attention(*inputs(G=4), 6, backend="fa2")
    assert seen["deterministic"] is True


def test_what_lacks_here_and_what_takes_what():
    assert lacks("varlen", CPU, torch.bfloat16) == "needs a GPU"
    gpu = torch.device("cuda")
    assert lacks("fa2", gpu, torch.bfloat16) == "package flash_attn is not installed"
    assert lacks("cudnn", gpu, torch.float32) == "needs bf16"
    assert lacks("flex", gpu, torch.float32) is None and lacks("mask", CPU, torch.float32) is None
    assert takes("sdpa", 8, 8, False) and not takes("sdpa", 8, 4, False)
    assert not takes("cudnn", 8, 8, True) and not takes("blocks", 8, 4, True)
    assert takes("flex", 8, 4, True) and takes("mask", 8, 4, True)
    assert automatic(gpu, torch.bfloat16, 8, 4, True) == "varlen"
    assert automatic(gpu, torch.float32, 8, 4, True) == "mask"
    assert automatic(CPU, torch.float32, 8, 4, False) == "blocks"


def test_the_small_tiles_fit_adas_shared_memory():
    """K and V tiles of all stages beside Q, heads of 128 channels in bf16."""
    t = SMALL_TILES
    for rows, keys in (("BLOCK_M", "BLOCK_N"), ("BLOCK_M1", "BLOCK_N1"), ("BLOCK_M2", "BLOCK_N2")):
        elements = 128 * (2 * t[rows] * t["num_stages"] + 2 * t[keys])
        assert 2 * elements <= 99 * 1024


def test_the_trial_takes_the_fastest_that_agrees(monkeypatch):
    times = {"sdpa": 2.0, "blocks": 3.0, "mask": 1.0, "fa2": 0.1}
    running = []
    real = dict(_BACKENDS)

    def watched(name):
        def call(*args):
            running.append(name)
            return real[name](*args) * (1.5 if name == "mask" else 1.0)

        return call

    for name in ("sdpa", "blocks", "mask"):
        monkeypatch.setitem(_BACKENDS, name, watched(name))

    def timer(function):
        function()
        return times[running[-1]]

    chosen, rows = choose_backends(
        (2, 16, 4, 2, 8), [16, 4, 16], device=CPU, dtype=torch.float32, documents=False,
        timer=timer, candidates=("sdpa", "mask", "fa2", "blocks"),
    )  # fmt: skip
    assert chosen == {4: "blocks", 16: "sdpa"}
    reasons = {(row.window, row.backend): row.reason for row in rows}
    assert reasons[16, "fa2"] == "needs a GPU"
    assert "output differs from the formula by" in reasons[16, "mask"]
    assert (4, "sdpa") not in reasons, "not a call for it"


def test_a_kernel_that_fails_is_reported_and_none_leaves_it_to_the_device(monkeypatch):
    def fails(*_):
        raise RuntimeError("out of resource: shared memory\nRequired: 131072")

    monkeypatch.setitem(_BACKENDS, "blocks", fails)
    row = try_backend("blocks", (2, 16, 4, 2, 8), 4, CPU, torch.float32, False, lambda f: 1.0)
    assert row.reason == "RuntimeError: out of resource: shared memory"
    chosen, _ = choose_backends(
        (2, 16, 4, 2, 8), [4], device=CPU, dtype=torch.float32, documents=False,
        timer=lambda f: 1.0, candidates=("blocks",),
    )  # fmt: skip
    assert chosen == {4: "auto"}


@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_a_model_with_document_bounds_reads_each_document_alone(n_kv_head):
    config = ModelConfig(12, n_layer=3, n_embd=32, n_head=4, n_kv_head=n_kv_head, seq_len=24,
                         window_pattern="SL", short_window=6)  # fmt: skip
    model = GPT(config)
    model.init_weights(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    model.place()
    row = np.array([[BOS, 1, 2, 3, BOS, 4, 5, 6, 8, BOS, 9, 10]])
    tokens = torch.from_numpy(row)
    with torch.no_grad():
        whole = model.logits(model.hidden(tokens, documents=find_documents(row, BOS)))
        alone = torch.cat([model(tokens[:, a:b]) for a, b in ((0, 4), (4, 9), (9, 12))], dim=1)
        torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(model(tokens), alone, atol=1e-2), "documents see each other"


def test_pieces_of_a_micro_batch_keep_their_documents():
    tokens = packed(B=5)
    tensor, bounds = torch.from_numpy(tokens), find_documents(tokens, BOS)
    pieces = list(split(Micro(tensor, tensor, bounds), 2))
    assert [len(piece.tokens) for piece in pieces] == [3, 2]
    for piece in pieces:
        again = find_documents(piece.tokens.numpy(), BOS)
        assert torch.equal(piece.documents.starts, again.starts)
        assert torch.equal(piece.documents.offsets, again.offsets)
    assert torch.equal(torch.cat([piece.tokens for piece in pieces]), tensor)

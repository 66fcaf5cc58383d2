"""Products of 8-bit factors against exact arithmetic on the same rounded factors."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from reference.config.model import ModelConfig
from reference.kernels import compiling
from reference.kernels.eight_bit import KINDS, product, quantize
from reference.kernels.matmul_trial import (
    choose_products,
    probe,
    profiled_kernels,
    time_product,
)
from reference.model.gpt import GPT
from reference.model.linear import PASSES, PLAIN, Linear, Products, eligible, set_products
from reference.model.loss import softcapped_cross_entropy

EIGHT_BIT = [kind for kind in KINDS if kind != "bf16"]
# The largest share of a row's largest value that rounding can move a value by.
STEP = {"fp8": 2**-4, "fp8_rowwise": 2**-4, "int8": 0.5 / 127}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("gradient", [False, True])
def test_rounding_moves_no_value_further_than_half_a_step(kind, gradient):
    x = draw(32, 48) * torch.logspace(-4, 3, 32)[:, None]
    factor = quantize(x, kind, gradient=gradient)
    assert factor.values.is_contiguous() and factor.values.element_size() == 1
    amax = x.abs().amax() if kind == "fp8" else x.abs().amax(1, keepdim=True)
    error = (factor.dequantized() - x).abs()
    if kind == "int8":
        assert (error <= amax * STEP[kind] * 1.001).all()
    else:  # floating: relative to the value; e5m2 has one bit less; or below the smallest number
        relative = 2 * STEP[kind] if gradient and kind == "fp8" else STEP[kind]
        smallest = 2.0**-16 if gradient and kind == "fp8" else 2.0**-9
        assert (error <= (x.abs() * relative).maximum(smallest * factor.scale) * 1.001).all()
    torch.testing.assert_close(factor.dequantized().abs().amax(), x.abs().amax())


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_zeros_stay_zeros_and_turned_matrices_round_alike(kind):
    x = draw(16, 32)
    x[3] = 0
    factor, turned = quantize(x, kind), quantize(x.T.contiguous().T, kind)
    assert not factor.dequantized()[3].any()
    assert torch.equal(factor.dequantized(), turned.dequantized())
    assert not quantize(torch.zeros(16, 16), kind).dequantized().any()


@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("gradient", [False, True])
def test_a_product_is_that_of_its_rounded_factors(kind, gradient):
    a, b = draw(32, 64), draw(48, 64, seed=1)
    y = product(a, b, kind, torch.float32, gradient=gradient)
    exact = (
        quantize(a, kind, gradient=gradient).dequantized().double()
        @ quantize(b, kind).dequantized().double().T
    )
    # The kernels return bf16: 8 bits of mantissa.
    assert (y - exact).abs().max() <= exact.abs().max() * 2**-8
    assert (y - a @ b.T).abs().max() > 0


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_sizes_the_kernels_do_not_take_are_multiplied_as_they_are(kind):
    a, b = draw(30, 64), draw(48, 64, seed=1)
    assert torch.equal(product(a, b, kind, torch.float32), a @ b.T)


@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("which", PASSES)
def test_each_pass_is_switched_alone(kind, which):
    plain, mixed = Linear(32, 48), Linear(32, 48)
    mixed.load_state_dict(plain.state_dict())
    mixed.products = Products.of(kind, [which])
    results = []
    for module in (plain, mixed):
        x = draw(2, 16, 32).requires_grad_()
        y = module(x)
        y.backward(draw(2, 16, 48, seed=2))
        results.append(
            {"forward": y, "input_grad": x.grad, "weight_grad": module.weight.grad.clone()}
        )
    expected, found = results
    for name in PASSES:
        difference = (found[name] - expected[name]).abs().max() / expected[name].abs().max()
        if name == which:
            assert 1e-5 < difference < 0.1, name
        else:
            assert difference < 1e-5, name


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_without_gradients_a_map_works_in_the_activations_type(kind):
    module, x = Linear(32, 48), draw(16, 32)
    expected = module(x).detach()
    module.products = Products.of(kind)
    with torch.no_grad():
        assert torch.equal(module(x), expected)


MODEL = ModelConfig(
    96, n_layer=2, n_embd=32, n_head=2, n_kv_head=1, seq_len=16, short_window=8, smear=True
)


def model_loss(config, kind, layers, head="bf16", full=False):
    model = GPT(config)
    model.init_weights(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "c_proj" in name or name == "lm_head.weight":
                p.copy_(0.1 * draw(*p.shape, seed=len(name)))
    model.place()
    changed = set_products(model, layers, Products.of(kind))
    model.head_kind, model.full_loss = head, full
    tokens = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(3))
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return changed, loss.item(), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("tied", [0.0, 1.0])
@pytest.mark.parametrize("ffn", ["relu2", "swiglu"])
def test_a_model_learns_nearly_the_same_from_8_bit_products(kind, tied, ffn):
    config = ModelConfig(**{**MODEL.to_json(), "tied_until": tied, "ffn": ffn})
    none, loss, gradients = model_loss(config, "bf16", ["attention", "mlp"])
    some, rounded, others = model_loss(config, kind, ["attention", "mlp"])
    assert none == 0 and some == 2 * (4 + (3 if ffn == "swiglu" else 2))
    assert rounded == pytest.approx(loss, rel=0.02) and rounded != loss
    for name in ("wte.weight", "blocks.0.mlp.c_fc.weight", "blocks.1.attn.c_q.weight"):
        a, b = gradients[name].flatten(), others[name].flatten()
        assert torch.cosine_similarity(a, b, dim=0) > 0.97, name


@pytest.mark.parametrize("layers", [["attention"], ["mlp"], []])
def test_only_the_named_layers_take_8_bit_factors(layers):
    model = GPT(MODEL)
    set_products(model, layers, Products.of("int8"))
    taken = {name for name, module in model.named_modules()
             if isinstance(module, Linear) and module.products != PLAIN}  # fmt: skip
    assert taken == {name for name, _ in eligible(model, layers)}
    assert all(any(f".{'attn' if k == 'attention' else k}." in n for k in layers) for n in taken)
    assert not any("gate" in name or "lm_head" in name for name in taken)


@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("tied", [0.0, 1.0])
def test_the_heads_logits_in_8_bits_keep_gradients_close(kind, tied):
    config = ModelConfig(**{**MODEL.to_json(), "tied_until": tied, "vocab_size": 128})
    _, loss, gradients = model_loss(config, "bf16", [])
    _, rounded, others = model_loss(config, "bf16", [], head=kind)
    assert rounded == pytest.approx(loss, rel=0.02) and rounded != loss
    for name, gradient in gradients.items():
        if gradient.abs().max() > 1e-6 and gradient.dim() == 2 and "gate" not in name:
            similar = torch.cosine_similarity(gradient.flatten(), others[name].flatten(), dim=0)
            assert similar > 0.97, name


def test_an_uncapped_loss_takes_8_bit_logits_too():
    hidden, weight = draw(32, 16).requires_grad_(), draw(64, 16, seed=1)
    targets = torch.arange(32)
    settings = {"vocab_size": 60, "softcap": 0.0}
    plain = softcapped_cross_entropy(hidden, weight, targets, **settings)
    rounded = softcapped_cross_entropy(hidden, weight, targets, kind="int8", **settings)
    assert rounded.item() == pytest.approx(plain.item(), rel=0.02) and rounded != plain


@pytest.mark.parametrize("names", [["nvjet_sm90_qqtst_128x256_128x4"], ["cutlass_80_gemm"], []])
def test_the_trial_takes_the_fastest_whatever_its_kernels_are_called(names):
    cpu = torch.device("cpu")
    order = iter([3.0, 1.0, 2.0, 5.0, 9.0, 7.0, 2.0, 4.0, 6.0])
    chosen, rows = choose_products(
        [(32, 16)],
        32,
        device=cpu,
        timer=lambda function: next(order),
        kinds=("bf16", "fp8", "int8"),
        kernels=lambda function: names,
    )
    assert chosen == {"32x16": Products("fp8", "bf16", "bf16")}
    assert [row.ms for row in rows] == [3.0, 1.0, 2.0, 5.0, 9.0, 7.0, 2.0, 4.0, 6.0]
    noted = rows[1].kernels
    assert noted == tuple(names) if names else "CUPTI" in noted[0]
    assert not any(row.kernels for row in rows if row.kind == "bf16")


@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("which", PASSES)
def test_a_kind_is_refused_for_its_results_alone(kind, which, monkeypatch):
    cpu = torch.device("cpu")
    probe.cache_clear()
    assert probe(which, kind, cpu) is None

    def wrong(a, b, *_, **__):
        return 1.05 * (a.bfloat16() @ b.bfloat16().T)

    def unrounded(a, b, *_, **__):
        return (a.double() @ b.double().T).bfloat16()

    refusals = {}
    for name, function in (("wrong", wrong), ("unrounded", unrounded)):
        probe.cache_clear()
        monkeypatch.setattr("reference.kernels.matmul_trial.product", function)
        row = time_product(32, 16, 32, which, kind, cpu, lambda f: 1.0, lambda f: ["e4m3 imma"])
        assert row.ms is None
        refusals[name] = row.reason
    probe.cache_clear()
    assert "differs from its rounded factors" in refusals["wrong"]
    # One of int8's results is too close to the unrounded product to fail the first comparison.
    assert "differs from" in refusals["unrounded"] or "not rounded" in refusals["unrounded"]


def test_a_profiler_that_is_refused_drops_no_kind(monkeypatch):
    class Refused:
        def __init__(self, **_):
            raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr("torch.profiler.profile", Refused)
    probe.cache_clear()
    row = time_product(
        32, 16, 32, "forward", "fp8", torch.device("cpu"), lambda f: 1.0, profiled_kernels
    )
    assert row.ms == 1.0 and row.reason is None and "CUPTI" in row.kernels[0]


def test_more_products_than_dynamos_limit_are_each_compiled(monkeypatch):
    """`bench kernels` compiles more variants of one function than Dynamo keeps by default."""
    monkeypatch.setattr(compiling, "RECOMPILE_LIMIT", 8)
    compiler = CompileCounter()
    # monkeypatch would delete Dynamo's settings when it puts them back.
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        for size in range(12):

            def double(x: torch.Tensor, size: int = size) -> torch.Tensor:
                return 2 * x + size

            compiling.compiled_alone(double, backend=compiler)(torch.ones(size + 2))
    torch._dynamo.reset()
    assert compiler.frame_count == 12


def test_the_trial_leaves_passes_that_are_switched_off_in_bf16_and_reports_failures():
    def timer(function):
        function()
        return 1.0 if len(times) else times.append(1) or 2.0

    times: list[int] = []
    chosen, rows = choose_products(
        [(32, 16)],
        32,
        device=torch.device("cpu"),
        timer=timer,
        passes=["forward"],
        kinds=("bf16", "fp8"),
    )
    assert chosen == {"32x16": Products("fp8", "bf16", "bf16")}
    assert [row.kind for row in rows] == ["bf16", "fp8", "bf16", "bf16"]

    def refuse(function):
        raise RuntimeError("no such kernel\nmore")

    row = time_product(32, 16, 32, "forward", "fp8", torch.device("cpu"), refuse)
    assert row.reason == "RuntimeError: no such kernel" and row.ms is None

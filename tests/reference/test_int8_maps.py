"""Maps in int8: products and gradients against exact ones, weights rounded when they change."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_training import defaults
from torch import nn

from reference.config.model import ModelConfig
from reference.kernels.int8_rounding import Rounded
from reference.kernels.int8_trial import choose_int8
from reference.model.gpt import GPT, MLP
from reference.model.int8_maps import (
    Passes,
    RoundedMaps,
    StepWeights,
    mapped,
    relu2_mlp,
    round_weight,
    use_int8,
)
from reference.optim.optimizer import MuonAdamW, parameter_groups

CONFIG = ModelConfig(
    96, n_layer=2, n_embd=64, n_head=4, n_kv_head=2, seq_len=16, short_window=8, smear=True
)
EPSILON = torch.finfo(torch.float32).eps
EACH_PASS = [Passes(*(name == which for name in Passes._fields)) for which in Passes._fields]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bend(x: torch.Tensor, producer: str) -> torch.Tensor:
    if producer == "norm":
        return nn.functional.rms_norm(x, (x.size(-1),), eps=EPSILON)
    return x.relu().square() if producer == "relu2" else x


@pytest.mark.parametrize("producer", ["identity", "norm", "relu2"])
@pytest.mark.parametrize("widths", [[48], [48, 16, 16]], ids=str)
def test_gradients_are_those_of_the_unrounded_map_up_to_the_rounding(producer, widths) -> None:
    x = draw(2, 128, 64).requires_grad_()
    weights = [nn.Parameter(draw(n, 64, seed=n + i) / 8) for i, n in enumerate(widths)]
    dy = draw(2, 128, sum(widths), seed=9)
    y = mapped(x, weights, round_weight(torch.cat(list(weights))), producer)
    y.backward(dy)
    twins = [t.detach().double().requires_grad_() for t in (x, *weights)]
    exact = bend(twins[0], producer) @ torch.cat(twins[1:]).T
    exact.backward(dy.double())
    pairs = [(y, exact), *((a.grad, b.grad) for a, b in zip((x, *weights), twins, strict=True))]
    for mine, theirs in pairs:
        error = (mine.double() - theirs).norm() / theirs.norm()
        assert 0 < error < 0.02  # 8 bits: not exact, and not far off


@pytest.mark.parametrize("passes", EACH_PASS)
def test_each_pass_is_switched_alone(passes: Passes) -> None:
    """Only the named product is rounded; the others are exact up to fp32."""
    results = []
    for chosen in (Passes(False, False, False), passes):
        x, weight = draw(64, 32).requires_grad_(), nn.Parameter(draw(48, 32, seed=1))
        y = mapped(x, [weight], round_weight(weight), "norm", chosen)
        y.backward(draw(64, 48, seed=2))
        results.append((y.detach(), x.grad, weight.grad))
    for on, plain, found in zip(passes, *results, strict=True):
        error = float((found - plain).norm() / plain.norm())
        assert 1e-3 < error < 0.03 if on else error < 1e-5


@pytest.mark.parametrize("passes", [Passes(), *EACH_PASS])
def test_the_mlp_in_one_function_equals_its_two_maps(passes: Passes) -> None:
    """The gradient between the maps is bent and rounded in one pass; only its order differs."""
    results = []
    for whole in (False, True):
        x = draw(130, 32).requires_grad_()
        fc, proj = nn.Parameter(draw(64, 32, seed=1)), nn.Parameter(draw(32, 64, seed=2))
        maps = RoundedMaps(round_weight(fc), round_weight(proj), passes)
        if whole:
            y = relu2_mlp(x, fc, proj, maps)
        else:
            h = mapped(x, [fc], maps.inner, "norm", passes)
            y = mapped(h, [proj], maps.outer, "relu2", passes)
        y.backward(draw(130, 32, seed=3))
        results.append((y.detach(), x.grad, fc.grad, proj.grad))
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


def built(**changes: object) -> GPT:
    model = GPT(dataclasses.replace(CONFIG, **changes))  # type: ignore[arg-type]
    model.init_weights(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "c_proj" in name or name == "lm_head.weight":
                p.copy_(0.1 * draw(*p.shape, seed=len(name)))
    return model.place()


def loss_of(model: GPT) -> torch.Tensor:
    tokens = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(3))
    return model.loss(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_weights_are_rounded_once_a_step_whatever_changes_them(rule: str, monkeypatch) -> None:
    from reference.model import int8_maps

    rounded: list[int] = []
    plain = round_weight

    def counted(weight: torch.Tensor) -> Rounded:
        rounded.append(1)
        return plain(weight)

    monkeypatch.setattr(int8_maps, "round_weight", counted)
    model = built()
    use_int8(model, ["attention", "mlp"])
    section = {**defaults("pretrain"), "matrix_optimizer": rule}
    optimizer = MuonAdamW(parameter_groups(model, section))
    changes = (
        lambda: None,
        optimizer.step,
        lambda: model.load_state_dict({n: p + 0.01 for n, p in model.state_dict().items()}),
    )
    for number, change in enumerate(changes, 1):
        change()
        for _ in range(3):  # micro-steps
            loss_of(model).backward()
        assert len(rounded) == number * 2 * CONFIG.n_layer * 2  # attention and MLP, inner and outer
        for block in model.layers:
            for mine, exact in zip(block.mlp.int8.inner, plain(block.mlp.c_fc.weight), strict=True):
                assert torch.equal(mine, exact)


@pytest.mark.parametrize("ffn", ["relu2", "swiglu"])
@pytest.mark.parametrize("passes", [Passes(), Passes(True, True, False)])
def test_gradients_summed_in_the_product_are_those_that_autograd_sums(ffn, passes) -> None:
    found = []
    for summed in (False, True):
        model = built(ffn=ffn)
        use_int8(model, ["attention", "mlp"], passes)
        model.step_weights.refresh()
        if not summed:
            for block in model.layers:
                for part in (block.attn, block.mlp):
                    part.int8 = part.int8._replace(inner_grad=None, outer_grad=None)
                    part.zero_grad(set_to_none=True)
        for step in range(2):  # the second step's sums begin at zero again
            for _ in range(3):
                loss_of(model).backward()
            if step == 0:
                model.zero_grad(set_to_none=True)
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


@pytest.mark.parametrize("ffn", ["relu2", "swiglu"])
@pytest.mark.parametrize("passes", [Passes(False, False, False), *EACH_PASS])
def test_scales_of_the_norm_in_the_rounded_weights_have_the_gradients_of_autograd(
    ffn: str, passes: Passes
) -> None:
    """Without any int8 product the two ways are one function; with one they differ by rounding."""
    found = []
    for folded in (False, True):
        model = built(ffn=ffn, norm_scales=True)
        with torch.no_grad():
            for block in model.layers:
                block.mlp.norm_scale.copy_(1 + 0.3 * draw(64, seed=7))
        if folded:
            model.step_weights = StepWeights(model, ["mlp"], passes)
        for _ in range(2):
            loss_of(model).backward()
        if folded:
            model.step_weights.finish_gradients()
        found.append({name: p.grad for name, p in model.named_parameters()})
    tolerance = 0.05 if any(passes) else 1e-4
    for name, gradient in found[0].items():
        if ".mlp." in name:
            error = (found[1][name] - gradient).norm() / gradient.norm()
            assert error < tolerance, (name, error)


def test_a_changed_scale_of_the_norm_is_rounded_into_the_weights_again() -> None:
    model = built(norm_scales=True)
    use_int8(model, ["mlp"])
    mlp = model.layers[0].mlp
    for factor in (1.0, 2.0):
        with torch.no_grad():
            mlp.norm_scale.mul_(factor)
        loss_of(model).backward()
        expected = round_weight(mlp.c_fc.weight * mlp.norm_scale)
        for mine, exact in zip(mlp.int8.inner, expected, strict=True):
            assert torch.equal(mine, exact)


@pytest.mark.parametrize("ffn", ["relu2", "swiglu"])
@pytest.mark.parametrize("layers", [["attention"], ["mlp"], ["attention", "mlp"]])
def test_a_model_learns_nearly_the_same_and_evaluates_exactly_the_same(ffn, layers) -> None:
    plain, rounded = built(ffn=ffn), built(ffn=ffn)
    use_int8(rounded, layers)
    losses = [loss_of(model) for model in (plain, rounded)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.02)
    assert losses[1].item() != losses[0].item()
    for loss in losses:
        loss.backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), rounded.named_parameters(), strict=True):
        if p.dim() == 2 and "gate" not in name:
            similar = torch.cosine_similarity(p.grad.flatten(), q.grad.flatten(), dim=0)
            assert similar > 0.97, name
    with torch.no_grad():
        assert torch.equal(loss_of(plain), loss_of(rounded))
    use_int8(rounded, [])
    assert torch.equal(loss_of(plain), loss_of(rounded))
    assert all(block.attn.int8 is None and block.mlp.int8 is None for block in rounded.layers)


def test_sizes_that_are_no_multiples_of_16_stay_as_they_are() -> None:
    model = built(n_embd=40, n_head=2, n_kv_head=2)
    use_int8(model, ["attention", "mlp"])
    assert len(model.step_weights) == 0
    loss_of(model).backward()


def test_the_trial_keeps_bf16_where_int8_is_not_faster_or_wrong(monkeypatch) -> None:
    model, whole = built(), (2, 16)

    def times(*values: float):
        left = list(values)

        def timer(function):
            function()
            return left.pop(0)

        return timer

    chosen, rows = choose_int8(
        model, ["attention", "mlp"], whole, passes=Passes(), timer=times(3.0, 2.0, 2.0, 3.0)
    )
    assert chosen == ["attention"]
    assert [(row.part, row.kind, row.ms) for row in rows] == [
        ("attention", "bf16", 3.0), ("attention", "int8", 2.0),
        ("mlp", "bf16", 2.0), ("mlp", "int8", 3.0),
    ]  # fmt: skip
    monkeypatch.setattr(MLP, "_forward_int8", lambda self, x, maps: 1.5 * x)
    chosen, rows = choose_int8(model, ["mlp"], whole, passes=Passes(), timer=times(2.0, 1.0))
    assert not chosen and rows[0].ms is None and "differs from bf16" in (rows[0].reason or "")

    def missing(self, x, maps):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(MLP, "_forward_int8", missing)
    chosen, rows = choose_int8(model, ["mlp"], whole, passes=Passes(), timer=times(2.0, 1.0))
    assert not chosen and rows[0].reason == "RuntimeError: no such kernel"

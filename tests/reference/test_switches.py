"""Architecture switches: counts, formulas, tying and untying, and what they cost."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kit.verify.checks.physics import matrix_flops
from reference.bench.plain import plain_logits, plain_loss
from reference.config.model import ModelConfig
from reference.model.cost import count_flops, count_parameters, plan_vram
from reference.model.gpt import GPT
from reference.model.linear import Linear
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import ScheduleConfig, schedule_at
from reference.train.step import train_step

BASE = ModelConfig(90, n_layer=4, n_embd=32, n_head=4, n_kv_head=4, seq_len=16, short_window=5)
SWITCHES = {
    "multi-query": {"n_kv_head": 1},
    "grouped queries": {"n_kv_head": 2},
    "swiglu": {"ffn": "swiglu"},
    "narrow swiglu": {"ffn": "swiglu", "ffn_width": 48},
    "narrow relu2": {"ffn_width": 64},
    "no x0": {"x0_mix": False},
    "tied": {"tied_until": 1.0},
    "tied, late": {"tied_until": 0.5},
    "one value embedding": {"value_embedding_every": 4},
    "a value embedding a layer": {"value_embedding_every": 1},
    "scales of norms": {"norm_scales": True},
    "all of them": {
        "n_kv_head": 1, "ffn": "swiglu", "tied_until": 1.0, "value_embedding_every": 3,
        "norm_scales": True,
    },
}  # fmt: skip
RATES = {
    "total_batch_size": 32, "matrix_lr": 0.02, "embedding_lr": 0.05, "unembedding_lr": 0.008,
    "value_embedding_lr": 0.05, "resid_lr": 0.005, "x0_lr": 0.05, "gate_lr": 0.05,
    "weight_decay": 0.1, "scale_lr": False,
}  # fmt: skip


def build(config):
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.place()


def tokens(seed=0, rows=2):
    return torch.randint(0, 90, (rows, 16), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switched_model_equals_its_plain_twin(name):
    config = dataclasses.replace(BASE, **SWITCHES[name])
    model = build(config)
    weights = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    torch.testing.assert_close(
        model(tokens()), plain_logits(weights, config, tokens()), atol=1e-4, rtol=1e-4
    )
    loss, expected = (
        model.loss(tokens(), tokens(1)),
        plain_loss(weights, config, tokens(), tokens(1)),
    )
    loss.backward()
    expected.backward()
    for parameter_name, p in model.named_parameters():
        twin = weights[parameter_name].grad
        scale = twin.abs().max().clamp_min(1e-4)
        assert ((p.grad - twin).abs().max() / scale) < 1e-3, parameter_name


@pytest.mark.parametrize("name", SWITCHES)
def test_parameters_and_flops_follow_the_switch(name):
    config = dataclasses.replace(BASE, **SWITCHES[name])
    model, counted = GPT(config), count_parameters(config)
    assert counted.total == sum(p.numel() for p in model.parameters())
    used = 6 * sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    if config.tied:
        used += 6 * model.wte.weight.numel()
    assert count_flops(config).matmul == used
    # The verifier counts for itself, from the shapes of the published tensors.
    large = dataclasses.replace(config, vocab_size=4096)
    shapes = [tuple(tensor.shape) for tensor in GPT.empty(large, "meta").state_dict().values()]
    assert matrix_flops(shapes, 4096) == count_flops(large).matmul


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("momentum", ["float32", "bfloat16"])
def test_planned_bytes_equal_those_of_the_real_weights_gradients_and_states(
    name, factored, momentum
):
    config = dataclasses.replace(BASE, **SWITCHES[name], vocab_size=4096)
    section = {**RATES, "factored_second_moment": factored, "momentum_dtype": momentum}
    model = GPT(config)
    model.init_weights(0)
    model.place("cpu", "bfloat16")
    plan = plan_vram(config, 2, section)
    optimizer = MuonAdamW(parameter_groups(model, section))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    assert plan["weights"] == plan["gradients"] == sum(sizes)
    states = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if key not in ("step", "second_moment")
    )
    assert plan["optimizer"] == states


def test_each_switch_that_spares_memory_does_so_in_the_plan():
    large = ModelConfig(49152, n_layer=20, n_embd=1280, n_head=10, n_kv_head=10)

    def total(section=None, **changes):
        return sum(plan_vram(dataclasses.replace(large, **changes), 4, section).values())

    full = total()
    for changes in ({"n_kv_head": 2}, {"tied_until": 1.0}, {"ffn_width": 2560},
                    {"value_embedding_every": 4}):  # fmt: skip
        assert total(**changes) < full, changes
    assert total({"factored_second_moment": True}) < full
    assert total({"momentum_dtype": "bfloat16"}) < full
    assert total({"fused_loss": False}) > full
    # 8-bit factors are kept in place of bf16 ones; tests/nullgpu measures it.
    assert total({"matmul": "fp8"}) < full


def step(model, optimizer, seed):
    multipliers = schedule_at(0.0, 500, ScheduleConfig())
    return train_step(model, optimizer, [(tokens(seed), tokens(seed + 1))], multipliers)


def test_untying_leaves_the_function_as_it_is_and_then_trains_two_tables():
    model = build(dataclasses.replace(BASE, tied_until=0.5))
    model.tie()
    optimizer = MuonAdamW(parameter_groups(model, RATES))
    before = model.lm_head.weight.clone()
    first = step(model, optimizer, 0)
    assert torch.equal(model.lm_head.weight, before), "the head of its own waits"
    with torch.no_grad():
        tied = model(tokens())
        model.untie()
        assert torch.allclose(model(tokens()), tied, atol=1e-5)
    at_untying = model.lm_head.weight.clone()
    last = [step(model, optimizer, 0) for _ in range(4)][-1]
    assert not torch.equal(model.lm_head.weight, at_untying)
    assert not torch.allclose(0.025 * model.wte.weight, model.lm_head.weight)
    assert last < first


@pytest.mark.parametrize("options", [
    {"factored_second_moment": True}, {"momentum_dtype": "bfloat16"},
    {"factored_second_moment": True, "momentum_dtype": "bfloat16"},
])  # fmt: skip
@pytest.mark.parametrize("tied", [0.0, 1.0])
def test_states_in_other_types_survive_a_resume_to_the_bit(options, tied, tmp_path):
    config = dataclasses.replace(BASE, tied_until=tied)
    model = build(config).place("cpu", "bfloat16")
    optimizer = MuonAdamW(parameter_groups(model, {**RATES, **options}))
    for seed in range(3):
        step(model, optimizer, seed)
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict()}, tmp_path / "state")
    expected = [step(model, optimizer, seed) for seed in range(3, 6)]
    other = build(config).place("cpu", "bfloat16")
    resumed = MuonAdamW(parameter_groups(other, {**RATES, **options}))
    state = torch.load(tmp_path / "state", weights_only=True)
    other.load_state_dict(state["m"])
    resumed.load_state_dict(state["o"])
    assert [step(other, resumed, seed) for seed in range(3, 6)] == expected


def test_a_factored_second_moment_is_exact_where_the_table_has_rank_one():
    """Gradients r c^T have squares of rank one: the factored step is then AdamW's own."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(12, 8, generator=generator))
    twin = torch.nn.Parameter(p.detach().clone())
    group = {"kind": "adamw", "name": "t", "params": [p], "lr": 0.01, "betas": (0.8, 0.95),
             "eps": 1e-10, "weight_decay": 0.1, "factored": True}  # fmt: skip
    mine = MuonAdamW([group])
    other = torch.optim.AdamW([twin], lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
    rows, columns = torch.rand(12, 1, generator=generator), torch.rand(1, 8, generator=generator)
    for sign in (1.0, -0.5, 2.0):  # one shape of gradient, so that its running mean keeps it
        p.grad = twin.grad = sign * rows * columns
        mine.step()
        other.step()
    torch.testing.assert_close(p, twin, atol=1e-6, rtol=1e-5)


def test_compiled_momentum_is_a_tensor_and_gives_the_same_step(monkeypatch):
    """What the compiled update is handed; the compiling itself is timed on a GPU."""
    monkeypatch.setattr("reference.kernels.compiling.compiled", lambda update: update)
    results = []
    for compiled in (False, True):
        model = build(BASE)
        optimizer = MuonAdamW(parameter_groups(model, RATES))
        for rule in optimizer.rules:
            if rule is not None:
                rule.compiled = compiled
        for seed in range(2):
            step(model, optimizer, seed)
        results.append(model.blocks[0].mlp.c_fc.weight.detach())
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


def test_wrong_switches_are_refused():
    for changes in ({"ffn": "gelu"}, {"value_embedding_every": 0}, {"tied_until": 1.5}):
        with pytest.raises(ValueError, match=str(next(iter(changes.values())))):
            dataclasses.replace(BASE, **changes)

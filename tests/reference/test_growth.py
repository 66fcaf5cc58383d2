"""Growth: what a grown model computes, what its optimizer knows, and what the plan says of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_training import defaults

from reference.bench.train import GivenRows
from reference.config.model import ModelConfig
from reference.experiments.growth.growth import carry_moments, grown, source_layers
from reference.experiments.growth.plan import GrowthPlan, sized
from reference.lab.study import steps_of
from reference.model.cost import RunCost, count_flops, estimate
from reference.model.gpt import GPT
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import ScheduleConfig, schedule_at
from reference.train.loop import TrainState
from reference.train.step import train_step

SMALL = ModelConfig(90, n_layer=2, n_embd=32, n_head=2, n_kv_head=2, seq_len=16, short_window=5)
RATES = {
    "total_batch_size": 32, "matrix_lr": 0.02, "embedding_lr": 0.05, "unembedding_lr": 0.008,
    "value_embedding_lr": 0.05, "resid_lr": 0.005, "x0_lr": 0.05, "gate_lr": 0.05,
    "weight_decay": 0.1, "scale_lr": False, "average": "none", "average_share": 0.1,
}  # fmt: skip
SCHEDULE = schedule_at(0.5, 5, ScheduleConfig())


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 90, (2, 16), generator=torch.Generator().manual_seed(seed))


def trained(config: ModelConfig, steps: int = 3, **rates: object) -> tuple[GPT, MuonAdamW]:
    model = GPT(config)
    model.init_weights(0)
    model.place()
    optimizer = MuonAdamW(parameter_groups(model, {**RATES, **rates}))
    for step in range(steps):
        train_step(model, optimizer, [(tokens(step), tokens(step + 1))], SCHEDULE)
    return model, optimizer


def gradients(model: GPT) -> dict[str, torch.Tensor]:
    model.loss(tokens(), tokens(1)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"ffn": "swiglu"}, {"n_head": 4}, {"ffn": "swiglu", "ffn_width": 48, "n_kv_head": 1}],
    ids=str,
)
@pytest.mark.parametrize("factor", [2, 3])
def test_a_wider_model_computes_what_the_narrow_one_did(changes, factor):
    config = dataclasses.replace(SMALL, **changes)
    old, _ = trained(config)
    wide = dataclasses.replace(
        config,
        n_embd=factor * config.n_embd,
        n_head=factor * config.n_head,
        n_kv_head=factor * config.n_kv_head,
        ffn_width=factor * config.ffn_width,
    )
    new = grown(old, wide, 1).place()
    torch.testing.assert_close(new(tokens()), old(tokens()), atol=1e-5, rtol=1e-5)
    # Copies stay no twins: what reads them differs, and so do their gradients.
    table = gradients(new)["wte.weight"].view(-1, factor, config.n_embd)
    assert (table[:, 0] - table[:, 1]).abs().max() > 0.1 * table.abs().max()
    # Over the copies they sum to the narrow model's: the noise is not seen in sum.
    torch.testing.assert_close(table.sum(1), gradients(old)["wte.weight"], atol=1e-5, rtol=1e-3)


def test_the_noise_is_the_seeds():
    old, _ = trained(SMALL, 1)
    wide = sized(dataclasses.replace(SMALL, n_embd=64, n_head=4, n_kv_head=4), 2, 64)
    one, same, other = (grown(old, wide, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(2, 4, [0, 1, 0, 1]), (2, 3, [0, 0, 1]), (1, 3, [0, 0, 0]), (3, 8, [0, 1, 0, 1, 2, 0, 1, 2])],
)
def test_whole_copies_are_stacked_and_the_first_and_last_layers_stay(before, after, expected):
    assert source_layers(before, after) == expected


@pytest.mark.parametrize("layers", [4, 5])
def test_a_deeper_model_holds_copies_of_layers_with_their_moments(layers):
    old, optimizer = trained(SMALL)
    config = dataclasses.replace(SMALL, n_layer=layers)
    new = grown(old, config, 1).place()
    target = MuonAdamW(parameter_groups(new, RATES))
    carry_moments(old, optimizer, new, target)
    a, b = old.state_dict(), new.state_dict()
    for layer, source in enumerate(source_layers(2, layers)):
        for name in ("attn.c_q", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            assert torch.equal(
                b[f"blocks.{layer}.{name}.weight"], a[f"blocks.{source}.{name}.weight"]
            )
        assert b["resid_scale"][layer] == a["resid_scale"][source]
        if config.has_value_embedding(layer):  # the small model has one, of its layer 1
            assert torch.equal(b[f"value_embeds.{layer}.weight"], a["value_embeds.1.weight"])
    assert torch.equal(b["lm_head.weight"], a["lm_head.weight"])
    group = next(g for g in target.param_groups if g["name"] == "matrix 128x32")
    first = target.state[group["params"][0]]["momentum"]
    source = next(g for g in optimizer.param_groups if g["name"] == "matrix 128x32")
    original = optimizer.state[source["params"][0]]["momentum"]
    assert torch.equal(first, original[torch.tensor(source_layers(2, layers))])
    moments, known = target.state[new.resid_scale], optimizer.state[old.resid_scale]
    assert torch.equal(moments["exp_avg"], known["exp_avg"][torch.tensor(source_layers(2, layers))])
    assert moments["step"] == 3
    losses = [train_step(new, target, [(tokens(s), tokens(s + 1))], SCHEDULE) for s in range(3)]
    assert all(loss < 6 for loss in losses)


def test_a_wider_models_moments_are_those_of_the_gradients_it_would_have_had():
    old, optimizer = trained(SMALL)
    wide = dataclasses.replace(SMALL, n_embd=64, n_head=4, n_kv_head=4)
    new = grown(old, wide, 1).place()
    target = MuonAdamW(parameter_groups(new, RATES))
    carry_moments(old, optimizer, new, target)
    for name in ("wte.weight", "lm_head.weight", "value_embeds.1.weight", "resid_scale"):
        p, q = dict(new.named_parameters())[name], dict(old.named_parameters())[name]
        summed = target.state[p]["exp_avg"]
        if name != "resid_scale":
            halves = summed.view(-1, 2, summed.size(1) // 2)
            assert torch.equal(halves[:, 0], halves[:, 1])
            share = 1 if name == "lm_head.weight" else 2  # of the gradient, by its copies
            assert torch.allclose(share * halves[:, 0], optimizer.state[q]["exp_avg"])
            square = target.state[p]["exp_avg_sq"].view(-1, 2, summed.size(1) // 2)[:, 0]
            assert torch.allclose(share**2 * square, optimizer.state[q]["exp_avg_sq"])
    group = next(g for g in target.param_groups if g["name"] == "matrix 64x256")
    state = target.state[group["params"][0]]
    assert state["momentum"].shape == (2, 64, 256) and not state["second_moment"].any()
    assert state["momentum"].abs().max() > 0
    train_step(new, target, [(tokens(), tokens(1))], SCHEDULE)


@pytest.mark.parametrize("kind", ["soap", "soap_muon", "muon2"])
def test_other_optimizers_states_go_with_layers_and_survive_widening(kind):
    old, optimizer = trained(SMALL, matrix_optimizer=kind)
    known = optimizer.state[next(iter(old.blocks[0].mlp.parameters()))]
    for changes in ({"n_layer": 4}, {"n_embd": 64, "n_head": 4, "n_kv_head": 4}):
        new = grown(old, dataclasses.replace(SMALL, **changes), 1).place()
        target = MuonAdamW(parameter_groups(new, {**RATES, "matrix_optimizer": kind}))
        carry_moments(old, optimizer, new, target)
        first = target.state[next(iter(new.blocks[0].mlp.parameters()))]
        if "n_layer" in changes:
            assert set(first) == set(known)
            assert all(torch.equal(first[k], known[k][[0, 1, 0, 1]]) for k in known)
        else:
            assert bool(first) == (kind == "muon2")
        losses = [train_step(new, target, [(tokens(s), tokens(s + 1))], SCHEDULE) for s in range(3)]
        assert all(loss < 6 for loss in losses)


def test_states_of_another_kind_begin_anew():
    old, optimizer = trained(SMALL, factored_second_moment=True)
    config = dataclasses.replace(SMALL, n_layer=4)
    new = grown(old, config, 1).place()
    target = MuonAdamW(parameter_groups(new, {**RATES, "factored_second_moment": True}))
    carry_moments(old, optimizer, new, target)
    assert target.state[new.wte.weight] == {} and target.state[new.lm_head.weight]
    train_step(new, target, [(tokens(), tokens(1))], SCHEDULE)


GROWTH = {"growth_layers": [[0.0, 2], [0.25, 4]], "growth_width": [[0.0, 32], [0.5, 64]]}
FULL = dataclasses.replace(SMALL, n_layer=4, n_embd=64, n_head=4, n_kv_head=4)


def test_the_plan_names_every_model_in_turn():
    plan = GrowthPlan.from_recipe(FULL, GROWTH)
    shapes = [(c.n_layer, c.n_embd, c.n_head, c.n_kv_head) for c in plan.configs]
    assert plan.begins == (0.0, 0.25, 0.5)
    assert shapes == [(2, 32, 2, 2), (4, 32, 2, 2), (4, 64, 4, 4)] and plan.configs[-1] == FULL
    assert [plan.at(p) for p in (0.0, 0.24, 0.25, 0.6, 1.0)] == [0, 0, 1, 2, 2]


def test_a_grown_run_costs_what_its_models_cost_by_both_counts():
    small, middle, full = (
        count_flops(c).nanochat for c in GrowthPlan.from_recipe(FULL, GROWTH).configs
    )
    cost = RunCost.from_recipe(FULL, GROWTH)
    assert [cost.at(p).nanochat for p in (0.1, 0.3, 0.9)] == [small, middle, full]
    mean = cost.mean(by_time=False).nanochat
    assert mean == pytest.approx(0.25 * small + 0.25 * middle + 0.5 * full)
    tokens = 0.25 / small + 0.25 / middle + 0.5 / full  # of a run of one FLOP
    assert cost.mean(by_time=True).nanochat == pytest.approx(1 / tokens)
    assert not RunCost.from_recipe(FULL, {}).varies and cost.varies


def test_equal_flops_buy_a_grown_run_more_steps():
    model = {k: v for k, v in FULL.to_json().items() if k != "vocab_size"}
    document = {
        "model": model, "tokenizer": {"vocab_size": 90},
        "pretrain": {**RATES, "num_steps": 100, "hours": 0, "device_batch_size": 2},
    }  # fmt: skip
    plain = steps_of(document, 1e9)
    document["pretrain"].update(GROWTH)
    plan, mean = estimate(document), RunCost.from_recipe(FULL, GROWTH).mean(by_time=False)
    assert steps_of(document, 1e9) == pytest.approx(
        plain * count_flops(FULL).nanochat / mean.nanochat, abs=1
    )
    assert plan["flops"]["nanochat"] == pytest.approx(100 * 32 * mean.nanochat)


def test_a_training_goes_back_to_the_model_of_a_saved_state():
    section = {**defaults("pretrain"), **RATES, **GROWTH}
    state = TrainState.of_recipe(
        FULL, section, device=torch.device("cpu"), seed=3, horizon_tokens=1e4
    )
    state.prepare(lambda text, **_: None, bos=0)
    state.rows = GivenRows(1)
    assert state.reach(0.1) == []
    start = {**state.state_dict()}
    assert state.reach(0.7) == ["the model grows: n_layer 2 -> 4, n_embd 32 -> 64, n_head 2 -> 4"]
    assert state.model.config == FULL and len(state.curriculum.phases[0].windows) == 4
    state.load_state_dict(start)
    assert state.levers[0].stage == 0 and state.model.config.n_layer == 2
    with pytest.raises(ValueError, match="growth 5"):
        state.load_state_dict({**start, "growth": 5})

"""Muon and AdamW against PyTorch's AdamW, the SVD and arithmetic by hand."""

from __future__ import annotations

import math

import pytest
import torch

from reference.model.cost import count_parameters
from reference.model.gpt import GPT, ModelConfig
from reference.optim.muon import orthogonalize
from reference.optim.optimizer import (
    MuonAdamW,
    batch_lr_scale,
    parameter_groups,
    power_lines_batch,
    scaled_weight_decay,
    width_lr_scale,
)
from reference.optim.schedule import Schedule

PRETRAIN = {
    "total_batch_size": 1 << 19,
    "matrix_lr": 0.02,
    "embedding_lr": 0.3,
    "unembedding_lr": 0.008,
    "value_embedding_lr": 0.15,
    "resid_lr": 0.005,
    "x0_lr": 0.5,
    "gate_lr": 0.2,
    "weight_decay": 0.28,
    "scale_lr": True,
}
FLAT = Schedule(lr=1.0, momentum=0.9, weight_decay=1.0)


def muon_group(params, **changes):
    group = {"kind": "muon", "params": params, "lr": 0.1, "momentum": 0.9, "beta2": 0.9}
    return {**group, "weight_decay": 0.0, **changes}


def test_adamw_steps_equal_those_of_torch():
    torch.manual_seed(0)
    ours = [torch.randn(7, 5, requires_grad=True), torch.randn(3, requires_grad=True)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    options = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.05}
    optimizer = MuonAdamW([{"kind": "adamw", "params": ours, "fused": True, **options}])
    twin = torch.optim.AdamW(theirs, foreach=False, fused=False, **options)
    for step in range(5):
        lr = 1.0 - 0.1 * step
        twin.param_groups[0]["lr"] = 0.03 * lr
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.set_schedule(Schedule(lr=lr, momentum=0.9, weight_decay=0.0))
        optimizer.step()
        twin.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (16, 64)])
def test_orthogonalization_keeps_singular_vectors_and_evens_out_values(shape):
    torch.manual_seed(1)
    batch = torch.randn(3, *shape)
    rows = batch.norm(dim=-1, keepdim=True)
    u, _, vt = torch.linalg.svd((batch / rows).double(), full_matrices=False)
    result = orthogonalize(batch)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.7
    assert values.max() < 1.3
    polar = (u @ vt).float()
    cosine = (result * polar).sum((-2, -1)) / (result.norm(dim=(-2, -1)) * polar.norm(dim=(-2, -1)))
    assert cosine.min() > 0.995
    torch.testing.assert_close(
        result.norm(dim=(-2, -1)), torch.full((3,), math.sqrt(min(shape))), rtol=1e-5, atol=0
    )


def test_orthogonalization_of_zero_stays_finite():
    assert torch.isfinite(orthogonalize(torch.zeros(2, 8, 8))).all()


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (12, 12)])
def test_muon_step_equals_its_formula_matrix_by_matrix(shape):
    """Every stage in float64 and one matrix at a time, from the papers' formulas."""
    torch.manual_seed(2)
    m, n = shape
    params = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    naive = [p.detach().double() for p in params]
    moments = [[torch.zeros(shape).double(), 0.0] for _ in params]
    optimizer = MuonAdamW([muon_group(params, weight_decay=0.3)])
    for step in range(3):
        schedule = Schedule(lr=0.5, momentum=0.8 + 0.05 * step, weight_decay=0.5)
        optimizer.set_schedule(schedule)
        for i, p in enumerate(params):
            p.grad = torch.randn(shape)
            grad, mu = p.grad.double(), schedule.momentum
            moments[i][0] = mu * moments[i][0] + (1 - mu) * grad
            nesterov = mu * moments[i][0] + (1 - mu) * grad
            update = orthogonalize(nesterov[None])[0]
            dim = 1 if m >= n else 0
            square = (update**2).mean(dim, keepdim=True)
            moments[i][1] = 0.9 * moments[i][1] + 0.1 * square
            scaled = update / moments[i][1].sqrt()
            scaled *= update.norm() / scaled.norm()
            lr = 0.1 * 0.5 * math.sqrt(max(1.0, m / n))
            agrees = (scaled * naive[i] >= 0).double()
            naive[i] = naive[i] - lr * scaled - lr * 0.3 * 0.5 * agrees * naive[i]
        optimizer.step()
    for p, q in zip(params, naive, strict=True):
        torch.testing.assert_close(p.detach().double(), q, atol=2e-5, rtol=2e-5)


def test_weight_decay_of_muon_spares_weights_the_step_lets_grow():
    weight = torch.eye(4).mul(2).requires_grad_()
    for sign, decayed in ((1.0, True), (-1.0, False)):
        results = []
        for decay in (0.0, 0.5):
            p = weight.detach().clone().requires_grad_()
            p.grad = sign * torch.eye(4)
            optimizer = MuonAdamW([muon_group([p], weight_decay=decay)])
            optimizer.set_schedule(FLAT)
            optimizer.step()
            results.append(p.detach().diagonal())
        expected = results[0] - 0.1 * 0.5 * 2.0 * decayed
        torch.testing.assert_close(results[1], expected)


def test_splitting_the_batch_of_matrices_changes_nothing(monkeypatch):
    results = []
    for limit in (64 << 20, 100):
        monkeypatch.setattr("reference.optim.optimizer.MAX_BATCH_ELEMENTS", limit)
        torch.manual_seed(3)
        params = [torch.randn(8, 8, requires_grad=True) for _ in range(5)]
        optimizer = MuonAdamW([muon_group(params)])
        for _ in range(2):
            for p in params:
                p.grad = torch.randn(8, 8)
            optimizer.step()
        results.append(torch.stack(params).detach())
    torch.testing.assert_close(*results)


def test_state_survives_a_round_trip_bit_for_bit():
    def run(steps, reload_at):
        torch.manual_seed(4)
        params = [torch.randn(8, 6, requires_grad=True) for _ in range(2)]
        table = torch.randn(9, 4, requires_grad=True)
        adamw = {"kind": "adamw", "params": [table], "lr": 0.1, "betas": (0.8, 0.9), "fused": True}
        groups = [muon_group(params), {**adamw, "eps": 1e-10, "weight_decay": 0.1}]
        optimizer = MuonAdamW(groups)
        for step in range(steps):
            if step == reload_at:
                saved = optimizer.state_dict()
                optimizer = MuonAdamW(groups)
                optimizer.load_state_dict(saved)
            for p in (*params, table):
                p.grad = torch.randn_like(p)
            optimizer.set_schedule(FLAT)
            optimizer.step()
        return [*params, table]

    for p, q in zip(run(4, reload_at=2), run(4, reload_at=None), strict=True):
        assert torch.equal(p, q)


def test_groups_follow_the_table_and_hold_each_parameter_once():
    model = GPT(ModelConfig(100, n_layer=2, n_embd=192, n_head=2, n_kv_head=1, seq_len=128))
    groups = parameter_groups(model, PRETRAIN)
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    by_name = {g["name"]: g for g in groups}
    size = count_parameters(model.config).scaling
    base = count_parameters(ModelConfig(100)).scaling
    # Width 192 is a quarter of 768: the tables' rates double. The base batch changes nothing.
    assert by_name["embedding"]["lr"] == pytest.approx(0.6)
    assert by_name["unembedding"]["lr"] == pytest.approx(0.016)
    assert by_name["resid"]["lr"] == pytest.approx(0.005)
    assert by_name["x0"]["betas"] == (0.96, 0.95)
    assert by_name["matrix 192x192"]["lr"] == pytest.approx(0.02)
    assert by_name["matrix 192x192"]["weight_decay"] == pytest.approx(0.28 * base / size)
    assert {g["kind"] for g in groups if g["name"].startswith("matrix")} == {"muon"}
    small = {
        g["name"]: g for g in parameter_groups(model, {**PRETRAIN, "total_batch_size": 1 << 17})
    }
    for name, group in by_name.items():  # the gates' rate alone is the same at every batch
        change = 1.0 if name == "gate" else 0.5
        assert small[name]["lr"] == pytest.approx(change * group["lr"]), name
    unscaled = parameter_groups(model, {**PRETRAIN, "scale_lr": False})
    assert {g["name"]: g["lr"] for g in unscaled}["embedding"] == 0.3
    assert unscaled[-1]["weight_decay"] == 0.28


def test_weight_decay_is_nanochats_at_any_length_of_the_training():
    """d20 with a vocabulary of 49,152 at the base batch: the worked example of nanochat's rule."""
    config = ModelConfig(49152, n_layer=20, n_embd=1280, n_head=10, n_kv_head=10)
    with torch.device("meta"):
        model = GPT(config)
    [decay] = {g["weight_decay"] for g in parameter_groups(model, PRETRAIN) if g["kind"] == "muon"}
    assert decay == pytest.approx(0.0753, abs=1e-4)
    # While a smaller model still grows into this one, it decays as the finished one does.
    with torch.device("meta"):
        first = GPT(ModelConfig(49152, n_layer=10, n_embd=1280, n_head=10, n_kv_head=10))
    grown = parameter_groups(first, PRETRAIN, finished=config)
    assert {g["weight_decay"] for g in grown if g["kind"] == "muon"} == {decay}


def test_adamw_can_take_the_matrices_for_comparison():
    model = GPT(ModelConfig(100, n_layer=2, n_embd=192, n_head=2, n_kv_head=1, seq_len=128))
    section = {**PRETRAIN, "matrix_optimizer": "adamw", "matrix_lr": 0.002}
    groups = parameter_groups(model, section)
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert {g["kind"] for g in groups} == {"adamw"}
    assert groups[-1]["lr"] == pytest.approx(0.002)
    decay = groups[-1]["weight_decay"]
    base = count_parameters(ModelConfig(100)).scaling
    assert decay == pytest.approx(0.28 * base / count_parameters(model.config).scaling)
    before = [p.detach().clone() for p in groups[-1]["params"]]
    optimizer = MuonAdamW(groups)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.set_schedule(FLAT)
    optimizer.step()
    for p, old in zip(groups[-1]["params"], before, strict=True):
        # Adam's first step is lr in each coordinate, after the decay.
        torch.testing.assert_close(p, old * (1 - 0.002 * decay) - 0.002, rtol=1e-4, atol=1e-5)


def test_scaling_rules_at_points_worked_out_by_hand():
    assert batch_lr_scale(1 << 21) == pytest.approx(2.0)
    assert width_lr_scale(3072) == pytest.approx(0.5)
    assert scaled_weight_decay(0.28, 1 << 21, 4e8, 1e8) == pytest.approx(0.28 * 2 / 4)
    base = 10.5 * count_parameters(ModelConfig(32768)).scaling
    # d12 and d20 at 10.5 tokens a parameter, as nanochat's log has them: 0.5 M and 1 M tokens.
    assert power_lines_batch(base, base) == 1 << 19
    assert power_lines_batch(10.5 * 435.2e6, base) == 1 << 20

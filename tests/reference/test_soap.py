"""SOAP, SOAP-Muon and Muon² against their papers' formulas in float64, one matrix at a time."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.experiments.soap.soap import ADAM_RMS, EARLY_STEPS, refresh_due
from reference.model.cost import plan_vram
from reference.model.gpt import GPT
from reference.model.structure import matrix_shapes
from reference.optim.muon import orthogonalize
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import Schedule

RATES = {
    "total_batch_size": 32, "matrix_lr": 0.02, "embedding_lr": 0.05, "unembedding_lr": 0.008,
    "value_embedding_lr": 0.05, "resid_lr": 0.005, "x0_lr": 0.05, "gate_lr": 0.05,
    "weight_decay": 0.1, "scale_lr": False,
}  # fmt: skip
NEW = ("muon2", "bi_maxwell", "soap", "soap_muon")
SMALL = ModelConfig(90, n_layer=2, n_embd=32, n_head=4, n_kv_head=2, seq_len=16, ffn="swiglu")


def group(kind, params, **changes):
    base = {"kind": kind, "params": params, "lr": 0.1, "momentum": 0.9, "beta2": 0.9,
            "weight_decay": 0.0, "refresh_steps": 3, "max_dim": 64}  # fmt: skip
    return {**base, **changes}


def naive_basis(covariance, basis, squares, dim):
    """Algorithm 4 of arXiv 2409.11321, with the axes sorted by their Rayleigh quotients."""
    quotients = torch.stack([q @ covariance @ q for q in basis.T])
    order = quotients.argsort(descending=True)
    return torch.linalg.qr(covariance @ basis[:, order]).Q, squares.index_select(dim, order)


def naive_finish(update, factored, lr):
    """Muon's part after the momentum, for a matrix; `factored` is changed in place."""
    m, n = update.shape
    update = orthogonalize(update[None])[0]
    factored.mul_(0.9).add_(0.1 * (update**2).mean(1 if m >= n else 0, keepdim=True))
    scaled = update / factored.sqrt()
    return scaled * update.norm() / scaled.norm() * math.sqrt(max(1.0, m / n)) * lr


def decayed(weight, step, amount):
    return weight - step - amount * (step * weight >= 0) * weight


@pytest.mark.parametrize("kind", ["soap", "soap_muon"])
@pytest.mark.parametrize("shape", [(12, 12), (20, 8), (8, 20)])
@pytest.mark.parametrize("max_dim", [64, 12])
def test_steps_in_the_eigenbasis_equal_the_formulas_matrix_by_matrix(
    kind, shape, max_dim, monkeypatch
):
    """Eight steps with two refreshes; at max_dim 12 the longer side keeps its own axes."""
    monkeypatch.setattr("reference.experiments.soap.soap.EARLY_STEPS", 0)
    torch.manual_seed(0)
    m, n = shape
    params = [torch.randn(shape, requires_grad=True) for _ in range(2)]
    optimizer = MuonAdamW([group(kind, params, weight_decay=0.3, max_dim=max_dim)])
    weights = [p.detach().double() for p in params]
    zeros = torch.zeros(shape).double()
    M, V = [zeros.clone() for _ in params], [zeros.clone() for _ in params]
    L = [torch.zeros(m, m).double() for _ in params]
    R = [torch.zeros(n, n).double() for _ in params]
    factored = [torch.zeros((m, 1) if m >= n else (1, n)).double() for _ in params]
    QL, QR = [torch.eye(m).double() for _ in params], [torch.eye(n).double() for _ in params]
    beta2 = 0.95 if kind == "soap" else 0.90
    left_over = 1.0
    for t in range(1, 9):
        mu = 0.8 + 0.02 * t
        optimizer.set_schedule(Schedule(lr=0.5, momentum=mu, weight_decay=0.5))
        for p in params:
            p.grad = torch.randn(shape)
        gradients = [p.grad.double() for p in params]
        optimizer.step()
        if t > 1:
            left_over *= mu
        for i, G in enumerate(gradients):
            step = None
            if kind == "soap" and t > 1:
                turned = QL[i].T @ G @ QR[i]
                M[i] = mu * M[i] + (1 - mu) * G
                V[i] = beta2 * V[i] + (1 - beta2) * turned**2
                first = QL[i].T @ M[i] @ QR[i] / (1 - left_over)
                second = V[i] / (1 - beta2 ** (t - 1))
                direction = QL[i] @ (first / second.sqrt()) @ QR[i].T
                # The size of Muon's step where Adam's has a root mean square of ADAM_RMS.
                size = math.sqrt(min(m, n)) / math.sqrt(m * n) / ADAM_RMS
                step = direction * size * math.sqrt(max(1.0, m / n)) * 0.05
            elif kind == "soap_muon":
                M[i] = mu * M[i] + (1 - mu) * G
                U = mu * M[i] + (1 - mu) * G
                if t > 1:
                    turned = QL[i].T @ U @ QR[i]
                    V[i] = beta2 * V[i] + (1 - beta2) * turned**2
                    back = QL[i] @ (turned / V[i].sqrt()) @ QR[i].T
                    U = back * U.norm() / back.norm()
                step = naive_finish(U, factored[i], 0.05)
            if step is not None:
                weights[i] = decayed(weights[i], step, 0.05 * math.sqrt(max(1.0, m / n)) * 0.15)
            L[i] = beta2 * L[i] + (1 - beta2) * G @ G.T
            R[i] = beta2 * R[i] + (1 - beta2) * G.T @ G
            state = optimizer.state[params[0]]
            for side, C, Q, dim in (("left", L, QL, 0), ("right", R, QR, 1)):
                if len(C[i]) > max_dim:
                    assert side not in state and side + "_basis" not in state
                elif t == 1:
                    # Of a covariance that has not its full rank yet the basis is open in part.
                    Q[i] = state[side + "_basis"][i].double()
                    turned = Q[i].T @ C[i] @ Q[i]
                    values = torch.linalg.eigvalsh(C[i]).flip(0)
                    torch.testing.assert_close(turned, values.diag(), atol=2e-5, rtol=1e-5)
                    torch.testing.assert_close(
                        Q[i].T @ Q[i], torch.eye(len(Q[i])).double(), atol=1e-5, rtol=0
                    )
                elif t % 3 == 0:
                    Q[i], V[i] = naive_basis(C[i], Q[i], V[i], dim)
    for p, weight in zip(params, weights, strict=True):
        torch.testing.assert_close(p.detach().double(), weight, atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_muon2_divides_momentum_by_the_root_of_its_squares(shape):
    torch.manual_seed(1)
    p = torch.randn(shape, requires_grad=True)
    optimizer = MuonAdamW([group("muon2", [p], weight_decay=0.3)])
    weight, zeros = p.detach().double(), torch.zeros(shape).double()
    M, V, factored = zeros.clone(), zeros.clone(), None
    for t in range(4):
        mu = 0.8 + 0.05 * t
        optimizer.set_schedule(Schedule(lr=0.5, momentum=mu, weight_decay=0.5))
        p.grad = torch.randn(shape)
        G = p.grad.double()
        optimizer.step()
        M = mu * M + (1 - mu) * G
        V = 0.95 * V + 0.05 * G**2
        if factored is None:
            factored = torch.zeros_like(G.mean(1 if shape[0] >= shape[1] else 0, keepdim=True))
        step = naive_finish((mu * M + (1 - mu) * G) / V.sqrt(), factored, 0.05)
        weight = decayed(weight, step, 0.05 * math.sqrt(max(1.0, shape[0] / shape[1])) * 0.15)
    torch.testing.assert_close(p.detach().double(), weight, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_two_running_means_are_mixed_to_the_mean_age_from_a_step_on(shape):
    """Muon's own steps before it; the mix's ages are summed from the weights of each gradient."""
    fast, slow, age, begin = 0.8, 0.95, 12.0, 3
    weights_of_ages = [[(1 - kept) * kept**k for k in range(2000)] for kept in (fast, slow)]
    ages = [sum(k * w for k, w in enumerate(weights)) for weights in weights_of_ages]
    share = (age - ages[0]) / (ages[1] - ages[0])
    torch.manual_seed(1)
    start = torch.randn(shape)
    p, plain = (start.clone().requires_grad_() for _ in range(2))
    optimizer = MuonAdamW(
        [
            group(
                "bi_maxwell", [p], maxwell_from=begin, maxwell_fast=fast, maxwell_slow=slow,
                maxwell_age=age,
            )
        ]
    )  # fmt: skip
    muon = MuonAdamW([group("muon", [plain])])
    weight, factored = start.double(), None
    M, S = torch.zeros(shape).double(), torch.zeros(shape).double()
    for t in range(8):
        mu = 0.8 + 0.02 * t
        p.grad = torch.randn(shape)
        plain.grad = p.grad.clone()
        G = p.grad.double()
        for each in (optimizer, muon):
            each.set_schedule(Schedule(lr=0.5, momentum=mu, weight_decay=0.5))
            each.step()
        if t < begin:
            torch.testing.assert_close(p, plain, atol=1e-6, rtol=1e-5)
        kept = (mu, mu) if t < begin else (fast, slow)
        M, S = (k * mean + (1 - k) * G for k, mean in zip(kept, (M, S), strict=True))
        mixed = M if t < begin else (1 - share) * M + share * S
        if factored is None:
            factored = torch.zeros_like(G.mean(1 if shape[0] >= shape[1] else 0, keepdim=True))
        weight -= naive_finish(mu * mixed + (1 - mu) * G, factored, 0.05)
    assert (p - plain).abs().max() > 1e-3
    torch.testing.assert_close(p.detach().double(), weight, atol=1e-4, rtol=1e-4)


def test_bases_are_refreshed_after_every_early_step_and_then_at_intervals():
    due = [step for step in range(1, 51) if refresh_due(step, 10)]
    assert due == [*range(1, EARLY_STEPS + 1), 30, 40, 50]


def quadratic(max_dim, lr, steps=200):
    """Loss left of tr(A W B W^T) / 2 with axes that are not the matrix's own."""
    generator = torch.Generator().manual_seed(3)
    p = torch.randn(16, 16, generator=generator)
    sides = []
    for _ in range(2):
        axes = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
        sides.append(axes @ torch.logspace(-2, 0, 16).diag() @ axes.T)
    A, B = sides
    optimizer = MuonAdamW([group("soap", [p], lr=lr, max_dim=max_dim, refresh_steps=10)])
    for step in range(steps):
        p.grad = A @ p @ B
        optimizer.set_schedule(Schedule(lr=1 - step / steps, momentum=0.9, weight_decay=0.0))
        optimizer.step()
    return float(0.5 * (p * (A @ p @ B)).sum())


def test_adam_in_the_eigenbasis_solves_a_turned_quadratic_that_adam_does_not():
    rates = (0.03, 0.1, 0.3)
    own_axes = min(quadratic(1, lr) for lr in rates)  # no side is turned: Adam
    eigenbasis = min(quadratic(64, lr) for lr in rates)
    assert eigenbasis < 0.05 * own_axes


def train(model, optimizer, seeds):
    losses = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 90, (2, 17), generator=generator)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.set_schedule(Schedule(lr=1.0, momentum=0.85 + 0.01 * seed, weight_decay=1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize(("momentum_dtype", "stop"), [("float32", 1), ("bfloat16", 4)])
def test_a_resume_between_two_refreshes_goes_on_to_the_bit(
    kind, momentum_dtype, stop, tmp_path, monkeypatch
):
    monkeypatch.setattr("reference.experiments.soap.soap.EARLY_STEPS", 2)
    section = {**RATES, "matrix_optimizer": kind, "momentum_dtype": momentum_dtype,
               "soap_refresh_steps": 3}  # fmt: skip
    model = GPT(SMALL)
    model.init_weights(0)
    optimizer = MuonAdamW(parameter_groups(model, section))
    train(model, optimizer, range(stop))
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict()}, tmp_path / "state")
    expected = train(model, optimizer, range(stop, 7))
    resumed_model = GPT(SMALL)
    resumed = MuonAdamW(parameter_groups(resumed_model, section))
    state = torch.load(tmp_path / "state", weights_only=True)
    resumed_model.load_state_dict(state["m"])
    resumed.load_state_dict(state["o"])
    momentum = resumed.state[resumed.param_groups[-1]["params"][0]]["momentum"]
    assert momentum.dtype == getattr(torch, momentum_dtype)
    assert train(resumed_model, resumed, range(stop, 7)) == expected
    assert math.isfinite(expected[-1])


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("momentum_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_dim", [1, 32, 2048])
def test_the_memory_plan_counts_every_state(kind, momentum_dtype, max_dim):
    section = {**RATES, "matrix_optimizer": kind, "momentum_dtype": momentum_dtype,
               "soap_max_dim": max_dim}  # fmt: skip
    model = GPT(SMALL)
    model.init_weights(0)
    model.place("cpu", "bfloat16")
    optimizer = MuonAdamW(parameter_groups(model, section))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    states = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if name not in ("step", "second_moment")
    )
    assert plan_vram(SMALL, 2, section)["optimizer"] == states
    assert all(torch.isfinite(p).all() for p in model.parameters()), "gradients of zero"


def test_shapes_of_the_matrices_are_those_of_the_model():
    for changes in ({}, {"ffn": "relu2", "n_kv_head": 4}, {"value_embeddings": False}):
        config = dataclasses.replace(SMALL, **changes)
        model = GPT(config)
        counted = {}
        for _, p in model.named_parameter_groups()["matrix"]:
            counted[tuple(p.shape)] = counted.get(tuple(p.shape), 0) + 1
        planned = {shape: count for shape, count in matrix_shapes(config).items() if count}
        assert planned == counted


@pytest.mark.parametrize("kind", NEW)
def test_splitting_the_batch_of_matrices_changes_nothing(kind, monkeypatch):
    results = []
    for limit in (64 << 20, 1):
        monkeypatch.setattr("reference.optim.optimizer.MAX_BATCH_ELEMENTS", limit)
        torch.manual_seed(3)
        params = [torch.randn(8, 12, requires_grad=True) for _ in range(3)]
        optimizer = MuonAdamW([group(kind, params)])
        for _ in range(4):
            for p in params:
                p.grad = torch.randn(8, 12)
            optimizer.step()
        results.append(torch.stack(params).detach())
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_all_four_take_steps_of_muons_size():
    """On gradients that are noise around a mean, so that one matrix_lr serves them all."""
    sizes = {}
    for kind in ("muon", *NEW):
        torch.manual_seed(4)
        p = torch.zeros(32, 32, requires_grad=True)
        mean = 0.3 * torch.randn(32, 32)
        optimizer = MuonAdamW([group(kind, [p], momentum=0.95)])
        before = p.detach().clone()
        for _ in range(60):
            before.copy_(p.detach())
            p.grad = 1e-4 * (mean + torch.randn(32, 32))
            optimizer.step()
        sizes[kind] = float((p.detach() - before).norm())
    for kind in NEW:
        assert 0.5 < sizes[kind] / sizes["muon"] < 2.5, sizes


def test_an_unknown_optimizer_is_refused_with_those_that_are_known():
    with pytest.raises(TrainerError, match="'adagrad'") as error:
        parameter_groups(GPT(SMALL), {**RATES, "matrix_optimizer": "adagrad"})
    assert "soap_muon" in error.value.hint


def test_eigenvectors_that_do_not_converge_are_found_by_iteration(monkeypatch):
    def failing(_):
        raise torch.linalg.LinAlgError("no convergence")

    p = torch.randn(6, 6, requires_grad=True)
    optimizer = MuonAdamW([group("soap", [p])])
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", failing)
        p.grad = torch.randn(6, 6)
        optimizer.step()
    basis = optimizer.state[p]["left_basis"][0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(6), atol=1e-5, rtol=0)

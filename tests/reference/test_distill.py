"""Self-distillation: its gradient by hand, its teacher, its work and its state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny_training import defaults

import reference.model.loss
from reference.bench.train import GivenRows
from reference.config.model import ModelConfig
from reference.experiments.distill.problems import problems
from reference.experiments.distill.teacher import SoftTargets, Teacher
from reference.model.cost import RunCost, count_flops
from reference.model.gpt import GPT
from reference.model.loss import softcapped_cross_entropy
from reference.train.loop import TrainState
from reference.train.memory import plan_vram

CONFIG = ModelConfig(90, n_layer=2, n_embd=32, n_head=2, n_kv_head=2, seq_len=16, short_window=5)
SECTION = {
    "distill_from": 0.4, "distill_weight": 0.3, "distill_temperature": 2.0, "distill_refresh": 0.3,
    "growth_layers": [[0.0, 1], [0.5, 2]], "total_batch_size": 32, "matrix_lr": 0.02,
    "embedding_lr": 0.05, "unembedding_lr": 0.008, "value_embedding_lr": 0.05, "resid_lr": 0.005,
    "x0_lr": 0.05, "gate_lr": 0.05, "weight_decay": 0.1, "scale_lr": False, "average": "none",
    "average_share": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("softcap", [0.0, 15.0])
@pytest.mark.parametrize(("share", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 0.5)])
def test_the_gradient_is_that_of_the_mixed_loss_and_the_value_the_cross_entropy(
    softcap, share, temperature, monkeypatch
):
    # Chunks of 64 of the 150 tokens.
    monkeypatch.setattr(reference.model.loss, "CHUNK_BYTES", {"cpu": 1})
    N, C, V, rows = 150, 8, 11, 64
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, C, generator=draw) for n in (N, rows))
    theirs, head = (torch.randn(n, 6, generator=draw) for n in (N, rows))
    targets = torch.randint(0, V, (N,), generator=draw)
    targets[::7] = -1
    count = int((targets >= 0).sum())

    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    soft = SoftTargets(theirs, head, share, temperature)
    value = softcapped_cross_entropy(
        *leaves, targets, vocab_size=V, softcap=softcap, count=count, soft=soft
    )
    value.backward()

    def capped(states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        logits = states @ table[:V].T
        return softcap * torch.tanh(logits / softcap) if softcap else logits

    doubles = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    student, teacher = capped(*doubles), capped(theirs.double(), head.double())
    seen, T = targets >= 0, temperature
    plain = F.cross_entropy(student[seen], targets[seen])
    kl = F.kl_div(
        F.log_softmax(student[seen] / T, 1), F.softmax(teacher[seen] / T, 1), reduction="batchmean"
    )
    ((1 - share) * plain + share * T**2 * kl).backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-5)
    for found, expected in zip(leaves, doubles, strict=True):
        torch.testing.assert_close(found.grad.double(), expected.grad, atol=1e-6, rtol=1e-4)


def test_a_teacher_that_agrees_leaves_the_soft_part_without_gradient():
    model = GPT(CONFIG)
    model.init_weights(1)
    model.place()
    tokens = torch.randint(0, 90, (2, 16), generator=torch.Generator().manual_seed(1))
    model.loss(tokens, tokens).backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.teacher = Teacher.copy_of(model, SECTION, taken=0.4)
    loss = model.loss(tokens, tokens)
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 0.7 * plain[name], atol=1e-6, rtol=1e-4)
    assert "teacher" not in " ".join(model.state_dict())
    with torch.no_grad():
        assert model.loss(tokens, tokens).item() == pytest.approx(loss.item(), rel=1e-6)


def opened() -> TrainState:
    state = TrainState.of_recipe(
        CONFIG,
        {**defaults("pretrain"), **SECTION},
        device=torch.device("cpu"),
        seed=3,
        horizon_tokens=1e4,
    )
    state.prepare(lambda text, **_: None, bos=0)
    state.rows = GivenRows(1)
    return state


def test_the_teacher_is_renewed_and_may_be_smaller_than_its_student():
    state = opened()
    lever = state.levers[1]
    assert state.reach(0.3) == [] and lever.teacher is None
    assert "the teacher from here on" in state.reach(0.45)[0] and lever.teacher.taken == 0.4
    assert state.reach(0.5) == ["the model grows: n_layer 1 -> 2"]
    assert state.reach(0.6) == [] and lever.teacher.model.config.n_layer == 1
    assert state.model.teacher is lever.teacher and state.model.config.n_layer == 2
    saved = state.state_dict()
    again = opened()
    again.load_state_dict(saved)
    assert again.levers[1].teacher.model.config.n_layer == 1 and again.reach(0.6) == []
    assert again.reach(0.7) and again.levers[1].teacher.model.config.n_layer == 2
    state.load_state_dict({k: v for k, v in saved.items() if k != "teacher"})
    assert lever.teacher is None and state.model.teacher is None


def test_its_forward_pass_is_counted_and_its_memory_planned():
    small, full = (
        count_flops(c).nanochat for c in (dataclasses.replace(CONFIG, n_layer=1), CONFIG)
    )
    cost = RunCost.from_recipe(CONFIG, SECTION)
    expected = {0.1: small, 0.45: small * 4 / 3, 0.6: full + small / 3, 0.8: full * 4 / 3}
    assert {p: cost.at(p).nanochat for p in expected} == pytest.approx(expected)
    alone = RunCost.from_recipe(CONFIG, {"distill_from": 0.4})
    assert alone.mean(by_time=False).nanochat == pytest.approx(full * (0.4 + 0.6 * 4 / 3))
    plan, plain = (plan_vram(CONFIG, 2, s) for s in ({**SECTION}, {}))
    assert plan["teacher"] > plain["weights"] and "teacher" not in plain


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"distill_refresh": 0.001}, "must be 0 (never) or at least 0.01"),
        ({"distill_from": 0}, "renews no teacher: set distill_from above 0"),
    ],
)
def test_a_refresh_that_makes_no_sense_is_named(changes, expected):
    model = {"n_layer": 2, "n_embd": 32}
    section = {**SECTION, "growth_layers": [], "growth_width": [], **changes}
    assert [p.allowed for p in problems(model, section)] == [expected]

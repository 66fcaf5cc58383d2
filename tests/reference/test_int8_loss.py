"""The loss with an int8 head: the kernels against the formulas, the formulas against fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference.config.model import ModelConfig
from reference.config.problems import problems
from reference.config.resolve import resolve_recipe
from reference.kernels import int8_loss
from reference.kernels.int8_loss import chunks, loss_and_gradients, round_gradient, statistics
from reference.kernels.int8_rounding import BLOCK, round_both
from reference.kernels.int8_trial import choose_int8
from reference.model.gpt import GPT
from reference.model.int8_maps import Passes, use_int8


def exact(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, visible: int, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    h, w = (t.double().requires_grad_() for t in (hidden, weight))
    logits = h @ w[:visible].T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
    (losses * scale).sum().backward()
    assert h.grad is not None and w.grad is not None
    return losses.detach(), h.grad, w.grad


@pytest.mark.parametrize("softcap", [15.0, 0.0])
@pytest.mark.parametrize(("tokens", "visible", "padded"), [(300, 500, 512), (37, 190, 192)])
def test_loss_and_gradients_are_the_exact_ones_up_to_the_rounding(
    softcap, tokens, visible, padded, monkeypatch
) -> None:
    monkeypatch.setitem(int8_loss.CHUNK_BYTES, "cpu", 128 * padded * 2)
    g = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 32, generator=g)
    hidden[3] = 0.0
    weight = 0.3 * torch.randn(padded, 32, generator=g)
    targets = torch.randint(0, visible, (tokens,), generator=g)
    targets[::7] = -1
    scale = (targets >= 0) * torch.linspace(0.5, 2, tokens) / tokens
    assert len(chunks(tokens, padded, hidden.device)) == -(-tokens // 128)
    found = loss_and_gradients(hidden, weight, round_both(weight), targets, scale, visible, softcap)
    for mine, theirs in zip(
        found, exact(hidden, weight, targets, scale, visible, softcap), strict=True
    ):
        error = float((mine.double() - theirs).norm() / theirs.norm())
        assert 1e-4 < error < 0.02
    assert not found[0][::7].any() and not found[1][::7].any() and not found[2][visible:].any()


def test_many_small_probabilities_beside_a_large_one_are_not_lost() -> None:
    """Rounded to nearest with a step of 1/254, all but the largest would be zeros."""
    V = 4096
    logits = torch.zeros(256, V)
    logits[:, 5] = 8.0  # a share of 0.42; each of the others 0.00014
    targets = torch.full((256,), 5)
    found = statistics(logits, targets, V, 0.0)
    gradient = round_gradient(logits, found.log_sum, torch.ones(256), V, 0.0)
    others = [t for t in range(V) if t != 5]
    true = float(torch.softmax(logits[0], 0)[others].sum())
    rows = gradient.rows.float() * gradient.row_scale.T.repeat_interleave(BLOCK, 1)
    assert float(rows[:, others].sum(1).mean()) == pytest.approx(true, rel=0.01)
    near = list(range(6, BLOCK))  # of the large one's own block, where a step is 0.0033
    assert float(rows[:, near].mean()) == pytest.approx(true / len(others), rel=0.1)
    columns = gradient.columns.float() * gradient.column_scale.T.repeat_interleave(BLOCK, 1)
    assert float(columns[others].sum(0).mean()) == pytest.approx(true, rel=0.01)


def test_a_model_takes_the_head_in_int8_and_only_in_training() -> None:
    config = ModelConfig(200, n_layer=1, n_embd=32, n_head=2, n_kv_head=2, seq_len=16)
    tokens = torch.randint(0, 200, (2, 17), generator=torch.Generator().manual_seed(3))
    losses, gradients = [], []
    for layers in ([], ["head"]):
        model = GPT(config)
        model.init_weights(0)
        with torch.no_grad():
            model.lm_head.weight.mul_(100.0)
        model.place()
        use_int8(model, layers)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.lm_head.weight.grad)
        with torch.no_grad():
            losses.append(model.loss(tokens[:, :-1], tokens[:, 1:]).item())
    assert losses[0] != losses[2] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] == losses[3]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.02


def test_the_trial_times_the_head_too() -> None:
    config = ModelConfig(200, n_layer=1, n_embd=32, n_head=2, n_kv_head=2, seq_len=16)
    model = GPT(config)
    model.init_weights(0)
    model.place()
    times = iter((2.0, 1.0))
    chosen, rows = choose_int8(
        model, ["head"], (2, 16), passes=Passes(), timer=lambda f: (f(), next(times))[1]
    )
    assert chosen == ["head"], rows


def test_a_recipe_cannot_ask_for_half_an_int8_head() -> None:
    recipe = resolve_recipe("smoke")
    recipe["pretrain"].update(matmul="int8", matmul_layers=["head"], matmul_passes=["forward"])
    assert [p.path for p in problems(recipe)] == ["pretrain.matmul_passes"]
    recipe["pretrain"]["matmul_layers"] = ["mlp"]
    assert not list(problems(recipe))

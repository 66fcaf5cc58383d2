"""The trainer's step is nanochat's: same losses and weights from the same weights and rows.

The formulas below are written from nanochat's published model, optimizer and schedules (commit
92d63d4: `gpt.py`, `optim.py`, `scripts/base_train.py`) in plain float64, one matrix at a time, and
share no code with the trainer. One difference is deliberate and kept here: a short window holds W
keys, the position's own included; FlashAttention's (W, 0) holds one more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from reference.bench.train import GivenRows
from reference.config.model import ModelConfig
from reference.config.trainer import section_defaults
from reference.train.loop import TrainState

CONFIG = ModelConfig(
    300, n_layer=4, n_embd=64, n_head=2, n_kv_head=2, seq_len=160, short_window=128
)
VOCAB = 320  # padded to a multiple of 64
BATCH_ROWS, MICRO_ROWS, STEPS = 4, 2, 2000
BATCH_TOKENS = BATCH_ROWS * CONFIG.seq_len
WEIGHT_DECAY = 2.8  # ten times nanochat's, so that a few steps show its rule
SECTION = {
    **section_defaults("pretrain"),
    "num_steps": STEPS,
    "total_batch_size": BATCH_TOKENS,
    "device_batch_size": MICRO_ROWS,
    "compile": "off",
    "weight_decay": WEIGHT_DECAY,
}
WINDOWS = (128, 128, 128, 160)
WARM_UP, WARM_DOWN, LAST_LR = 40, 0.65, 0.05
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Names of the trainer's weights: (rate, betas, decay), rates before any scaling.
ADAMW: dict[str, tuple[float, tuple[float, float], float]] = {
    "lm_head.weight": (0.008, (0.8, 0.96), 0.01),
    "wte.weight": (0.3, (0.8, 0.995), 0.001),
    "value_embeds": (0.15, (0.8, 0.995), 0.01),
    "resid_scale": (0.5 * 0.01, (0.8, 0.95), 0.05),
    "x0_scale": (0.5, (0.96, 0.95), 0.0),
    "smear": (0.2, (0.8, 0.95), 0.0),
    "backout": (0.2, (0.8, 0.95), 0.0),
}


def rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def rotated(x: Tensor) -> Tensor:
    """(B, T, H, D): the published rotation by -theta, base 100,000."""
    half = x.size(-1) // 2
    frequency = 1.0 / (100_000 ** (torch.arange(half, dtype=torch.float64) / half))
    angle = torch.outer(torch.arange(x.size(1), dtype=torch.float64), frequency)[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [
            first * angle.cos() + second * angle.sin(),
            second * angle.cos() - first * angle.sin(),
        ],
        dim=-1,
    )


def attention(w: dict[str, Tensor], layer: int, x: Tensor, tokens: Tensor) -> Tensor:
    B, T, C = x.shape
    name, heads = f"blocks.{layer}.attn", CONFIG.n_head
    q, k, v = ((x @ w[f"{name}.c_{part}.weight"].T).view(B, T, heads, C // heads) for part in "qkv")
    if layer % 2 == (CONFIG.n_layer - 1) % 2:
        gate = 3 * torch.sigmoid(x[..., :12] @ w[f"{name}.value_gate.weight"].T)
        table = w[f"value_embeds.{layer}.weight"]
        v = v + gate[..., None] * table[tokens].view(v.shape)
    q, k = (1.2 * rms_norm(rotated(part)) for part in (q, k))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(C // heads)
    distance = torch.arange(T)[:, None] - torch.arange(T)[None]
    seen = (distance >= 0) & (distance < WINDOWS[layer])
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, T, C)
    return mixed @ w[f"{name}.c_proj.weight"].T


def loss_of(w: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean nats a target of rows (B, T)."""
    x = rms_norm(w["wte.weight"][tokens])
    gate = w["smear_scale"] * torch.sigmoid(x[:, 1:, :24] @ w["smear_gate.weight"].T)
    x = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], dim=1)
    x0 = x
    middle = x
    for layer in range(CONFIG.n_layer):
        x = w["resid_scale"][layer] * x + w["x0_scale"][layer] * x0
        x = x + attention(w, layer, rms_norm(x), tokens)
        inner = rms_norm(x) @ w[f"blocks.{layer}.mlp.c_fc.weight"].T
        x = x + inner.clamp_min(0).square() @ w[f"blocks.{layer}.mlp.c_proj.weight"].T
        if layer == CONFIG.n_layer // 2:
            middle = x
    x = rms_norm(x - w["backout_scale"] * middle)
    logits = (x @ w["lm_head.weight"].T)[..., : CONFIG.vocab_size]
    logits = 15 * torch.tanh(logits / 15)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def muon_direction(gradient: Tensor, state: dict[str, Any], momentum: float) -> Tensor:
    m, n = gradient.shape
    state["momentum"] = momentum * state["momentum"] + (1 - momentum) * gradient
    g = (1 - momentum) * gradient + momentum * state["momentum"]
    x = g * (g.norm() / math.sqrt(m)) / g.norm(dim=1, keepdim=True).clamp_min(1e-6)
    x = x / (1.01 * x.norm() + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x * math.sqrt(min(m, n)) / x.norm().clamp_min(1e-6)
    across = 1 if m >= n else 0
    square = x.square().mean(across, keepdim=True)
    state["second"] = 0.9 * state["second"] + 0.1 * square
    scaled = x / state["second"].clamp_min(1e-10).sqrt()
    return scaled * x.norm() / scaled.norm().clamp_min(1e-10)


class Nanochat:
    """nanochat's training of these weights, in float64."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {
            name: value.double().clone().requires_grad_() for name, value in weights.items()
        }
        self.state: dict[str, dict[str, Any]] = {
            name: {"momentum": 0.0, "second": 0.0, "first": 0.0, "steps": 0} for name in weights
        }
        matrices = [p for name, p in self.weights.items() if name.startswith("blocks.")]
        size = sum(p.numel() for p in matrices) + VOCAB * CONFIG.n_embd
        # nanochat's d12 with this vocabulary: blocks, value gates of every other layer, head.
        d12 = 12 * 12 * 768**2 + 6 * 12 * 6 + VOCAB * 768
        self.by_batch = math.sqrt(BATCH_TOKENS / 2**19)
        self.by_width = (CONFIG.n_embd / 768) ** -0.5
        self.decay = WEIGHT_DECAY * self.by_batch * d12 / size

    def step(self, tokens: Tensor, targets: Tensor, step: int) -> float:
        names = list(self.weights)
        loss = loss_of(self.weights, tokens, targets)
        gradients = torch.autograd.grad(loss, [self.weights[name] for name in names])
        down = round(WARM_DOWN * STEPS)
        left = (STEPS - step) / down
        lr = 1.0 if step <= STEPS - down else left + (1 - left) * LAST_LR
        if step < WARM_UP:
            lr = (step + 1) / WARM_UP
        momentum = 0.97
        if step < 400:
            momentum = 0.85 + (0.97 - 0.85) * step / 400
        elif step >= STEPS - down:
            share = (step - (STEPS - down)) / down
            momentum = 0.97 * (1 - share) + 0.90 * share
        decay = self.decay * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                if name.startswith("blocks."):
                    self._muon(name, gradient, 0.02 * self.by_batch * lr, momentum, decay)
                else:
                    self._adamw(name, gradient, lr)
        return float(loss.detach())

    def _muon(
        self, name: str, gradient: Tensor, rate: float, momentum: float, decay: float
    ) -> None:
        p = self.weights[name]
        direction = muon_direction(gradient, self.state[name], momentum)
        rate *= math.sqrt(max(1.0, p.size(0) / p.size(1)))
        agrees = direction * p >= 0
        p.sub_(rate * direction + rate * decay * p * agrees)

    def _adamw(self, name: str, gradient: Tensor, lr: float) -> None:
        p, state = self.weights[name], self.state[name]
        kind = next(kind for kind in ADAMW if name.startswith(kind))
        full, (beta1, beta2), decay = ADAMW[kind]
        rate = full * lr
        if kind not in ("smear", "backout"):
            rate *= self.by_batch
        if kind in ("lm_head.weight", "wte.weight", "value_embeds"):
            rate *= self.by_width
        state["steps"] += 1
        state["first"] = beta1 * state["first"] + (1 - beta1) * gradient
        state["second"] = beta2 * state["second"] + (1 - beta2) * gradient.square()
        first = state["first"] / (1 - beta1 ** state["steps"])
        second = state["second"] / (1 - beta2 ** state["steps"])
        p.mul_(1 - rate * decay)
        p.sub_(rate * first / (second.sqrt() + 1e-10))


def opened(**changes: Any) -> TrainState:
    """The trainer before its first step."""
    section = {**SECTION, **changes}
    state = TrainState.of_recipe(
        CONFIG, section, device=torch.device("cpu"), seed=7, horizon_tokens=None
    )
    state.prepare(lambda text, **_: None, bos=0)
    state.rows = GivenRows(MICRO_ROWS)
    return state


def rows() -> Iterator[tuple[Tensor, Tensor]]:
    """A step's rows: text with structure, so that the loss falls."""
    generator = torch.Generator().manual_seed(3)
    while True:
        first = torch.randint(0, CONFIG.vocab_size, (BATCH_ROWS, 1), generator=generator)
        pace = torch.randint(1, 4, (BATCH_ROWS, CONFIG.seq_len), generator=generator).cumsum(1)
        text = (torch.cat([first, first + pace], 1)) % CONFIG.vocab_size
        yield text[:, :-1], text[:, 1:]


# The beginning, the flat part, and the warm-down of one schedule.
WINDOW = [0, 1, 2, 450, 700, 1300, 1900, 1999]


def trained(state: TrainState) -> list[float]:
    """The trainer's losses over WINDOW."""
    losses = []
    for step, (tokens, targets) in zip(WINDOW, rows(), strict=False):
        parts = zip(tokens.split(MICRO_ROWS), targets.split(MICRO_ROWS), strict=True)
        state.rows.batches = iter(parts)
        losses.append(state.step(step / STEPS, step).loss)
    return losses


@pytest.fixture(scope="module")
def formulas() -> tuple[list[float], Nanochat]:
    """The losses of nanochat's formulas over WINDOW, and the weights they end with."""
    twin = Nanochat(opened().model.state_dict())
    losses = [twin.step(*batch, step) for step, batch in zip(WINDOW, rows(), strict=False)]
    return losses, twin


def farthest(state: TrainState, twin: Nanochat) -> float:
    """The largest relative distance of a weight tensor from the formulas'."""
    return max(
        float((value.double() - twin.weights[name].detach()).norm() / value.double().norm())
        for name, value in state.model.state_dict().items()
    )


def test_losses_and_weights_are_nanochats(formulas: tuple[list[float], Nanochat]) -> None:
    theirs, twin = formulas
    state = opened()
    ours = trained(state)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert theirs[-1] < theirs[0] - 0.01, "nothing was learnt: the test would see no fault"
    assert farthest(state, twin) < 3e-3  # signs of a dead unit's update are noise


@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": WEIGHT_DECAY * 1.78},  # what the old rule made of it at d20
        {"gate_lr": 0.2 / 30},  # the gates' rate scaled with the batch
        {"momentum": (0.85, 0.97, 0.97)},
        {"weight_decay_schedule": "constant"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_fault_of_one_rule_would_be_seen(
    change: dict[str, Any], formulas: tuple[list[float], Nanochat]
) -> None:
    state = opened(**change)
    trained(state)
    assert farthest(state, formulas[1]) > 6e-3

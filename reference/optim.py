"""Muon for the matrices of the blocks, AdamW for everything else, and the rules that scale them.

Muon replaces a matrix's momentum by the nearest (semi-)orthogonal matrix, so that every direction
of the update has the same size. Here, in order: Nesterov momentum; rows scaled to equal length
(MuonEq, arXiv 2603.28254); five Polar Express steps (arXiv 2505.16932); the norm an orthogonal
matrix would have (Muon+, arXiv 2602.21545); a factored second moment that evens out neurons
(NorMuon, arXiv 2510.05491); weight decay only where it agrees with the update (cautious).
Matrices of one shape are worked off as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference.matmul import baddbmm, batched_matmul
from reference.model import GPT
from reference.schedule import Schedule

# Odd polynomials a x + b x^3 + c x^5, one a step, minimax for singular values in [1e-3, 1]; each
# coefficient triple is the published one of arXiv 2505.16932, with its safety factor of 1.02.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
NORM_MARGIN = 1.01  # keeps the largest singular value below 1 when bf16 rounds
MAX_BATCH_ELEMENTS = 64 << 20  # of matrices worked off at once: bounds Muon's workspace
TABLE_ROWS = 8192  # of a token table worked off at once, where that needs an fp32 copy
BASE_BATCH_TOKENS = 1 << 19  # the batch at which the learning rates were tuned
BASE_WIDTH = 768


@torch.no_grad()
def orthogonalize(batch: Tensor) -> Tensor:
    """Approximately U V^T of each matrix U S V^T: (K, m, n) in, same shape and dtype out.

    Rows are brought to equal length first, the Frobenius norm to sqrt(min(m, n)) afterwards. The
    iterations run in bf16 on a GPU.
    """
    m, n = batch.shape[-2:]
    x = batch
    row = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (K, m, 1)
    whole = torch.linalg.vector_norm(row, dim=-2, keepdim=True)  # (K, 1, 1)
    target = whole / math.sqrt(m)
    x = x * (target / row.clamp_min(1e-6) / (whole * NORM_MARGIN + 1e-6))
    if x.is_cuda:
        x = x.bfloat16()
    if m > n:  # the Gram matrix of the shorter side is the small one
        x = x.mT
    for a, b, c in POLAR_EXPRESS:
        gram = batched_matmul(x, x.mT)
        x = baddbmm(x, baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    if m > n:
        x = x.mT
    x = x.to(batch.dtype)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    return x * (math.sqrt(min(m, n)) / norm)


def _even_out(update: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """NorMuon: divides by a running RMS per row (tall) or column (wide), keeping each norm."""
    m, n = update.shape[-2:]
    dim = -1 if m >= n else -2
    mean_square = update.square().mean(dim=dim, keepdim=True)
    second_moment.lerp_(mean_square.to(second_moment.dtype), 1.0 - beta2)
    scale = second_moment.clamp_min(1e-10).rsqrt()
    before = mean_square.sum(dim=(-2, -1), keepdim=True)
    after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True)
    return update.mul_(scale * (before / after.clamp_min(1e-20)).sqrt())


def muon_update(
    update: Tensor, momentum: Tensor, second_moment: Tensor, rate: Tensor | float, beta2: float
) -> Tensor:
    """The step's direction from the gradients `update` (K, m, n), which it may overwrite.

    Both states are brought up to date in place; momentum may be kept in bf16.
    """
    mixed = momentum if momentum.dtype == update.dtype else momentum.to(update.dtype)
    mixed = mixed.lerp_(update, 1.0 - rate)
    if mixed is not momentum:
        momentum.copy_(mixed)
    update = orthogonalize(update.lerp_(mixed, rate))
    return _even_out(update, second_moment, beta2)


class MuonAdamW(torch.optim.Optimizer):
    """Both optimizers behind one `step`.

    Args:
        groups: Dicts with `kind` "muon" (params of one shape, lr, momentum, beta2, weight_decay)
            or "adamw" (params, lr, betas, eps, weight_decay); `name` for people. `lr` and
            `weight_decay` are the full ones; `set_schedule` multiplies them. Optional: for muon
            `momentum_dtype`; for adamw `factored`, the second moment as row times column
            (Adafactor, arXiv 1804.04235).
        compiled: Compile Muon's update; for GPUs.
    """

    def __init__(self, groups: list[dict[str, Any]], *, compiled: bool = False) -> None:
        super().__init__(groups, defaults={})
        self.updates = 0  # begun by this object: whether a failed step can be done again
        self._muon_update = torch.compile(muon_update, dynamic=False) if compiled else muon_update
        self._compiled = compiled
        for group in self.param_groups:
            group["full_lr"] = group["lr"]
            group["full_weight_decay"] = group["weight_decay"]

    def set_schedule(self, schedule: Schedule) -> None:
        """Puts a step's multipliers in force. Weight decay of AdamW groups stays constant."""
        for group in self.param_groups:
            group["lr"] = group["full_lr"] * schedule.lr
            if group["kind"] == "muon":
                group["momentum"] = schedule.momentum
                group["weight_decay"] = group["full_weight_decay"] * schedule.weight_decay

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from `state_dict`, each value in the type it was saved in."""
        super().load_state_dict(state_dict)
        # PyTorch casts states to their parameter's type: wrong for bf16 momentum of an fp32 matrix.
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for index, p in zip(saved["params"], group["params"], strict=True):
                for name, value in state_dict["state"].get(index, {}).items():
                    self.state[p][name] = value.detach().clone().to(p.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.updates += 1
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._step_muon(group)
            elif group.get("factored"):
                self._step_factored(group)
            else:
                self._step_adamw(group)

    def _step_adamw(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        steps = [s["step"] for s in states]
        torch._foreach_add_(steps, 1.0)
        torch._fused_adamw_(
            params,
            [p.grad for p in params],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _step_factored(self, group: dict[str, Any]) -> None:
        """AdamW of tables whose second moment is (row means x column means) / mean."""
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            V, C = p.shape
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p)
                state["row"] = torch.zeros((V, 1), device=p.device)
                state["column"] = torch.zeros((1, C), device=p.device)
            state["step"] += 1.0
            norms = [
                torch.linalg.vector_norm(p.grad, dim=dim, keepdim=True, dtype=torch.float32)
                for dim in (1, 0)
            ]
            state["row"].lerp_(norms[0].square_().div_(C), 1.0 - beta2)
            state["column"].lerp_(norms[1].square_().div_(V), 1.0 - beta2)
            state["exp_avg"].lerp_(p.grad, 1.0 - beta1)
            first = 1.0 - beta1 ** state["step"]
            second = 1.0 - beta2 ** state["step"]
            column = state["column"] / (state["row"].mean().clamp_min(1e-30) * second)
            p.mul_(1.0 - group["lr"] * group["weight_decay"])
            for start in range(0, V, TABLE_ROWS):  # bounds the fp32 copies
                rows = slice(start, start + TABLE_ROWS)
                scale = (state["row"][rows] * column).sqrt_().add_(group["eps"])
                update = state["exp_avg"][rows].float() / (scale * first)
                p[rows].sub_((update * group["lr"]).to(p.dtype))

    def _step_muon(self, group: dict[str, Any]) -> None:
        params = group["params"]
        m, n = params[0].shape
        state = self.state[params[0]]  # of the whole group: the matrices are one batch
        if not state:
            shape = (len(params), m, n)
            factored = (len(params), m, 1) if m >= n else (len(params), 1, n)
            dtype = getattr(torch, group.get("momentum_dtype", "float32"))
            state["momentum"] = torch.zeros(shape, dtype=dtype, device=params[0].device)
            state["second_moment"] = torch.zeros(factored, device=params[0].device)
        lr = group["lr"] * math.sqrt(max(1.0, m / n))
        size = max(1, MAX_BATCH_ELEMENTS // (m * n))
        rate: Tensor | float = group["momentum"]
        if self._compiled:  # a number would be compiled in, and anew at each of its changes
            rate = torch.tensor(rate, device=params[0].device)
        for start in range(0, len(params), size):
            part = slice(start, start + size)
            update = torch.stack([p.grad for p in params[part]])  # (K, m, n)
            update = self._muon_update(
                update,
                state["momentum"][part],
                state["second_moment"][part],
                rate,
                group["beta2"],
            )
            for p, u in zip(params[part], update.unbind(), strict=True):
                if group["weight_decay"]:  # only where the step shrinks the weight as well
                    u.addcmul_(p, (p * u >= 0).to(p.dtype), value=group["weight_decay"])
                p.sub_(u, alpha=lr)


# Scaling rules


def batch_lr_scale(batch_tokens: int) -> float:
    """Learning rates grow with the square root of the batch (noise of the gradient)."""
    return math.sqrt(batch_tokens / BASE_BATCH_TOKENS)


def width_lr_scale(n_embd: int) -> float:
    """AdamW's rates of the token tables shrink with the square root of the width."""
    return (n_embd / BASE_WIDTH) ** -0.5


def scaled_weight_decay(
    weight_decay: float, batch_tokens: int, tokens: float, base_tokens: float
) -> float:
    """Weight decay of a horizon of `tokens`, tuned at `base_tokens` and the base batch.

    Keeps the averaging time of the weights a constant share of the run (T_epoch rule, arXiv
    2405.13698): lambda * sqrt(B / B_base) * (D_base / D).
    """
    return weight_decay * math.sqrt(batch_tokens / BASE_BATCH_TOKENS) * (base_tokens / tokens)


def power_lines_batch(tokens: float, base_tokens: float) -> int:
    """Batch in tokens for a horizon: B_base * (D / D_base)^0.383, to a power of two.

    References:
        Power Lines, https://arxiv.org/abs/2505.13738
    """
    return 2 ** round(math.log2(BASE_BATCH_TOKENS * (tokens / base_tokens) ** 0.383))


def parameter_groups(
    model: GPT, pretrain: Mapping[str, Any], *, tokens: float | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups of `model` for a recipe's `[pretrain]` section.

    Args:
        pretrain: The rates, `weight_decay`, `total_batch_size` and `scale_lr` (False: all rates
            and the decay as written); `momentum_dtype`, `factored_second_moment`,
            `matrix_optimizer`.
        tokens: The horizon in tokens, for the weight decay's rule; None leaves that rule out.
    """
    scaled = pretrain.get("scale_lr", True)
    batch = pretrain["total_batch_size"]
    by_batch = batch_lr_scale(batch) if scaled else 1.0
    by_width = width_lr_scale(model.config.n_embd) if scaled else 1.0
    decay = pretrain["weight_decay"]
    if scaled and tokens:
        decay = scaled_weight_decay(decay, batch, tokens, reference_tokens(model.config.vocab_size))
    table = {  # lr, betas, weight decay
        "unembedding": (pretrain["unembedding_lr"] * by_width, (0.8, 0.96), 0.01),
        "embedding": (pretrain["embedding_lr"] * by_width, (0.8, 0.995), 0.001),
        "value_embedding": (pretrain["value_embedding_lr"] * by_width, (0.8, 0.995), 0.01),
        "resid": (pretrain["resid_lr"], (0.8, 0.95), 0.05),
        "x0": (pretrain["x0_lr"], (0.96, 0.95), 0.0),
        "gate": (pretrain["gate_lr"], (0.8, 0.95), 0.0),
    }
    factored = pretrain.get("factored_second_moment", False)
    momentum_dtype = pretrain.get("momentum_dtype", "float32")
    named = model.named_parameter_groups()
    groups = [
        {
            "name": name,
            "kind": "adamw",
            "params": [p for _, p in named[name]],
            "lr": lr * by_batch,
            "betas": betas,
            "eps": 1e-10,
            "weight_decay": weight_decay,
            "factored": factored and name in ("embedding", "value_embedding"),
            "fused": True,  # tells `load_state_dict` to keep the step counts on the device
        }
        for name, (lr, betas, weight_decay) in table.items()
        if named[name]
    ]
    by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for _, p in named["matrix"]:
        by_shape.setdefault(tuple(p.shape), []).append(p)
    if pretrain.get("matrix_optimizer") == "adamw":
        adamw = {
            "name": "matrix",
            "kind": "adamw",
            "params": [p for _, p in named["matrix"]],
            "lr": pretrain["matrix_lr"] * by_batch,
            "betas": (0.9, 0.95),
            "eps": 1e-10,
            "weight_decay": decay,
            "fused": True,
        }
        return [*groups, adamw]
    groups += [
        {
            "name": "matrix " + "x".join(map(str, shape)),
            "kind": "muon",
            "params": params,
            "lr": pretrain["matrix_lr"] * by_batch,
            "momentum": 0.95,
            "beta2": 0.9,
            "weight_decay": decay,
            "momentum_dtype": momentum_dtype,
        }
        for shape, params in by_shape.items()
    ]
    return groups


def reference_tokens(vocab_size: int) -> float:
    """D_ref: the horizon of the 12-layer model the decay was tuned on, 12 tokens a parameter."""
    from reference.config import ModelConfig
    from reference.estimate import count_parameters

    return 12.0 * count_parameters(ModelConfig(vocab_size)).scaling

"""The optimizer of a training: one rule for the blocks' matrices, AdamW for everything else.

The matrices take Muon or another rule (`reference.optim.rules`) with weight decay only where it
agrees with the update (cautious); those of one shape are worked off as one batch. Below: how rates
and decay scale with batch, width and horizon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference.config.model import ModelConfig
from reference.config.pretrain import Pretrain
from reference.errors import TrainerError
from reference.model.gpt import GPT
from reference.model.structure import count_parameters
from reference.optim.rules import MatrixRule, rules
from reference.optim.schedule import Schedule

MAX_BATCH_ELEMENTS = 64 << 20  # of matrices worked off at once: bounds Muon's workspace
TABLE_ROWS = 8192  # of a token table worked off at once, where that needs an fp32 copy
BASE_BATCH_TOKENS = 1 << 19  # the batch at which the learning rates were tuned
BASE_WIDTH = 768


class MuonAdamW(torch.optim.Optimizer):
    """All optimizers behind one `step`.

    Args:
        groups: Dicts with `kind` the name of a rule (params of one shape, lr, momentum, beta2 of
            Muon's second moment, weight_decay, the rule's own settings) or "adamw" (params, lr,
            betas, eps, weight_decay); `name` for people. `lr` and `weight_decay` are the full ones;
            `set_schedule` multiplies them. Optional for adamw: `factored`, the second moment as row
            times column (Adafactor, arXiv 1804.04235).
        compiled: Compile the rules' updates; for GPUs.
    """

    def __init__(self, groups: list[dict[str, Any]], *, compiled: bool = False) -> None:
        super().__init__(groups, defaults={})
        self.updates = 0  # begun by this object: whether a failed step can be done again
        known = rules()
        self.rules: list[MatrixRule | None] = []  # of each group; None for adamw
        for group in self.param_groups:
            kind = group["kind"]
            if kind not in known and kind != "adamw":
                raise ValueError(f"unknown kind of optimizer group: {kind}")
            self.rules.append(known[kind](group, compiled=compiled) if kind in known else None)
            group["full_lr"] = group["lr"]
            group["full_weight_decay"] = group["weight_decay"]

    def set_schedule(self, schedule: Schedule) -> None:
        """Puts a step's multipliers in force. Weight decay of AdamW groups stays constant."""
        for group in self.param_groups:
            group["lr"] = group["full_lr"] * schedule.lr
            if group["kind"] != "adamw":
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
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.updates += 1
        for group, rule in zip(self.param_groups, self.rules, strict=True):
            if rule is not None:
                self._step_matrices(group, rule)
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
        torch.autograd.graph.increment_version(params)  # the fused kernel leaves this out

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

    def _step_matrices(self, group: dict[str, Any], rule: MatrixRule) -> None:
        params = group["params"]
        m, n = params[0].shape
        state = self.state[params[0]]  # of the whole group: the matrices are one batch
        if not state:
            state.update(self.new_matrix_state(group, rule))
        rule.begin_step(group)
        lr = group["lr"] * math.sqrt(max(1.0, m / n))
        size = max(1, MAX_BATCH_ELEMENTS // rule.elements((m, n)))
        for start in range(0, len(params), size):
            part = slice(start, start + size)
            gradients = torch.stack([p.grad for p in params[part]])  # (K, m, n)
            states = {name: value[part] for name, value in state.items()}
            update = rule.direction(gradients, states, group)
            if update is None:
                continue
            for p, u in zip(params[part], update.unbind(), strict=True):
                if group["weight_decay"]:  # only where the step shrinks the weight as well
                    u.addcmul_(p, (p * u >= 0).to(p.dtype), value=group["weight_decay"])
                p.sub_(u, alpha=lr)

    def rule_of(self, group: dict[str, Any]) -> MatrixRule:
        """The rule of a group of matrices."""
        rule = next(
            rule
            for rule, known in zip(self.rules, self.param_groups, strict=True)
            if known is group
        )
        assert rule is not None
        return rule

    def new_matrix_state(self, group: dict[str, Any], rule: MatrixRule) -> dict[str, Tensor]:
        """What a group of matrices begins with, each a batch (K, ...)."""
        first = group["params"][0]
        like = torch.empty((len(group["params"]), *first.shape), device="meta")
        return rule.new_state(like, first.device)


# Scaling rules


def batch_lr_scale(batch_tokens: int) -> float:
    """Learning rates grow with the square root of the batch (noise of the gradient)."""
    return math.sqrt(batch_tokens / BASE_BATCH_TOKENS)


def width_lr_scale(n_embd: int) -> float:
    """AdamW's rates of the token tables shrink with the square root of the width."""
    return (n_embd / BASE_WIDTH) ** -0.5


def scaled_weight_decay(
    weight_decay: float, batch_tokens: int, parameters: float, base_parameters: float
) -> float:
    """Weight decay of a model of `parameters` (matrices and head), tuned at `base_parameters`.

    nanochat's rule (`scripts/base_train.py`): lambda * sqrt(B / B_base) * (D_base / D), after the
    T_epoch rule of arXiv 2405.13698. nanochat gives both models the same number of tokens a
    parameter, so that this number cancels: D_base / D = N_base / N. A shorter or longer training
    of the same model therefore keeps its decay.
    """
    by_batch = math.sqrt(batch_tokens / BASE_BATCH_TOKENS)
    return weight_decay * by_batch * (base_parameters / parameters)


def power_lines_batch(tokens: float, base_tokens: float) -> int:
    """Batch in tokens for a horizon: B_base * (D / D_base)^0.383, to a power of two.

    References:
        Power Lines, https://arxiv.org/abs/2505.13738
    """
    return 2 ** round(math.log2(BASE_BATCH_TOKENS * (tokens / base_tokens) ** 0.383))


def parameter_groups(
    model: GPT, pretrain: Mapping[str, Any], *, finished: ModelConfig | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups of `model` for a recipe's `[pretrain]` section.

    Args:
        pretrain: The rates, `weight_decay`, `total_batch_size` and `scale_lr` (False: all rates
            and the decay as written); `factored_second_moment`, `matrix_optimizer` and the settings
            of its rule.
        finished: The model that training ends with, whose size scales the weight decay; None:
            `model` is that model.

    Raises:
        TrainerError: `matrix_optimizer` is none that is known.
    """
    scaled = pretrain.get("scale_lr", True)
    batch = pretrain["total_batch_size"]
    by_batch = batch_lr_scale(batch) if scaled else 1.0
    by_width = width_lr_scale(model.config.n_embd) if scaled else 1.0
    decay = pretrain["weight_decay"]
    if scaled:
        config = finished or model.config
        base = count_parameters(ModelConfig(config.vocab_size)).scaling
        decay = scaled_weight_decay(decay, batch, count_parameters(config).scaling, base)
    table = {  # lr, betas, weight decay
        "unembedding": (pretrain["unembedding_lr"] * by_width, (0.8, 0.96), 0.01),
        "embedding": (pretrain["embedding_lr"] * by_width, (0.8, 0.995), 0.001),
        "value_embedding": (pretrain["value_embedding_lr"] * by_width, (0.8, 0.995), 0.01),
        "resid": (pretrain["resid_lr"], (0.8, 0.95), 0.05),
        # Rate and decay of nanochat's pull request 830.
        "norm_scale": (pretrain.get("norm_scale_lr", Pretrain.norm_scale_lr), (0.8, 0.95), 0.05),
        "x0": (pretrain["x0_lr"], (0.96, 0.95), 0.0),
        "gate": (pretrain["gate_lr"], (0.8, 0.95), 0.0),
    }
    factored = pretrain.get("factored_second_moment", False)
    named = model.named_parameter_groups()
    groups = [
        {
            "name": name,
            "kind": "adamw",
            "params": [p for _, p in named[name]],
            # The gates' few weights take nanochat's rate as it is, whatever the batch.
            "lr": lr if name == "gate" else lr * by_batch,
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
    kind, known = pretrain.get("matrix_optimizer", "muon"), rules()
    if kind not in (*known, "adamw"):
        raise TrainerError(
            "bad_input",
            f"pretrain.matrix_optimizer is {kind!r}",
            "It is one of " + ", ".join((*known, "adamw")) + ".",
        )
    if kind == "adamw":
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
            "kind": kind,
            "params": params,
            "lr": pretrain["matrix_lr"] * by_batch,
            "momentum": 0.95,
            "beta2": 0.9,
            "weight_decay": decay,
            **known[kind].settings(pretrain),
        }
        for shape, params in by_shape.items()
    ]
    return groups

"""Progressive growth: a small model becomes a larger one in the middle of its training.

Deeper: whole copies of the small model are stacked, layer by layer as they were. Where the new
depth is no multiple of the old one, the lowest layers once more stand below the copies, so that the
first layer stays the first and the last one the last. A layer's scales, value embedding and gate go
with it; where the copy has a value embedding and its original none, that of the nearest layer that
has one. The function changes, and the loss recovers within some steps.

Wider: every channel, head and inner unit gets copies of itself. What reads copies divides its
weight among them, so that the function stays what it was, up to rounding. Shares that were all
equal would stay equal for ever: they differ by noise of their own size that sums to nothing over
the copies of a channel.

The optimizer's moments go with the weights: those of a copy are its original's, divided by the
number of copies that a gradient is divided among. They are what the same steps of the large model,
without the noise, would have left. Other states of matrices go with copied layers, but begin anew
when a model gets wider: of Muon's second moments only the proportions matter, and they forget in
ten steps; SOAP's bases have another size. Factored second moments of tables always begin anew. So
does an average of weights: what it holds is another model's.

References:
    Du et al. 2024, Stacking Your Transformers, https://arxiv.org/abs/2405.15319: of four ways to
    grow, stacking whole copies (G_stack) did best.
    Chen et al. 2016, Net2Net, https://arxiv.org/abs/1511.05641 (copies with divided weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reference.config.model import ModelConfig
from reference.experiments.growth.plan import GrowthPlan
from reference.model.gpt import GPT
from reference.optim.optimizer import MuonAdamW
from reference.train.loop import TrainState

NOISE = 1.0  # of the shares, relative to their own root mean square
_NOISE_SEED = 1 << 32  # apart from the seeds of initial weights
# What is carried, and the power of the gradient that it is an average of.
_ADAM_MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2}


class Axis(NamedTuple):
    """Where the entries along one axis of a grown tensor come from.

    index: of the source's entries. mode: "copied": each is its source (an output, whose gradient
    is divided among the copies); "shared": they add up to it (an input); "picked": other layers.
    """

    index: Tensor  # type: ignore[assignment]
    mode: Literal["copied", "shared", "picked"]

    @property
    def counts(self) -> Tensor:
        """Of each entry: how many have the same source."""
        return torch.bincount(self.index)[self.index]


class Origin(NamedTuple):
    """Where a parameter of a grown model comes from: a name, and an `Axis` for each that changes"""

    name: str
    axes: dict[int, Axis]


def source_layers(n_old: int, n_new: int) -> list[int]:
    """The layer that each layer of a deeper model is a copy of."""
    rest = n_new % n_old
    return [*range(rest), *(layer % n_old for layer in range(n_new - rest))]


def origins(old: GPT, new: GPT) -> dict[str, Origin]:
    """Of every parameter of `new`."""
    a, b = old.config, new.config
    layers = source_layers(a.n_layer, b.n_layer)
    return {
        name: Origin(_source_name(name, a, layers), dict(_axes(name, a, b, layers)))
        for name, _ in new.named_parameters()
    }


def _source_name(name: str, old: ModelConfig, layers: list[int]) -> str:
    for prefix in ("blocks.", "value_embeds."):
        if name.startswith(prefix):
            layer, rest = name.removeprefix(prefix).split(".", 1)
            source = layers[int(layer)]
            if prefix == "value_embeds." or "value_gate" in rest:
                having = [i for i in range(old.n_layer) if old.has_value_embedding(i)]
                source = min(having, key=lambda i: (abs(i - source), i))
            return f"{prefix}{source}.{rest}"
    return name


def _axes(
    name: str, old: ModelConfig, new: ModelConfig, layers: list[int]
) -> Iterator[tuple[int, Axis]]:
    if name in ("resid_scale", "x0_scale"):
        yield 0, Axis(torch.tensor(layers), "picked")
    if old.n_embd == new.n_embd:
        return
    channels, keys, inner = (
        torch.arange(wide) % narrow
        for narrow, wide in (
            (old.n_embd, new.n_embd),
            (old.kv_dim, new.kv_dim),
            (old.ffn_dim, new.ffn_dim),
        )
    )
    outputs = {
        "attn.c_q": channels, "attn.c_k": keys, "attn.c_v": keys, "attn.c_proj": channels,
        "attn.value_gate": torch.arange(new.n_kv_head) % old.n_kv_head,
        "mlp.c_fc": inner, "mlp.c_up": inner, "mlp.c_proj": channels,
    }  # fmt: skip
    if name == "wte.weight":
        yield 1, Axis(channels, "copied")
    elif name.startswith("value_embeds."):
        yield 1, Axis(keys, "copied")
    elif name == "lm_head.weight":
        yield 1, Axis(channels, "shared")
    elif name.endswith("norm_scale"):
        yield 0, Axis(channels, "copied")
    elif name.startswith("blocks."):
        module = ".".join(name.split(".")[2:4])
        yield 0, Axis(outputs[module], "copied")
        # Gates read the leading channels, which stay where they were.
        if module != "attn.value_gate":
            yield 1, Axis(inner if module == "mlp.c_proj" else channels, "shared")


def moved(value: Tensor, axes: Mapping[int, Axis], divide: Mapping[str, int]) -> Tensor:
    """`value` along its new axes, divided by the copies of the modes named, to that power."""
    for dim, axis in axes.items():
        value = value.index_select(dim, axis.index.to(value.device))
        if axis.mode in divide:
            counts = axis.counts.to(value.device, torch.float32) ** divide[axis.mode]
            shape = [-1 if d == dim else 1 for d in range(value.dim())]
            value = (value.float() / counts.view(shape)).to(value.dtype)
    return value


def _noise(value: Tensor, axis: Axis, generator: torch.Generator) -> Tensor:
    """Noise for shares (m, n) of inputs: as large as they are, nothing in sum over the copies."""
    noise = torch.randn(value.shape, generator=generator)
    sums = torch.zeros(value.size(0), int(axis.index.max()) + 1).index_add_(1, axis.index, noise)
    noise -= (sums.index_select(1, axis.index)) / axis.counts
    return NOISE * value.square().mean().sqrt() * noise


@torch.no_grad()
def grown(old: GPT, config: ModelConfig, seed: int) -> GPT:
    """A model of shape `config` that goes on from `old`; not yet placed.

    Args:
        seed: Of the noise that tells copies of a channel apart.
    """
    new, known = GPT.empty(config), dict(old.named_parameters())
    generator = torch.Generator().manual_seed(_NOISE_SEED + seed)
    for (_, parameter), origin in zip(
        new.named_parameters(), origins(old, new).values(), strict=True
    ):
        value = moved(known[origin.name].detach().cpu().float(), origin.axes, {"shared": 1})
        for axis in origin.axes.values():
            if axis.mode == "shared":
                value = value + _noise(value, axis, generator)
        parameter.copy_(value)
    new.tied = old.tied
    return new


@torch.no_grad()
def carry_moments(old: GPT, source: MuonAdamW, new: GPT, target: MuonAdamW) -> None:
    """Gives the grown model's optimizer what the small one's knows; the rest begins anew."""
    made = origins(old, new)
    new_names = {p: name for name, p in new.named_parameters()}
    old_parameters = dict(old.named_parameters())
    places = {
        p: (group, place)
        for group in source.param_groups
        for place, p in enumerate(group["params"])
    }
    for group in target.param_groups:
        members = [(p, made[new_names[p]]) for p in group["params"]]
        if group["kind"] != "adamw":
            found = [places[old_parameters[origin.name]] for _, origin in members]
            first = found[0][0]
            state = source.state.get(first["params"][0], {})
            if state and all(whole is first for whole, _ in found):
                axes = [origin.axes for _, origin in members]
                _carry_matrices(state, first, [place for _, place in found], axes, target, group)
            continue
        for p, origin in members:
            state = source.state.get(old_parameters[origin.name], {})
            if state and set(state) <= {"step", *_ADAM_MOMENTS}:
                target.state[p] = {
                    key: moved(value.clone(), origin.axes, {"copied": _ADAM_MOMENTS[key]})
                    if key in _ADAM_MOMENTS
                    else value.clone()
                    for key, value in state.items()
                }


def _carry_matrices(
    state: Mapping[str, Tensor],
    source: Mapping[str, Any],
    places: list[int],
    axes: list[dict[int, Axis]],
    target: MuonAdamW,
    group: dict[str, Any],
) -> None:
    """Of a group of matrices, whose states are batches (K, ...): from `source` to `group`."""
    rule = target.rule_of(group)
    if not any(axes):
        index = torch.tensor(places, device=state["momentum"].device)
        target.state[group["params"][0]] = {k: value[index] for k, value in state.items()}
        group.update({key: source[key] for key in rule.counters if key in source})
        return

    def carried(averages: Tensor) -> Tensor:
        rows = [moved(averages[i], a, {"copied": 1}) for i, a in zip(places, axes, strict=True)]
        return torch.stack(rows)

    known = rule.carry(dict(state), group, carried)
    if known:
        fresh = target.new_matrix_state(group, rule)
        target.state[group["params"][0]] = {**fresh, **known}


class Growth:
    """Grows the model in training as the recipe's `growth_layers` and `growth_width` say."""

    def __init__(self, config: ModelConfig, section: Mapping[str, Any]) -> None:
        self.plan = GrowthPlan.from_recipe(config, section)
        self.stage = 0

    def first_config(self, config: ModelConfig) -> ModelConfig:
        return self.plan.configs[0]

    def reach(self, state: TrainState, progress: float) -> list[str]:
        """Grows as far as the plan says for `progress`."""
        changes = []
        while self.stage < self.plan.at(progress):
            before, optimizer = state.model, state.optimizer
            self.stage += 1
            config = self.plan.configs[self.stage]
            state.take(grown(before, config, state.seed + self.stage))
            carry_moments(before, optimizer, state.model, state.optimizer)
            changes += [
                f"{name} {getattr(before.config, name)} -> {getattr(config, name)}"
                for name in ("n_layer", "n_embd", "n_head")
                if getattr(before.config, name) != getattr(config, name)
            ]
        return [f"the model grows: {', '.join(changes)}"] if changes else []

    def state_dict(self) -> dict[str, Any]:
        return {"growth": self.stage}

    def load_state_dict(self, state: TrainState, saved: Mapping[str, Any]) -> None:
        """Gives `state` an empty model of the saved model's size.

        Raises:
            ValueError: The recipe has no such model.
        """
        stage = saved.get("growth", 0)
        if stage == self.stage:
            return
        if not 0 <= stage < len(self.plan.configs):
            raise ValueError(f"a state of growth {stage}, the recipe has no such model")
        self.stage = stage
        state.take(GPT.empty(self.plan.configs[stage]))

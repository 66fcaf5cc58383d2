"""The GPT that the reference trainer trains: nanochat's architecture of July 2026.

What a reader may not expect of a GPT, all of it optional in `ModelConfig` or free of parameters:
norms without scales, also after the embedding and on queries and keys (`norm_scales` adds them
where they were seen to pay: before each MLP, and last); relu squared; separate
input and output tables; sliding windows; on every other layer a second table whose rows are gated
into the values; learned mixes of each layer's input with the first one (x0); `smear`, which lets a
token see its predecessor's embedding; `backout`, which takes part of the middle layer's output out
of the final state; capped logits.

Matrices are kept in fp32 and cast to the activations' dtype where they are used. The two kinds of
token tables live in that dtype.

What may change between steps, without new weights: the layers' windows, the attention kernels, the
kinds of factors of the products (`reference.model.linear`), and whether the head is the embedding
table.

Shapes: B sequences, T positions, C = n_embd, H query heads, G key/value heads, D = head_dim,
V vocabulary, S cached positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.config.model import (
    SMEAR_GATE_CHANNELS,
    TIED_HEAD_SCALE,
    VALUE_GATE_CHANNELS,
    ModelConfig,
)
from reference.kernels.attention import Backend, Documents, cached_attention, causal_attention
from reference.kernels.eight_bit import Kind
from reference.kernels.fused import norm, norm_and_rotate, relu_squared
from reference.kernels.table_gradient import Index, find_index, look_up
from reference.model.init import set_initial_values
from reference.model.int8_maps import RoundedMaps, StepWeights, inner, mapped, relu2_mlp
from reference.model.kv_cache import KVCache
from reference.model.linear import Linear
from reference.model.loss import (
    Reduction,
    SoftTargets,
    full_cross_entropy,
    softcapped_cross_entropy,
    softcapped_logits,
)
from reference.model.structure import Shape, attention_maps, mlp_maps
from reference.train.device import resolve_dtype

__all__ = ["GPT", "KVCache", "ModelConfig", "resolve_dtype"]

QUERY_KEY_SCALE = 1.2  # on both sides of the product: sharper attention than 1/sqrt(D) alone


class Teacher(Protocol):
    """Makes soft targets for the gradients of training."""

    def targets(self, tokens: Tensor, documents: Documents | None) -> SoftTargets:
        """For tokens (B, T) int64."""


def add_maps(module: nn.Module, maps: Mapping[str, Shape]) -> None:
    """Gives `module` a linear map for each name, of shape (outputs, inputs)."""
    for name, (outputs, inputs) in maps.items():
        module.add_module(name, Linear(inputs, outputs))


class Attention(nn.Module):
    """Queries, keys, values and their mix; `window` and `backends` may change between steps."""

    c_q: Linear
    c_k: Linear
    c_v: Linear
    c_proj: Linear
    value_gate: Linear  # only in layers with a value embedding

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = config, layer, config.windows[layer]
        # For windows that cover all keys, and for narrower ones.
        self.backends: tuple[Backend, Backend] = ("auto", "auto")
        self.int8: RoundedMaps | None = None  # the weights of training in int8
        add_maps(self, attention_maps(config, layer))

    def project(
        self, x: Tensor, value: Tensor | None, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, D), keys and values (B, T, G, D); x (B, T, C) before its norm."""
        B, T, _ = x.shape
        D = self.config.head_dim
        normed = norm(x)
        if self.int8 is not None and torch.is_grad_enabled():
            maps = self.int8
            qkv = mapped(x, inner(self), maps.inner, "norm", maps.passes, maps.inner_grad)
            qkv = qkv.view(B, T, -1, D)
            G = self.config.n_kv_head
            q, k, v = qkv.split([self.config.n_head, G, G], dim=2)
        else:
            q = self.c_q(normed).view(B, T, -1, D)  # (B, T, H, D)
            k = self.c_k(normed).view(B, T, -1, D)  # (B, T, G, D)
            v = self.c_v(normed).view(B, T, -1, D)
        if value is not None:
            leading = normed[..., :VALUE_GATE_CHANNELS]
            gate = 3.0 * torch.sigmoid(self.value_gate(leading))  # (B, T, G)
            v = v + gate.unsqueeze(-1) * value.view(B, T, -1, D)
        # The tables hold the scale.
        return norm_and_rotate(q, *rope), norm_and_rotate(k, *rope), v

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: KVCache | None,
        documents: Documents | None,
    ) -> Tensor:
        """(B, T, C): what each position reads from those it may see."""
        if cache is not None:
            cache.store(self.layer, k, v)
        if cache is None or cache.is_new:  # padding stands at the right: nothing sees it
            backend = self.backends[self.window < q.size(1)]
            y = causal_attention(q, k, v, self.window, documents=documents, backend=backend)
        else:
            y = cached_attention(q, *cache.in_reach(self.layer, self.window))
        return y.flatten(2)

    def output(self, y: Tensor) -> Tensor:
        """(B, T, C): what is added to the states, of `mix`'s result."""
        if self.int8 is not None and torch.is_grad_enabled():
            maps, weight = self.int8, self.c_proj.weight
            return mapped(y, [weight], maps.outer, "identity", maps.passes, maps.outer_grad)
        return self.c_proj(y)


class MLP(nn.Module):
    """Norm, up, bend, down; with "swiglu" a third matrix is multiplied in."""

    c_fc: Linear
    c_up: Linear  # only with "swiglu"
    c_proj: Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.swiglu = config.ffn == "swiglu"
        self.norm_scale: nn.Parameter | None = None
        if config.norm_scales:
            self.norm_scale = nn.Parameter(torch.empty(config.n_embd))
        self.int8: RoundedMaps | None = None  # the weights of training in int8
        add_maps(self, mlp_maps(config))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) of states (B, T, C) before the norm."""
        if self.int8 is not None and torch.is_grad_enabled():
            return self._forward_int8(x, self.int8)
        x = norm(x)
        if self.norm_scale is not None:
            x = x * self.norm_scale.to(x.dtype)
        if self.swiglu:
            return self.c_proj(F.silu(self.c_fc(x)) * self.c_up(x))
        return self.c_proj(relu_squared(self.c_fc(x)))

    def _forward_int8(self, x: Tensor, maps: RoundedMaps) -> Tensor:
        if not self.swiglu:
            return relu2_mlp(x, self.c_fc.weight, self.c_proj.weight, maps)
        both = mapped(x, inner(self), maps.inner, "norm", maps.passes, maps.inner_grad, maps.scale)
        gate, up = both.chunk(2, dim=-1)
        weight, bent = self.c_proj.weight, F.silu(gate) * up
        return mapped(bent, [weight], maps.outer, "identity", maps.passes, maps.outer_grad)


class Block(nn.Module):
    """One layer, the mix of its input with the first layer's included: what gets compiled."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        resid_scale: Tensor,
        x0_scale: Tensor | None,
        value: Tensor | None,
        rope: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        x, q, k, v = self.before(x, x0, resid_scale, x0_scale, value, rope)
        return self.after(x, self.attn.mix(q, k, v, cache, documents))

    def before(
        self,
        x: Tensor,
        x0: Tensor,
        resid_scale: Tensor,
        x0_scale: Tensor | None,
        value: Tensor | None,
        rope: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All up to attention: the mixed input (B, T, C), and its queries, keys and values."""
        x = resid_scale * x if x0_scale is None else resid_scale * x + x0_scale * x0
        return x, *self.attn.project(x, value, rope)

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """All from attention's output y (B, T, C) on."""
        x = x + self.attn.output(y)
        return x + self.mlp(x)


class GPT(nn.Module):
    """The model. Built in fp32 with unset weights: call `init_weights` or load a state dict, then
    `place`."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        V, C = config.padded_vocab_size, config.n_embd
        self.wte = nn.Embedding(V, C)
        self.value_embeds = nn.ModuleDict(
            {
                str(layer): nn.Embedding(V, config.kv_dim)
                for layer in range(config.n_layer)
                if config.has_value_embedding(layer)
            }
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        if not config.tied:
            self.lm_head = Linear(C, V)
        self.tied = config.tied  # whether the head is the embedding table at the moment
        self.head_kind: Kind = "bf16"  # of the factors of the logits, in training
        self.step_weights: StepWeights | None = None  # of the maps with int8 factors
        self.full_loss = False  # all logits at once, as the baseline does it
        self.teacher: Teacher | None = None  # whose targets take part in training's gradients
        self._dtype = torch.float32
        if config.norm_scales:
            self.final_norm_scale = nn.Parameter(torch.empty(config.n_embd))
        self.resid_scale = nn.Parameter(torch.empty(config.n_layer))
        if config.x0_mix:
            self.x0_scale = nn.Parameter(torch.empty(config.n_layer))
        if config.smear:
            self.smear_gate = Linear(SMEAR_GATE_CHANNELS, 1)
            self.smear_scale = nn.Parameter(torch.empty(1))
        if config.backout:
            self.backout_scale = nn.Parameter(torch.empty(1))
        # Angle tables, rebuilt at need: never part of a checkpoint.
        self.register_buffer("rope_cos", torch.empty(0, config.head_dim // 2), persistent=False)
        self.register_buffer("rope_sin", torch.empty(0, config.head_dim // 2), persistent=False)

    # Weights

    @classmethod
    def empty(cls, config: ModelConfig, device: str | torch.device = "cpu") -> GPT:
        """A model without PyTorch's own initial values, which take seconds and are overwritten."""
        with torch.device("meta"):
            model = cls(config)
        return model.to_empty(device=device)

    @torch.no_grad()
    def init_weights(self, seed: int, *, on_device: bool = False) -> None:
        """Sets every parameter from `seed`, to the same values wherever the model lives.

        Args:
            on_device: Draw where the weights are: at once, but other values on a GPU. For runs
                that nobody has to repeat.
        """
        set_initial_values(self, seed, on_device=on_device)

    def place(
        self, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
    ) -> GPT:
        """Moves the model and casts its token tables to the activations' dtype.

        A table that is a head as well stays in fp32, as heads are.
        """
        self._dtype = resolve_dtype(self.config.dtype if dtype is None else dtype, device)
        self.to(device)
        if not self.config.tied_until:
            self.wte.to(self._dtype)
        self.value_embeds.to(self._dtype)
        return self

    def tie(self) -> None:
        """Makes the embedding table the head as well, until `untie`."""
        self.tied = True

    @torch.no_grad()
    def untie(self) -> None:
        """Gives the head a table of its own; at first it computes what the shared one did."""
        self.lm_head.weight.copy_(TIED_HEAD_SCALE * self.wte.weight)
        self.tied = False

    def set_windows(self, windows: Sequence[int]) -> None:
        """The reach of each layer from here on (`ModelConfig.windows` are the final ones)."""
        for block, window in zip(self.layers, windows, strict=True):
            block.attn.window = window

    def set_backends(self, full: Backend, windowed: Backend) -> None:
        """The attention kernels of training, for windows that cover all keys and for others."""
        for block in self.layers:
            block.attn.backends = (full, windowed)

    @property
    def layers(self) -> Sequence[Block]:
        """The blocks, by their type."""
        return cast("Sequence[Block]", self.blocks)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The activations' dtype."""
        return self._dtype if self.config.tied_until else self.wte.weight.dtype

    @property
    def head(self) -> tuple[Tensor, float]:
        """The head's table (V, C) in force, and what the states are multiplied by before it."""
        return (self.wte.weight, TIED_HEAD_SCALE) if self.tied else (self.lm_head.weight, 1.0)

    def named_parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The parameters by the treatment they get; each is in exactly one group.

        Returns:
            matrix, embedding, unembedding, value_embedding, norm_scale, resid, x0, gate: (name,
            parameter)s.
        """
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {
            "matrix": [],
            "embedding": [],
            "unembedding": [],
            "value_embedding": [],
            "norm_scale": [],
            "resid": [],
            "x0": [],
            "gate": [],
        }
        by_prefix = {
            "blocks.": "matrix",
            "wte.": "embedding",
            "lm_head.": "unembedding",
            "value_embeds.": "value_embedding",
            "resid_scale": "resid",
            "x0_scale": "x0",
            "smear_": "gate",
            "backout_": "gate",
        }
        for name, parameter in self.named_parameters():
            if name.endswith("norm_scale"):
                groups["norm_scale"].append((name, parameter))
                continue
            prefix = next(p for p in by_prefix if name.startswith(p))
            groups[by_prefix[prefix]].append((name, parameter))
        return groups

    # Forward

    def hidden(
        self, tokens: Tensor, cache: KVCache | None = None, documents: Documents | None = None
    ) -> Tensor:
        """Final normed states.

        Args:
            tokens: (B, T) int64. With a cache: the next T tokens of each row (see `KVCache` for
                rows of uneven length).
            documents: Where each row's documents begin: no token then sees another document.

        Returns:
            (B, T, C) in the compute dtype.
        """
        B, T = tokens.shape
        if self.step_weights is not None and torch.is_grad_enabled():
            self.step_weights.refresh()
        index = find_index(tokens) if torch.is_grad_enabled() else None
        x = norm(look_up(tokens, self.wte, index).to(self.dtype))  # (B, T, C)
        if cache is None:
            rope = self.rope(T)
            if self.config.smear:
                previous = x[:, :-1]
                if documents is not None:
                    previous = previous * documents.goes_on[:, 1:, None]
                x = torch.cat([x[:, :1], self._smear(x[:, 1:], previous)], dim=1)
            values = self._value_rows(tokens, index)
            return self._blocks_forward(x, values, rope, documents=documents)
        if cache.batch != B:
            raise ValueError(f"{B} rows of tokens for a cache of {cache.batch} rows")
        cache.begin(T)
        self._grow_rope(max(cache.lengths) + T)
        rope = self._rope_rows(cache.positions)
        if self.config.smear:
            x = self._smear(x, cache.exchange_previous(x))
        values = self._value_rows(tokens, index)
        x = self._blocks_forward(x, values, rope, cache)
        cache.commit()
        return x

    def _blocks_forward(
        self,
        x: Tensor,
        values: dict[str, Tensor],
        rope: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        resid_scale = self.resid_scale.to(x.dtype)
        x0_scale = self.x0_scale.to(x.dtype) if self.config.x0_mix else [None] * self.config.n_layer
        x0, middle = x, None
        for layer, block in enumerate(self.blocks):
            value = values.get(str(layer))
            x = block(x, x0, resid_scale[layer], x0_scale[layer], value, rope, cache, documents)
            if layer == self.config.n_layer // 2:
                middle = x
        if self.config.backout:
            assert middle is not None
            x = x - self.backout_scale.to(x.dtype) * middle
        x = norm(x)
        return x * self.final_norm_scale.to(x.dtype) if self.config.norm_scales else x

    def _value_rows(self, tokens: Tensor, index: Index | None) -> dict[str, Tensor]:
        """For each layer with a value embedding: its rows of tokens (B, T), (B, T, G D)."""
        return {
            layer: look_up(tokens, cast("nn.Embedding", table), index)
            for layer, table in self.value_embeds.items()
        }

    def _smear(self, x: Tensor, previous: Tensor) -> Tensor:
        """Adds a gated share of each predecessor's embedding; both (B, T, C)."""
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))  # (B, T, 1)
        return x + self.smear_scale.to(x.dtype) * gate * previous

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) fp32 capped logits of states (..., C); V is the vocabulary without padding."""
        weight, scale = self.head
        return softcapped_logits(
            hidden * scale if scale != 1.0 else hidden,
            weight,
            vocab_size=self.config.vocab_size,
            softcap=self.config.softcap,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, V) fp32 logits of tokens (B, T)."""
        return self.logits(self.hidden(tokens))

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        reduction: Reduction = "mean",
        count: Tensor | int | None = None,
        documents: Documents | None = None,
        each: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy in nats.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64; below 0 is ignored.
            reduction: "mean" over the targets that count, "sum", or "none".
            count: With "mean": divide by this instead (the targets of all micro-batches of a step).
            documents: Where each row's documents begin: no token then sees another document.
            each: (B, T) fp32, contiguous, to be filled with each target's loss, 0 where ignored.

        Returns:
            fp32 scalar, or (B, T) with 0 where ignored for "none".
        """
        hidden = self.hidden(tokens, documents=documents).flatten(0, 1)
        weight, scale = self.head
        formula = full_cross_entropy if self.full_loss else softcapped_cross_entropy
        if self.teacher is not None and torch.is_grad_enabled() and reduction != "none":
            soft = self.teacher.targets(tokens, documents)
            formula = partial(softcapped_cross_entropy, soft=soft)
        losses = formula(
            hidden * scale if scale != 1.0 else hidden,
            weight,
            targets.flatten(),
            vocab_size=self.config.vocab_size,
            softcap=self.config.softcap,
            reduction=reduction,
            count=count,
            kind=self.head_kind if torch.is_grad_enabled() else "bf16",
            each=None if each is None else each.view(-1),
            int8=None if self.step_weights is None else self.step_weights.head,
        )
        return losses.view(targets.shape) if reduction == "none" else losses

    # Rotary tables

    @torch.inference_mode(False)  # a table born in an evaluation must also serve training
    def rope(self, T: int) -> tuple[Tensor, Tensor]:
        """The angle tables of positions 0 to T - 1, (T, 1, D/2) each."""
        self._grow_rope(T)
        return self._rope_rows(slice(0, T))

    def _grow_rope(self, length: int) -> None:
        """Makes the tables cover `length` positions and fit the model's device and dtype."""
        cos = self.rope_cos
        if cos.size(0) >= length and cos.device == self.device and cos.dtype == self.dtype:
            return
        length = max(length, self.config.seq_len, 2 * cos.size(0) if cos.size(0) < length else 0)
        D = self.config.head_dim
        frequency = self.config.rope_base ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
        angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)  # (length, D/2)
        for name, table in (("rope_cos", angle.cos()), ("rope_sin", angle.sin())):
            setattr(self, name, (QUERY_KEY_SCALE * table).to(self.device, self.dtype))

    def _rope_rows(self, index: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Tables of positions: (T, 1, D/2) for a slice, (B, T, 1, D/2) for (B, T) positions."""
        return self.rope_cos[index].unsqueeze(-2), self.rope_sin[index].unsqueeze(-2)

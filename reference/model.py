"""The GPT that the reference trainer trains: nanochat's architecture of July 2026.

What a reader may not expect of a GPT, all of it optional in `ModelConfig` or free of parameters:
norms without scales, also after the embedding and on queries and keys; relu squared; separate
input and output tables; sliding windows; on every other layer a second table whose rows are gated
into the values; learned mixes of each layer's input with the first one (x0); `smear`, which lets a
token see its predecessor's embedding; `backout`, which takes part of the middle layer's output out
of the final state; capped logits.

Matrices are kept in fp32 and cast to the activations' dtype where they are used. The two kinds of
token tables live in that dtype.

Shapes: B sequences, T positions, C = n_embd, H query heads, G key/value heads, D = head_dim,
V vocabulary, S cached positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.attention import cached_attention, causal_attention
from reference.config import SMEAR_GATE_CHANNELS, VALUE_GATE_CHANNELS, ModelConfig
from reference.fused import norm, norm_and_rotate, relu_squared
from reference.loss import Reduction, softcapped_cross_entropy, softcapped_logits
from reference.matmul import linear

__all__ = ["GPT", "KVCache", "ModelConfig", "resolve_dtype"]

QUERY_KEY_SCALE = 1.2  # on both sides of the product: sharper attention than 1/sqrt(D) alone


def resolve_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """The activations' dtype: "auto" is bf16 on a GPU and fp32 on a CPU."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]


class Linear(nn.Linear):
    """A bias-free linear map whose fp32 weight is cast to the input's dtype."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = config, layer, config.windows[layer]
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, config.kv_dim)
        self.c_v = Linear(config.n_embd, config.kv_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.value_gate = (
            Linear(VALUE_GATE_CHANNELS, config.n_kv_head)
            if config.has_value_embedding(layer)
            else None
        )

    def forward(
        self, x: Tensor, value: Tensor | None, rope: tuple[Tensor, Tensor], cache: KVCache | None
    ) -> Tensor:
        B, T, _ = x.shape
        D = self.config.head_dim
        q = self.c_q(x).view(B, T, -1, D)  # (B, T, H, D)
        k = self.c_k(x).view(B, T, -1, D)  # (B, T, G, D)
        v = self.c_v(x).view(B, T, -1, D)
        if value is not None:
            gate = 3.0 * torch.sigmoid(self.value_gate(x[..., :VALUE_GATE_CHANNELS]))  # (B, T, G)
            v = v + gate.unsqueeze(-1) * value.view(B, T, -1, D)
        q, k = norm_and_rotate(q, *rope), norm_and_rotate(k, *rope)  # the tables hold the scale
        if cache is None:
            y = causal_attention(q, k, v, self.window)
        else:
            y = cached_attention(q, *cache.extend(self.layer, k, v, self.window))
        return self.c_proj(y.reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(relu_squared(self.c_fc(x)))


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
        x0_scale: Tensor,
        value: Tensor | None,
        rope: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
    ) -> Tensor:
        x = resid_scale * x + x0_scale * x0
        x = x + self.attn(norm(x), value, rope, cache)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """The model. Built in fp32 with unset weights: call `init_weights` or load a state dict, then
    `place`."""

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
        self.lm_head = Linear(C, V)
        self.resid_scale = nn.Parameter(torch.empty(config.n_layer))
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

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Sets every parameter from `seed`, to the same values wherever the model lives.

        Drawn on the CPU in the order of the state dict. Uniform draws have the standard deviation
        that their comment names and no outliers.
        """
        generator = torch.Generator().manual_seed(seed)
        layers = torch.arange(self.config.n_layer) / max(self.config.n_layer - 1, 1)
        width = 3**0.5 * self.config.n_embd**-0.5  # standard deviation 1/sqrt(C)
        for name, parameter in self.named_parameters():
            value = torch.empty(parameter.shape)
            if name == "wte.weight":
                value.normal_(0.0, 0.8, generator=generator)
            elif name == "lm_head.weight":
                value.normal_(0.0, 0.001, generator=generator)
            elif name == "resid_scale":
                value.copy_(1.15 - 0.10 * layers)
            elif name == "x0_scale":
                value.copy_(0.20 - 0.15 * layers)
            elif name == "smear_scale" or "c_proj" in name:
                value.zero_()  # a block starts as the identity
            elif name == "backout_scale":
                value.fill_(0.2)
            elif "gate" in name:
                value.uniform_(0.0, 0.02, generator=generator)
            elif "c_fc" in name:
                value.uniform_(-0.4 * width, 0.4 * width, generator=generator)
            else:  # c_q, c_k, c_v, value_embeds
                value.uniform_(-width, width, generator=generator)
            parameter.copy_(value)

    def place(
        self, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
    ) -> GPT:
        """Moves the model and casts its token tables to the activations' dtype."""
        compute = resolve_dtype(self.config.dtype if dtype is None else dtype, device)
        self.to(device)
        self.wte.to(compute)
        self.value_embeds.to(compute)
        return self

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The activations' dtype."""
        return self.wte.weight.dtype

    def named_parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The parameters by the treatment they get; each is in exactly one group.

        Returns:
            matrix, embedding, unembedding, value_embedding, resid, x0, gate: (name, parameter)s.
        """
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {
            "matrix": [],
            "embedding": [],
            "unembedding": [],
            "value_embedding": [],
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
            prefix = next(p for p in by_prefix if name.startswith(p))
            groups[by_prefix[prefix]].append((name, parameter))
        return groups

    # Forward

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Final normed states.

        Args:
            tokens: (B, T) int64. With a cache: the next T tokens of each row (see `KVCache` for
                rows of uneven length).

        Returns:
            (B, T, C) in the compute dtype.
        """
        B, T = tokens.shape
        x = norm(F.embedding(tokens, self.wte.weight))  # (B, T, C)
        if cache is None:
            self._grow_rope(T)
            rope = self._rope_rows(slice(0, T))
            if self.config.smear:
                x = torch.cat([x[:, :1], self._smear(x[:, 1:], x[:, :-1])], dim=1)
            values = {
                layer: F.embedding(tokens, table.weight)
                for layer, table in self.value_embeds.items()
            }
            return self._blocks_forward(x, values, rope)
        if cache.batch != B:
            raise ValueError(f"{B} rows of tokens for a cache of {cache.batch} rows")
        cache.begin(T)
        self._grow_rope(max(cache.lengths) + T)
        rope = self._rope_rows(cache.positions)
        if self.config.smear:
            x = self._smear(x, cache.exchange_previous(x))
        values = {
            layer: F.embedding(tokens, table.weight) for layer, table in self.value_embeds.items()
        }
        x = self._blocks_forward(x, values, rope, cache)
        cache.commit()
        return x

    def _blocks_forward(
        self,
        x: Tensor,
        values: dict[str, Tensor],
        rope: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
    ) -> Tensor:
        resid_scale, x0_scale = self.resid_scale.to(x.dtype), self.x0_scale.to(x.dtype)
        x0, middle = x, None
        for layer, block in enumerate(self.blocks):
            x = block(
                x, x0, resid_scale[layer], x0_scale[layer], values.get(str(layer)), rope, cache
            )
            if layer == self.config.n_layer // 2:
                middle = x
        if self.config.backout:
            x = x - self.backout_scale.to(x.dtype) * middle
        return norm(x)

    def _smear(self, x: Tensor, previous: Tensor) -> Tensor:
        """Adds a gated share of each predecessor's embedding; both (B, T, C)."""
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))  # (B, T, 1)
        return x + self.smear_scale.to(x.dtype) * gate * previous

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) fp32 capped logits of states (..., C); V is the vocabulary without padding."""
        return softcapped_logits(
            hidden,
            self.lm_head.weight,
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
    ) -> Tensor:
        """Cross-entropy in nats.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64; below 0 is ignored.
            reduction: "mean" over the targets that count, "sum", or "none".
            count: With "mean": divide by this instead (the targets of all micro-batches of a step).

        Returns:
            fp32 scalar, or (B, T) with 0 where ignored for "none".
        """
        losses = softcapped_cross_entropy(
            self.hidden(tokens).flatten(0, 1),
            self.lm_head.weight,
            targets.flatten(),
            vocab_size=self.config.vocab_size,
            softcap=self.config.softcap,
            reduction=reduction,
            count=count,
        )
        return losses.view(targets.shape) if reduction == "none" else losses

    # Rotary tables

    @torch.inference_mode(False)  # a table born in an evaluation must also serve training
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


class KVCache:
    """Keys and values of the tokens so far, for rows of their own lengths.

        cache = KVCache(config, 1, 512, device, dtype)
        model.hidden(prompt, cache)              # once, (1, T)
        cache = cache.expand(8)                  # eight continuations of it
        model.hidden(tokens, cache)              # (8, t): any t, not only 1

    Rows with fewer real tokens than the others are padded at the right:
    `cache.append_counts([5, 3, 7])` before a call with 7 columns makes row 1 keep 3 of them. What
    the padding left behind is never seen and is overwritten by the next call.

    Args:
        max_len: Positions to hold; a call that needs more raises ValueError.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        self.config, self.batch, self.max_len = config, batch, max_len
        self.device = torch.device(device)
        self.dtype = resolve_dtype(dtype, device)
        shape = (config.n_layer, batch, max_len, config.n_kv_head, config.head_dim)
        self.keys = torch.zeros(shape, device=self.device, dtype=self.dtype)
        self.values = torch.zeros(shape, device=self.device, dtype=self.dtype)
        # The last token's embedding before smear; zero means there is none, and adds nothing.
        self.previous = torch.zeros((batch, config.n_embd), device=self.device, dtype=self.dtype)
        self.lengths: list[int] = [0] * batch  # tokens of each row, known without asking a GPU
        self._counts: list[int] | None = None

    def append_counts(self, counts: Sequence[int]) -> None:
        """Says how many of the next call's columns are real tokens, row by row."""
        if len(counts) != self.batch or min(counts) < 0:
            raise ValueError(f"counts {list(counts)} for {self.batch} rows")
        self._counts = list(counts)

    def expand(self, batch: int) -> KVCache:
        """A cache of `batch` rows that all continue this one's only row."""
        if self.batch != 1:
            raise ValueError(f"expand needs a cache of one row, this one has {self.batch}")
        return self.select([0] * batch)

    def select(self, rows: Sequence[int]) -> KVCache:
        """A cache of copies of `rows`, in that order; rows may repeat or be missing."""
        other = KVCache(self.config, len(rows), self.max_len, self.device, self.dtype)
        filled = max((self.lengths[row] for row in rows), default=0)
        index = torch.tensor(list(rows), device=self.device)
        other.keys[:, :, :filled] = self.keys[:, index, :filled]
        other.values[:, :, :filled] = self.values[:, index, :filled]
        other.previous = self.previous[index]
        other.lengths = [self.lengths[row] for row in rows]
        return other

    # What the model calls, in this order.

    def begin(self, T: int) -> None:
        """Opens a call of T columns."""
        counts = self._counts or [T] * self.batch
        if max(counts) > T:
            raise ValueError(f"counts {counts} exceed the {T} columns of the call")
        needed = max(self.lengths, default=0) + T
        if needed > self.max_len:
            raise ValueError(f"{needed} positions exceed the cache's max_len {self.max_len}")
        self._counts, self._T = counts, T
        self._even = len(set(self.lengths)) <= 1
        lengths = torch.tensor(self.lengths, device=self.device)
        self.positions = lengths[:, None] + torch.arange(T, device=self.device)  # (B, T)
        self._masks: dict[int, Tensor | None] = {}

    def exchange_previous(self, x: Tensor) -> Tensor:
        """Each column's predecessor of embeddings x (B, T, C); remembers the last real one."""
        joined = torch.cat([self.previous[:, None], x], dim=1)  # (B, 1 + T, C)
        counts = torch.tensor(self._counts, device=self.device)
        self.previous = joined[torch.arange(self.batch, device=self.device), counts]
        return joined[:, :-1]

    def extend(
        self, layer: int, k: Tensor, v: Tensor, window: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores k, v (B, T, G, D); returns those in reach (B, S, G, D) and a mask."""
        if self._even:
            start = self.lengths[0]
            self.keys[layer, :, start : start + self._T] = k
            self.values[layer, :, start : start + self._T] = v
        else:
            rows = torch.arange(self.batch, device=self.device)[:, None]
            self.keys[layer, rows, self.positions] = k
            self.values[layer, rows, self.positions] = v
        first = max(0, min(self.lengths) - window + 1)
        stop = max(self.lengths) + self._T
        if window not in self._masks:
            self._masks[window] = self._mask(first, stop, window)
        return (
            self.keys[layer, :, first:stop],
            self.values[layer, :, first:stop],
            (self._masks[window]),
        )

    def _mask(self, first: int, stop: int, window: int) -> Tensor | None:
        """(B, 1, T, S) where a query may look; None where that is everywhere."""
        if self._even and self._T == 1:
            return None  # `first` already cuts the window
        rows = self.positions[:1] if self._even else self.positions
        query = rows[:, :, None]  # (B, T, 1)
        key = torch.arange(first, stop, device=self.device)
        return ((key <= query) & (key > query - window))[:, None]

    def commit(self) -> None:
        """Closes the call: the rows are longer by their real tokens."""
        self.lengths = [n + count for n, count in zip(self.lengths, self._counts, strict=True)]
        self._counts = None

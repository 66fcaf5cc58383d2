"""A model trained by n4090-kit, for transformers: configuration and network in one file.

`n4090-kit export model RUN --format hf` copies this file beside the weights. It imports torch and
transformers only, reads no file and opens no connection. Load the folder with

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

The network is nanochat's: RMS norms without scales, rotary positions, relu squared, sliding
windows, value embeddings, learned mixes with the first layer's input, `smear`, `backout`, capped
logits.

Shapes: B sequences, T new positions, S cached and new positions, C hidden_size, H query heads, G
key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

VALUE_GATE_CHANNELS = 12
SMEAR_GATE_CHANNELS = 24


class N4090Config(PretrainedConfig):
    """Everything that fixes the function of the network.

    Args:
        windows: For each layer, how many keys a position sees, itself included.
        value_embedding_layers: The layers that add a gated value embedding.
        ffn: "relu2" (up, relu squared, down) or "swiglu".
        qk_scale: Factor of the normed queries and of the normed keys.
        final_logit_softcapping: Logits become cap * tanh(logits / cap); 0 leaves them alone.
    """

    model_type = "n4090"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 1024,
        hidden_size: int = 128,
        intermediate_size: int = 512,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 2,
        num_key_value_heads: int = 2,
        max_position_embeddings: int = 256,
        windows: list[int] | None = None,
        value_embedding_layers: list[int] | None = None,
        ffn: str = "relu2",
        rope_base: float = 100_000.0,
        qk_scale: float = 1.2,
        final_logit_softcapping: float = 15.0,
        x0_mix: bool = True,
        smear: bool = True,
        backout: bool = True,
        norm_scales: bool = False,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.windows = windows or [max_position_embeddings] * num_hidden_layers
        self.value_embedding_layers = value_embedding_layers or []
        self.ffn = ffn
        self.rope_base = rope_base
        self.qk_scale = qk_scale
        self.final_logit_softcapping = final_logit_softcapping
        self.x0_mix = x0_mix
        self.smear = smear
        self.backout = backout
        self.norm_scales = norm_scales
        self.use_cache = use_cache
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without a scale."""
    return F.rms_norm(x, (x.size(-1),))


class N4090Attention(nn.Module):
    def __init__(self, config: N4090Config, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        C, kv_dim = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.c_q = nn.Linear(C, C, bias=False)
        self.c_k = nn.Linear(C, kv_dim, bias=False)
        self.c_v = nn.Linear(C, kv_dim, bias=False)
        self.c_proj = nn.Linear(C, C, bias=False)
        if layer in config.value_embedding_layers:
            self.value_gate = nn.Linear(VALUE_GATE_CHANNELS, config.num_key_value_heads, bias=False)

    def forward(
        self,
        x: Tensor,
        value: Tensor | None,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: Any,
    ) -> Tensor:
        """(B, T, C) from normed states (B, T, C); `mask` (B, 1, T, S) says who sees whom."""
        B, T, _ = x.shape
        q = self.c_q(x).view(B, T, -1, self.head_dim)
        k = self.c_k(x).view(B, T, -1, self.head_dim)
        v = self.c_v(x).view(B, T, -1, self.head_dim)
        if value is not None:
            gate = 3.0 * torch.sigmoid(self.value_gate(x[..., :VALUE_GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * value.view(B, T, -1, self.head_dim)
        q, k = rotate(norm(q), *rope).transpose(1, 2), rotate(norm(k), *rope).transpose(1, 2)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        if self.groups > 1:
            k = k.repeat_interleave(self.groups, dim=1)
            v = v.repeat_interleave(self.groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[d], x[d + D/2]) of (B, T, heads, D); cos and sin are (B, T, 1, D/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class N4090MLP(nn.Module):
    def __init__(self, config: N4090Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        if config.ffn == "swiglu":
            self.c_up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.swiglu, self.norm_scale = config.ffn == "swiglu", None
        if config.norm_scales:
            self.norm_scale = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_scale is not None:
            x = x * self.norm_scale
        if self.swiglu:
            return self.c_proj(F.silu(self.c_fc(x)) * self.c_up(x))
        return self.c_proj(F.relu(self.c_fc(x)).square())


class N4090Block(nn.Module):
    def __init__(self, config: N4090Config, layer: int) -> None:
        super().__init__()
        self.attn = N4090Attention(config, layer)
        self.mlp = N4090MLP(config)

    def forward(self, x: Tensor, *attention: Any) -> Tensor:
        x = x + self.attn(norm(x), *attention)
        return x + self.mlp(norm(x))


class N4090PreTrainedModel(PreTrainedModel):
    config_class = N4090Config
    base_model_prefix = "model"
    _no_split_modules = ("N4090Block",)
    _supports_sdpa = True
    _supports_cache_class = True


class N4090Model(N4090PreTrainedModel):
    """Tokens to final normed states."""

    def __init__(self, config: N4090Config) -> None:
        super().__init__(config)
        V, C, L = config.vocab_size, config.hidden_size, config.num_hidden_layers
        kv_dim = config.num_key_value_heads * config.head_dim
        self.wte = nn.Embedding(V, C)
        self.value_embeds = nn.ModuleDict(
            {str(layer): nn.Embedding(V, kv_dim) for layer in config.value_embedding_layers}
        )
        self.blocks = nn.ModuleList(N4090Block(config, layer) for layer in range(L))
        if config.norm_scales:
            self.final_norm_scale = nn.Parameter(torch.ones(C))
        self.resid_scale = nn.Parameter(torch.ones(L))
        if config.x0_mix:
            self.x0_scale = nn.Parameter(torch.zeros(L))
        if config.smear:
            self.smear_gate = nn.Linear(SMEAR_GATE_CHANNELS, 1, bias=False)
            self.smear_scale = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_scale = nn.Parameter(torch.zeros(1))
        self._rope: tuple[Tensor, Tensor] | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        previous_input_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Final normed states.

        Args:
            input_ids: (B, T) tokens; embeddings cannot be given instead, as each token has several.
            attention_mask: (B, S), 0 for padding, which may stand at the left or at the right.
            previous_input_ids: (B, 1) the token before `input_ids`; a model with `smear` needs it
                when `past_key_values` holds earlier tokens. `generate` passes it by itself.
        """
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("this model reads input_ids; inputs_embeds cannot replace them")
        B, T = input_ids.shape
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, past)
        x = norm(self.wte(input_ids))
        if self.config.smear:
            x = self._smeared(x, position_ids, previous_input_ids, past)
        masks = {
            window: self._mask(attention_mask, window, B, T, past, x.device)
            for window in set(self.config.windows)
        }
        rope = self._rope_rows(position_ids, past + T, x)
        x0, middle, states = x, None, [x]
        for layer, block in enumerate(self.blocks):
            x = self.resid_scale[layer] * x
            if self.config.x0_mix:
                x = x + self.x0_scale[layer] * x0
            table = str(layer)
            value = self.value_embeds[table](input_ids) if table in self.value_embeds else None
            x = block(x, value, rope, masks[self.config.windows[layer]], past_key_values)
            states.append(x)
            if layer == len(self.blocks) // 2:
                middle = x
        if self.config.backout:
            x = x - self.backout_scale * middle
        x = norm(x)
        if self.config.norm_scales:
            x = x * self.final_norm_scale
        found = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states[:-1], x) if output_hidden_states else None,
        )
        return found.to_tuple() if return_dict is False else found

    def _positions(self, tokens: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
        B, T = tokens.shape
        if attention_mask is None:
            return torch.arange(past, past + T, device=tokens.device).expand(B, T)
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -T:]

    def _smeared(
        self, x: Tensor, positions: Tensor, previous_input_ids: Tensor | None, past: int
    ) -> Tensor:
        """Adds a gated share of each predecessor's embedding; a text's first token has none."""
        if previous_input_ids is not None:
            before = norm(self.wte(previous_input_ids))
        elif past:
            raise ValueError("previous_input_ids is needed beside past_key_values: (B, 1) tokens")
        else:
            before = torch.zeros_like(x[:, :1])
        previous = torch.cat([before, x[:, :-1]], dim=1) * (positions > 0).unsqueeze(-1)
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))
        return x + self.smear_scale * gate * previous

    def _mask(
        self,
        attention_mask: Tensor | None,
        window: int,
        B: int,
        T: int,
        past: int,
        device: torch.device,
    ) -> Tensor:
        """(B or 1, 1, T, S) bool: a position sees `window` keys, itself included, no padding."""
        query = torch.arange(past, past + T, device=device)[:, None]
        key = torch.arange(past + T, device=device)
        seen = ((key <= query) & (key > query - window))[None, None]
        if attention_mask is None:
            return seen
        # A padded query sees itself, or its softmax would be over nothing.
        return (seen & attention_mask[:, None, None, : past + T].bool()) | (key == query)

    def _rope_rows(self, positions: Tensor, length: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (B, T, 1, D/2), the scale of queries and keys included."""
        cached = self._rope
        if cached is None or cached[0].size(0) < length or cached[0].device != x.device:
            length = max(length, self.config.max_position_embeddings)
            D = self.config.head_dim
            frequency = self.config.rope_base ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
            angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
            scale = self.config.qk_scale
            cached = tuple((scale * f).float().to(x.device) for f in (angle.cos(), angle.sin()))
            self._rope = cached
        cos, sin = (table.to(x.dtype)[positions].unsqueeze(-2) for table in cached)
        return cos, sin


class N4090ForCausalLM(N4090PreTrainedModel, GenerationMixin):
    """Tokens to logits."""

    def __init__(self, config: N4090Config) -> None:
        super().__init__(config)
        self.model = N4090Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        previous_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """fp32 logits (B, T, V), of the last `logits_to_keep` positions if that is above 0.

        Args:
            labels: (B, T); -100 is ignored. The loss compares each with the logits one before.
        """
        found = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            previous_input_ids=previous_input_ids,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            inputs_embeds=kwargs.get("inputs_embeds"),
        )
        logits = self.lm_head(found.last_hidden_state[:, -logits_to_keep:]).float()
        cap = self.config.final_logit_softcapping
        if cap:
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
            )
        answer = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
        )
        return answer.to_tuple() if return_dict is False else answer

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The usual inputs, and the token before them, which `smear` reads."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        taken = inputs["input_ids"].shape[1]
        if taken < input_ids.shape[1]:
            inputs["previous_input_ids"] = input_ids[:, -taken - 1 : -taken]
        return inputs

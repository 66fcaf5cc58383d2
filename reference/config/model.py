"""The shape of a model, apart from torch so that `estimate` can count it anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

VOCAB_MULTIPLE = 64  # tensor cores like it; the padding columns never reach a caller
SHORT_WINDOW_MULTIPLE = 128  # the tile of the windowed attention kernels
VALUE_GATE_CHANNELS = 12  # leading channels of the block input that drive a value gate
# A tied head is the embedding table times this. Both rates of nanochat's untied tables then act at
# once: a step moves the table by the embedding's rate and the head by its own, 0.3 : 0.008.
TIED_HEAD_SCALE = 0.025
SMEAR_GATE_CHANNELS = 24  # leading channels of the embedding that drive the smear gate


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the function a checkpoint computes.

    Args:
        vocab_size: All tokens, special ones included; tables are padded to a multiple of 64.
        seq_len: Training length T, also the reach of an `L` layer.
        window_pattern: One letter a layer, repeated: `S` short window, `L` long. The last layer is
            always long.
        short_window: Keys a position of an `S` layer sees, itself included; 0 derives
            a quarter of `seq_len`, rounded up to a multiple of 128.
        ffn: "relu2" (up, relu squared, down) or "swiglu" (up times silu of gate, down).
        ffn_width: Inner width; 0 derives 4 n_embd for relu2 and, of equal size with its third
            matrix, 8/3 n_embd rounded up to a multiple of 64 for swiglu.
        value_embedding_every: Layers from one value embedding to the next, counted from the last.
        tied_until: Share of pretraining during which the head is the embedding table: 0 never,
            1 for good (the checkpoint then has no head of its own), between: untied late.
        x0_mix: Each layer's input takes a learned share of the first layer's input.
        softcap: Logits become softcap * tanh(logits / softcap); 0 leaves them alone.
        dtype: Activations: "auto" (bf16 on a GPU, fp32 on a CPU), "bfloat16" or "float32".
    """

    vocab_size: int
    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 6
    n_kv_head: int = 6
    seq_len: int = 2048
    window_pattern: str = "SSSL"
    short_window: int = 0
    softcap: float = 15.0
    rope_base: float = 100_000.0
    ffn: str = "relu2"
    ffn_width: int = 0
    value_embeddings: bool = True
    value_embedding_every: int = 2
    tied_until: float = 0.0
    x0_mix: bool = True
    smear: bool = True
    backout: bool = True
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 2:
            raise ValueError(
                f"n_embd {self.n_embd} is not n_head {self.n_head} times an even number"
            )
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
            )
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise ValueError(f"window_pattern {self.window_pattern!r} has letters beside S and L")
        if self.ffn not in ("relu2", "swiglu"):
            raise ValueError(f"ffn {self.ffn!r} is neither relu2 nor swiglu")
        if self.value_embedding_every < 1 or not 0 <= self.tied_until <= 1:
            raise ValueError(
                f"value_embedding_every {self.value_embedding_every} is below 1, or"
                f" tied_until {self.tied_until} no share"
            )
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"dtype {self.dtype!r} is none of auto, bfloat16, float32")
        if self.smear and self.n_embd < SMEAR_GATE_CHANNELS:
            raise ValueError(f"n_embd {self.n_embd} is below the {SMEAR_GATE_CHANNELS} of smear")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_dim(self) -> int:
        return self.n_kv_head * self.head_dim

    @property
    def ffn_dim(self) -> int:
        """Inner width of the MLP."""
        if self.ffn_width:
            return self.ffn_width
        return 4 * self.n_embd if self.ffn == "relu2" else -(-8 * self.n_embd // 192) * 64

    @property
    def tied(self) -> bool:
        """Whether a finished model has no head of its own."""
        return self.tied_until >= 1.0

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def windows(self) -> tuple[int, ...]:
        """Keys that a position of each layer sees, itself included.

        A long layer reaches `seq_len` back, also in longer prompts: distances that training never
        showed stay out of sight.
        """
        short = self.short_window or (
            -(-self.seq_len // 4 // SHORT_WINDOW_MULTIPLE) * SHORT_WINDOW_MULTIPLE
        )
        windows = [
            min(short, self.seq_len)
            if self.window_pattern[i % len(self.window_pattern)] == "S"
            else self.seq_len
            for i in range(self.n_layer)
        ]
        windows[-1] = self.seq_len
        return tuple(windows)

    def has_value_embedding(self, layer: int) -> bool:
        """Every `value_embedding_every`-th layer, the last one among them."""
        every = self.value_embedding_every
        return self.value_embeddings and layer % every == (self.n_layer - 1) % every

    @classmethod
    def from_recipe(cls, section: Mapping[str, Any], vocab_size: int) -> ModelConfig:
        """The model of a recipe's `[model]` section and its tokenizer's vocabulary."""
        known = {name: section[name] for name in cls.__dataclass_fields__ if name in section}
        return cls(**{**known, "vocab_size": vocab_size})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelConfig:
        """Reads `to_json`'s form; keys of a checkpoint's config.json that are not ours are left."""
        return cls(**{k: document[k] for k in cls.__dataclass_fields__ if k in document})

"""The shape of a model, apart from torch so that `estimate` can count it anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reference.config.fields import setting

VOCAB_MULTIPLE = 64  # tensor cores like it; the padding columns never reach a caller
SHORT_WINDOW_MULTIPLE = 128  # the tile of the windowed attention kernels
VALUE_GATE_CHANNELS = 12  # leading channels of the block input that drive a value gate
# A tied head is the embedding table times this. Both rates of nanochat's untied tables then act at
# once: a step moves the table by the embedding's rate and the head by its own, 0.3 : 0.008.
TIED_HEAD_SCALE = 0.025
SMEAR_GATE_CHANNELS = 24  # leading channels of the embedding that drive the smear gate


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the function a checkpoint computes: a recipe's `[model]`, and the
    tokenizer's vocabulary.

    Args:
        vocab_size: All tokens, special ones included; tables are padded to a multiple of 64.
    """

    vocab_size: int
    n_layer: int = setting(
        12,
        "Transformer blocks.",
        unit="blocks",
        low=1,
        high=256,
    )
    n_embd: int = setting(
        768,
        "Width.",
        unit="channels",
        low=16,
        high=65536,
    )
    n_head: int = setting(
        6,
        "Query heads.",
        unit="heads",
        low=1,
        high=1024,
    )
    n_kv_head: int = setting(
        6,
        "Key and value heads; divides n_head.",
        unit="heads",
        low=1,
        high=1024,
    )
    seq_len: int = setting(
        2048,
        "Training sequence length in tokens.",
        unit="tokens",
        low=16,
        high=1048576,
    )
    window_pattern: str = setting(
        "SSSL",
        "S (short) and L (full) attention windows, repeated over the layers; the "
        "last layer is always L.",
        pattern="^[SL]+$",
    )
    short_window: int = setting(
        0,
        "Tokens seen through an S window; 0: a quarter of seq_len, rounded up to 128.",
        unit="tokens",
        low=0,
    )
    softcap: float = setting(
        15.0,
        "Logits are softcap*tanh(logits/softcap); 0 leaves them alone.",
        low=0,
        high=1000,
    )
    rope_base: float = setting(
        100000.0,
        "Base of the rotary frequencies.",
        low=100,
    )
    ffn: str = setting(
        "relu2",
        "relu2: up, relu squared, down. swiglu: up times silu of gate, down.",
        choices=("relu2", "swiglu"),
    )
    ffn_width: int = setting(
        0,
        "Inner width of the MLP; 0: 4 n_embd (relu2) or 8/3 n_embd (swiglu). A multiple of 16.",
        unit="channels",
        low=0,
        high=1048576,
        multiple_of=16,
    )
    value_embeddings: bool = setting(
        True,
        "Value embeddings on alternating layers, the last included.",
    )
    value_embedding_every: int = setting(
        2,
        "Layers from one value embedding to the next, counted from the last layer.",
        unit="layers",
        low=1,
        high=256,
    )
    tied_until: float = setting(
        0.0,
        "Share of pretraining during which head and embedding are one table: 0 "
        "never, 1 for good, between: untied late.",
        unit="share of the run",
        low=0,
        high=1,
    )
    x0_mix: bool = setting(
        True,
        "Each layer's input takes a learned share of the first layer's input.",
    )
    smear: bool = setting(
        True,
        "Mix the previous token's embedding into each token's.",
    )
    backout: bool = setting(
        True,
        "Subtract a share of the middle layer's residual before the head.",
    )
    norm_scales: bool = setting(
        False,
        "Learned scales of the channels after the norm before each MLP and after the last norm.",
    )
    dtype: str = setting(
        "auto",
        "Matmul type: auto is bf16 on GPUs and fp32 on CPUs.",
        choices=("auto", "float32", "bfloat16"),
    )

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

"""What a model has to offer to be evaluated, and what it may offer to be evaluated faster.

A loader (`load(path, *, device, dtype) -> EvalModel`) is found by name among the entry points
`n4090_kit.models`. The five members of `EvalModel` are enough for every figure. Two optional
groups of methods save work, and are used only after they have reproduced the plain logits of the
same model (`kit.core_eval.probes.PathProof`).

Shapes: B sequences of T tokens, C channels, V tokens in the vocabulary. Tokens are int64 on the
model's device. Padding is on the right and changes nothing before it in most models; those in
which it does (rotary positions that stretch with the length) are read one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class EvalModel(Protocol):
    """The plain contract: tokens in, logits out.

    Optional members: `device` (str, "cpu" when absent), `max_seq_len` (int: longer prompts lose
    their front; None or absent: nothing is cut), `tokenizer_digest` (str: lets encoded tasks be
    kept on disk), `context_len` (int: the length it was trained for, only reported), `expect`
    (called with the number of items before the first: a model may prepare itself, by compiling).
    """

    vocab_size: int
    bos_id: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without BOS; the text of special tokens is plain text."""

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, V): at each position, scores of the next token."""


@runtime_checkable
class HiddenModel(EvalModel, Protocol):
    """Logits only where they are scored."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), such that `head` of a position gives its logits."""

    def head(self, hidden: Tensor) -> Tensor:
        """(N, C) -> (N, V)."""


@runtime_checkable
class PrefixModel(HiddenModel, Protocol):
    """Text that several sequences begin with is read once."""

    def prefill(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        """(B, T), (B,) true lengths -> hidden (B, T, C) and a cache of the B rows."""

    def extend(self, cache: Any, rows: Tensor, tokens: Tensor) -> Tensor:
        """Continues cached rows, each with its own text, leaving the cache as it was.

        Args:
            rows: (R,) int64, the cached row that each new row goes on from; rows may repeat.
            tokens: (R, S), read at positions lengths[rows] onwards.

        Returns:
            (R, S, C).
        """


def model_device(model: EvalModel) -> str:
    """Where the model wants its tokens."""
    return str(getattr(model, "device", "cpu"))


def max_seq_len(model: EvalModel) -> int | None:
    """The length that prompts are cut to, if any."""
    value = getattr(model, "max_seq_len", None)
    return None if value is None else int(value)


class Paths(NamedTuple):
    """Which of a model's optional methods may be used, and whether sequences may share a batch."""

    hidden: bool
    prefix: bool
    batch: bool = True  # False: each sequence alone, without padding


def offered_paths(model: EvalModel) -> Paths:
    """What the model has methods for."""
    return Paths(isinstance(model, HiddenModel), isinstance(model, PrefixModel))

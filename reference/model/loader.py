"""A checkpoint of the reference trainer as the kit evaluates it (entry point `n4090_kit.models`).

Offers the whole fast path: states apart from the head, and a key/value cache whose rows can be
taken several times. Prompts longer than the training length are read whole, as nanochat does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.model.gpt import GPT, Block
from reference.model.kv_cache import KVCache
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import load_model
from reference.train.device import usable_cores

MAX_ENCODING_THREADS = 8
# By kit/core_eval/COST.md compiling saves minutes of a whole evaluation (91,037 items).
COMPILE_FROM_ITEMS = 20_000


class EvaluatedGPT:
    """The methods that the evaluator calls; shapes as in `kit.core_eval.model`."""

    max_seq_len = None

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.vocab_size = model.config.vocab_size
        self.bos_id = tokenizer.bos_id
        self.context_len = model.config.seq_len
        self.tokenizer_digest = tokenizer.digest
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._threads = min(MAX_ENCODING_THREADS, usable_cores())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode(texts, threads=self._threads)

    def expect(self, items: int) -> None:
        """Compiles the blocks around attention on a GPU where enough items follow.

        The element-wise work between the matrix products is a third of an evaluation when each
        operation walks over memory by itself. Attention and its cache stay eager: prompts come in
        all shapes. A compiler that fails leaves the model as it was.
        """
        if self._model.device.type == "cuda" and items >= COMPILE_FROM_ITEMS:
            self.compile()

    def compile(self, backend: str = "inductor") -> None:
        """Compiles what `expect` says, for any number of rows and tokens, and tries it out."""
        eager = [(block, block.before, block.after) for block in self._model.layers]
        for block, before, after in eager:
            _replace(
                block,
                torch.compile(before, dynamic=True, backend=backend),
                torch.compile(after, dynamic=True, backend=backend),
            )
        try:
            with torch.inference_mode():
                for rows, length in ((2, 24), (3, 40)):
                    tokens = torch.full((rows, length), self.bos_id, device=self._model.device)
                    self.hidden(tokens)
                    counts = torch.full((rows,), length)
                    self.extend(self.prefill(tokens, counts)[1], torch.tensor([1, 0]), tokens[:2])
        except Exception as error:  # the compiler's errors share no type
            for block, before, after in eager:
                _replace(block, before, after)
            warnings.warn(
                f"evaluating without compiled blocks: {str(error).splitlines()[0]}", stacklevel=2
            )

    def logits(self, tokens: Tensor) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return self._model(tokens)

    def hidden(self, tokens: Tensor) -> Tensor:
        return self._model.hidden(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)

    def prefill(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, KVCache]:
        B, T = tokens.shape
        cache = self._cache(B, T)
        cache.append_counts(lengths.tolist())
        return self._model.hidden(tokens, cache), cache

    def extend(self, cache: KVCache, rows: Tensor, tokens: Tensor) -> Tensor:
        chosen = rows.tolist()
        filled = max(cache.lengths[row] for row in chosen)
        taken = self._cache(len(chosen), filled + tokens.size(1))
        taken.keys[:, :, :filled] = cache.keys[:, rows, :filled]
        taken.values[:, :, :filled] = cache.values[:, rows, :filled]
        taken.previous = cache.previous[rows]
        taken.lengths = [cache.lengths[row] for row in chosen]
        return self._model.hidden(tokens, taken)

    def _cache(self, batch: int, max_len: int) -> KVCache:
        model = self._model
        return KVCache(model.config, batch, max_len, model.device, model.dtype)


def load(path: Path, *, device: str = "cpu", dtype: str = "auto") -> EvaluatedGPT:
    """The checkpoint folder `path`.

    Raises:
        TrainerError: It is not whole, or its parts do not fit together.
    """
    model, _ = load_model(path, device, dtype)
    # Nothing is trained here: cast the matrices once instead of in each forward pass.
    model.to(model.dtype)
    model.requires_grad_(False)
    return EvaluatedGPT(model, Tokenizer.load(path))


def _replace(block: Block, before: Callable[..., Any], after: Callable[..., Any]) -> None:
    """Gives a block other functions for its two halves."""
    for name, function in (("before", before), ("after", after)):
        setattr(block, name, function)

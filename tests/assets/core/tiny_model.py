"""A random two-layer transformer with a word tokenizer: small, causal, and fast enough for tests.

The vocabulary is tiny, so that a random model matches an answer now and then and options collide.
`load` is what a recipe's `file.py:function` loader looks like.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PIECES = re.compile(r" ?\w+|\s|[^\w\s]")


class PlainModel:
    """Tokens to logits, nothing more."""

    bos_id = 0
    device = "cpu"

    def __init__(self, *, vocab_size: int = 13, seed: int = 0, dtype: str = "float32") -> None:
        self.vocab_size, self.dtype = vocab_size, dtype
        self.compute = getattr(torch, dtype)
        self.calls: list[tuple[str, int]] = []  # (method, padded tokens)
        generator = torch.Generator().manual_seed(seed)

        def matrix(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.compute)

        self.embed, self.unembed = matrix(vocab_size, 16), matrix(16, vocab_size)
        self.layers = [[matrix(16, 16) / 4 for _ in range(4)] for _ in range(2)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        size = self.vocab_size - 1
        return [[1 + zlib.crc32(p.encode()) % size for p in PIECES.findall(t)] for t in texts]

    def logits(self, tokens: Tensor) -> Tensor:
        self.calls.append(("logits", tokens.numel()))
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
        return self._states(tokens, positions, None)[0] @ self.unembed

    def _states(
        self, tokens: Tensor, positions: Tensor, past: list[Any] | None, seen: Tensor | None = None
    ) -> tuple[Tensor, list[Any]]:
        """(B, T) tokens at (B, T) positions, after (B, P) remembered ones of which `seen` count."""
        T = tokens.shape[1]
        angle = positions[..., None] / 10.0 ** torch.linspace(0, 4, 8)
        x = self.embed[tokens] + torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.compute)
        mask = torch.ones(T, T, dtype=torch.bool).tril().expand(len(tokens), T, T)
        if seen is not None:
            mask = torch.cat([seen[:, None].expand(-1, T, -1), mask], dim=-1)
        memory = []
        for index, (q, k, v, out) in enumerate(self.layers):
            keys, values = x @ k, x @ v
            memory.append((keys, values))
            if past is not None:
                keys = torch.cat([past[index][0], keys], dim=1)
                values = torch.cat([past[index][1], values], dim=1)
            scores = (x @ q) @ keys.transpose(1, 2) / math.sqrt(16)
            weights = scores.float().masked_fill(~mask, -math.inf).softmax(-1).to(self.compute)
            x = x + (weights @ values) @ out
            x = F.rms_norm(x, (16,))
        return x, memory


class HiddenModel(PlainModel):
    def hidden(self, tokens: Tensor) -> Tensor:
        self.calls.append(("hidden", tokens.numel()))
        return self._states(tokens, torch.arange(tokens.shape[1]).expand(tokens.shape), None)[0]

    def head(self, hidden: Tensor) -> Tensor:
        self.calls.append(("head", len(hidden)))
        return hidden @ self.unembed


class PrefixModel(HiddenModel):
    def prefill(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        self.calls.append(("prefill", tokens.numel()))
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
        states, memory = self._states(tokens, positions, None)
        return states, (memory, lengths)

    def extend(self, cache: Any, rows: Tensor, tokens: Tensor) -> Tensor:
        self.calls.append(("extend", tokens.numel()))
        memory, lengths = cache
        past = [(keys[rows], values[rows]) for keys, values in memory]
        begin = lengths[rows][:, None]
        seen = torch.arange(past[0][0].shape[1]) < begin
        return self._states(tokens, begin + torch.arange(tokens.shape[1]), past, seen)[0]


def load(path: Path, *, device: str = "cpu", dtype: str = "auto") -> PrefixModel:
    """The model whose seed stands in `config.json`."""
    config = json.loads((path / "config.json").read_text())
    model = PrefixModel(seed=config["seed"], dtype="float32" if dtype == "auto" else dtype)
    model.tokenizer_digest = "words"
    return model

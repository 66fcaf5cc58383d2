"""Generation: batches of prompts of any lengths, keys and values cached, one forward pass a token.

Greedy at temperature 0. Otherwise every row draws from its own random stream, seeded with
(seed, row): what a prompt is answered does not depend on who shares the batch, up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reference.model.gpt import GPT
from reference.model.kv_cache import KVCache


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: 0 takes the likeliest token.
        top_k: Draw among the k likeliest; 0: among all.
        top_p: Draw among the likeliest that together have this probability; 1: among all.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "temperature", "top_k"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, it must be above 0 and at most 1")


class Answer(NamedTuple):
    """Generated tokens; `ended`: a stop token followed (it is left out), not the length limit."""

    ids: list[int]
    ended: bool


def generate(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: Sampling, stop: Collection[int] = ()
) -> list[Answer]:
    """One answer a prompt, in order; see `stream`."""
    ids: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for row, token in stream(model, prompts, sampling, stop):
        if token in stop:
            ended[row] = True
        else:
            ids[row].append(token)
    return [Answer(*answer) for answer in zip(ids, ended, strict=True)]


@torch.no_grad()
def stream(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: Sampling, stop: Collection[int] = ()
) -> Iterator[tuple[int, int]]:
    """Pairs (row, token) as they are generated; a row's stop token is its last.

    Args:
        prompts: At least one token each.
    """
    if not prompts or not sampling.max_new_tokens:
        return
    if not all(prompts):
        raise ValueError("a prompt has no token; begin with BOS")
    max_len = max(map(len, prompts)) + sampling.max_new_tokens
    cache = KVCache(model.config, len(prompts), max_len, model.device, model.dtype)
    draws = [row_generator(sampling.seed, row) for row in range(len(prompts))]
    rows = list(range(len(prompts)))
    tokens, counts = pad_right(prompts, model.device)
    for new in range(sampling.max_new_tokens):
        cache.append_counts(counts)
        hidden = model.hidden(tokens, cache)  # (B, T, C)
        last = torch.tensor(counts, device=model.device) - 1
        logits = model.logits(hidden[torch.arange(len(rows), device=model.device), last])  # (B, V)
        chosen = choose(logits, sampling, [draws[row] for row in rows])
        yield from zip(rows, chosen, strict=True)
        going = [i for i, token in enumerate(chosen) if token not in stop]
        if not going or new + 1 == sampling.max_new_tokens:
            return
        if len(going) < len(rows):  # finished rows cost nothing
            cache = cache.select(going)
            rows = [rows[i] for i in going]
            chosen = [chosen[i] for i in going]
        tokens, counts = torch.tensor(chosen, device=model.device)[:, None], [1] * len(rows)


def choose(logits: Tensor, sampling: Sampling, draws: Sequence[torch.Generator]) -> list[int]:
    """A token for each row of logits (B, V), fp32."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    candidates = None
    if 0 < sampling.top_k < logits.size(-1):
        logits, candidates = logits.topk(sampling.top_k)  # (B, k), (B, k)
    if sampling.top_p < 1 and candidates is None:
        logits, candidates = logits.sort(descending=True)
    probabilities = (logits / sampling.temperature).softmax(-1).cpu()
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    drawn = torch.stack(
        [
            torch.multinomial(row, 1, generator=draw)
            for row, draw in zip(probabilities, draws, strict=True)
        ]
    )  # (B, 1)
    if candidates is not None:
        drawn = candidates.cpu().gather(1, drawn)
    return drawn[:, 0].tolist()


@torch.no_grad()
def next_token_logits(model: GPT, prompts: Sequence[Sequence[int]]) -> Tensor:
    """(N, V) fp32 logits of the token after each prompt, in one forward pass."""
    tokens, counts = pad_right(prompts, model.device)
    hidden = model.hidden(tokens)  # causal: the padding at the right changes nothing
    last = torch.tensor(counts, device=model.device) - 1
    return model.logits(hidden[torch.arange(len(prompts), device=model.device), last])


def pad_right(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, list[int]]:
    """Prompts as one (B, T) int64 tensor, zeros at the right, and their lengths."""
    counts = [len(prompt) for prompt in prompts]
    tokens = torch.zeros((len(prompts), max(counts)), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    return tokens.to(device), counts


def row_generator(seed: int, row: int) -> torch.Generator:
    """The random stream of one row."""
    # Seeds next to each other give unlike streams: torch's CPU generator is a Mersenne twister
    # whose state is filled from the seed.
    return torch.Generator().manual_seed((seed << 20) + row)

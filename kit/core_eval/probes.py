"""Probes of a model: is it a causal, normalised language model, whatever else is in its batch?

`verify` (V23) runs `probe_model` on a submitted checkpoint. `check_fast_path` is the evaluator's
own use of the same idea: optional methods count only if they repeat the plain logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.core_eval.model import EvalModel, Paths, max_seq_len, model_device, offered_paths

if TYPE_CHECKING:
    from torch import Tensor

PROBE_SEED = 4090
# The largest difference of log-probabilities that rounding explains, by the precision of the model.
# Kernels for other shapes add in another order: fp32 keeps about 7 digits, bf16 fewer than 3.
TOLERANCE = {"float32": 2e-3, "float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True)
class Probe:
    """One property: how far the model was from it, and how far rounding may take it."""

    name: str
    passed: bool
    found: float
    allowed: float
    message: str


def probe_model(model: EvalModel, *, length: int = 48, seed: int = PROBE_SEED) -> list[Probe]:
    """The three properties that a CORE score takes for granted, tried on random tokens.

    1. Later tokens do not change earlier logits.
    2. The probabilities of the next token are finite and sum to one. Logits are scores, so this is
       asked of what they become: any finite logits give a distribution over the vocabulary.
    3. A sequence's logits depend neither on its place in a batch nor on padding.
    """
    import torch

    limit = max_seq_len(model)
    length = min(length, limit) if limit else length
    with torch.inference_mode():
        tokens = _random_tokens(model, 4, length, seed)
        plain = _log_probs(model, tokens)  # (4, T, V)
        changed = tokens.clone()
        half = length // 2
        changed[:, half:] = _random_tokens(model, 4, length - half, seed + 1)
        look_ahead = _distance(plain[:, :half], _log_probs(model, changed)[:, :half])
        total = plain.exp().sum(dim=-1)
        mass = _distance(total, torch.ones_like(total))
        order = torch.tensor([2, 0, 3, 1], device=tokens.device)
        shuffled = _distance(plain[order], _log_probs(model, tokens[order]))
        alone = max(
            _distance(plain[row : row + 1], _log_probs(model, tokens[row : row + 1]))
            for row in range(len(tokens))
        )
        short = tokens[:1, :half]
        padded = _distance(plain[:1, :half], _log_probs(model, short))
    allowed = tolerance(model)
    return [
        _probe(
            "causal", look_ahead, allowed, "later tokens change the logits of earlier positions"
        ),
        _probe("normalised", mass, 1e-3, "the probabilities of the next token do not sum to one"),
        _probe(
            "batch_independent",
            max(shuffled, alone, padded),
            allowed,
            "a sequence's logits depend on its batch or its padding",
        ),
    ]


def check_fast_path(model: EvalModel) -> tuple[Paths, str]:
    """Which optional methods repeat the model's plain logits, and why others are left unused."""
    import torch

    offered = offered_paths(model)
    if not offered.hidden:
        return offered, ""
    fast: Any = model
    limit = max_seq_len(model) or 40
    length = min(40, limit)
    with torch.inference_mode():
        tokens = _random_tokens(model, 3, length, PROBE_SEED)
        plain = _log_probs(model, tokens)
        allowed = tolerance(model)
        hidden = fast.hidden(tokens)  # (3, T, C)
        off = _distance(plain, _log_softmax(fast.head(hidden.flatten(0, 1)).view_as(plain)))
        if not off <= allowed:
            return Paths(False, False), (
                f"the model's hidden/head methods differ from its logits by {off:.3g} nats; "
                "they are not used"
            )
        if not offered.prefix or length < 4:
            return Paths(True, False), ""
        # Rows of uneven length, taken in another order and more than once.
        cut = [length // 2, length // 4, length // 2 - 1]
        device = tokens.device
        prefix = tokens[:, : max(cut)].clone()
        for row, kept in enumerate(cut):
            prefix[row, kept:] = model.bos_id
        states, cache = fast.prefill(prefix, torch.tensor(cut, device=device))
        rows, width = [2, 0, 1, 0], length - max(cut)
        more = torch.stack([tokens[row, cut[row] : cut[row] + width] for row in rows])
        for _ in range(2):  # a cache must not change by being read
            extended = fast.extend(cache, torch.tensor(rows, device=device), more)  # (4, S, C)
            parts = [(plain[row, : cut[row]], states[row, : cut[row]]) for row in range(3)]
            parts += [
                (plain[row, cut[row] : cut[row] + width], extended[r]) for r, row in enumerate(rows)
            ]
            off = max(_distance(a, _log_softmax(fast.head(b))) for a, b in parts)
            if not off <= allowed:
                return Paths(True, False), (
                    f"the model's prefix cache differs from its logits by {off:.3g} nats; "
                    "it is not used"
                )
    return Paths(True, True), ""


def tolerance(model: EvalModel) -> float:
    """The nats that rounding may make between two ways of computing one log-probability."""
    dtype = str(getattr(model, "dtype", "float32")).removeprefix("torch.")
    return TOLERANCE.get(dtype, TOLERANCE["bfloat16"])


def _probe(name: str, found: float, allowed: float, message: str) -> Probe:
    passed = found <= allowed  # False for NaN
    return Probe(name, passed, found, allowed, "" if passed else message)


def _random_tokens(model: EvalModel, rows: int, length: int, seed: int) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.vocab_size, (rows, length), generator=generator)
    return tokens.to(model_device(model))


def _log_softmax(logits: Tensor) -> Tensor:
    import torch

    return torch.log_softmax(logits.float(), dim=-1)


def _log_probs(model: EvalModel, tokens: Tensor) -> Tensor:
    return _log_softmax(model.logits(tokens))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())

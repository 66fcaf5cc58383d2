"""Probes of a model: is it a causal, normalised language model, whatever else is in its batch?

`verify` (V23) runs `probe_model` on a submitted checkpoint, and so does every evaluation before it
scores anything. `PathProof` is the evaluator's other use of the same idea: batches and optional
methods count only if they repeat the plain logits of each sequence alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.core_eval.model import EvalModel, Paths, max_seq_len, model_device, offered_paths
from kit.errors import SchemaError

if TYPE_CHECKING:
    from torch import Tensor

PROBE_SEED = 4090
PROBE_TOKENS = 48
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


def probe_model(model: EvalModel) -> list[Probe]:
    """The three properties that a CORE score takes for granted, tried on random tokens.

    1. Later tokens do not change earlier logits.
    2. The probabilities of the next token are finite and sum to one. Logits are scores, so this is
       asked of what they become: any finite logits give a distribution over the vocabulary.
    3. A sequence's logits depend neither on its place in a batch nor on padding.
    """
    import torch

    limit = max_seq_len(model)
    length = min(PROBE_TOKENS, limit) if limit else PROBE_TOKENS
    with torch.inference_mode():
        tokens = _random_tokens(model, 4, length, PROBE_SEED)
        plain = _log_probs(model, tokens)  # (4, T, V)
        allowed = tolerance(model)
        look_ahead, causal = _look_ahead(model, tokens, plain, allowed)
        half = length // 2
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
    return [
        _probe("causal", look_ahead, causal, "later tokens change the logits of earlier positions"),
        _probe("normalised", mass, 1e-3, "the probabilities of the next token do not sum to one"),
        _probe(
            "batch_independent",
            max(shuffled, alone, padded),
            allowed,
            "a sequence's logits depend on its batch or its padding",
        ),
    ]


class PathProof:
    """Proves which ways of computing repeat the plain logits, at the lengths that are scored.

    A window, a trained length or a rotary scaling shows only in sequences that reach past it, under
    whatever name the configuration gives it. So the proof runs on sequences as long as the longest
    that will be scored, and again when a longer one comes. What fails once is not used again.

    Args:
        note: Receives a sentence for each way of computing that is not used.

    Raises:
        SchemaError: The model is not a causal language model, gives NaN, or its logits depend on
            earlier calls: no score of it would mean anything.
    """

    def __init__(self, model: EvalModel, note: Callable[[str], None] = lambda text: None) -> None:
        self._model, self._note = model, note
        self._paths = offered_paths(model)
        self._proven = (0, 0, 0)
        require_sound(model)

    def paths(self, longest: int, prefix: int = 0, suffix: int = 0) -> Paths:
        """What may be used for sequences of up to `longest` tokens.

        Args:
            prefix: The longest text that several sequences share and the cache will hold.
            suffix: The longest text that continues a cached one.
        """
        needed = (longest, prefix, suffix)
        if any(n > proven for n, proven in zip(needed, self._proven, strict=True)):
            self._proven = tuple(map(max, needed, self._proven))  # type: ignore[assignment]
            self._paths, why = check_fast_path(self._model, *self._proven, offered=self._paths)
            if why:
                self._note(why)
        return self._paths


def require_sound(model: EvalModel) -> None:
    """Refuses what is no causal language model before anything is scored.

    Raises:
        SchemaError: With the property that the model lacks.
    """
    import torch

    limit = max_seq_len(model)
    with torch.inference_mode():
        tokens = _random_tokens(model, 2, min(24, limit) if limit else 24, PROBE_SEED)
        plain = _log_probs(model, tokens)
        if not bool(torch.isfinite(plain).all()):
            raise SchemaError(
                "the model gives NaN or infinite logits",
                hint="The checkpoint is broken, or its dtype overflows: try --dtype float32.",
            )
        found, allowed = _look_ahead(model, tokens, plain, tolerance(model))
    if not found <= allowed:
        raise SchemaError(
            "this is not a causal language model: later tokens change the logits of earlier "
            f"positions (by {found:.3g} nats; {allowed:.3g} allowed)",
            hint="Encoders such as BERT see the text that they would have to predict; no score of "
            "theirs can be compared.",
        )


def check_fast_path(
    model: EvalModel,
    longest: int = 40,
    prefix: int = 20,
    suffix: int = 20,
    *,
    offered: Paths | None = None,
) -> tuple[Paths, str]:
    """Which ways of computing repeat the model's plain logits, and why others are left unused.

    Args:
        longest: Tokens of the longest sequence.
        prefix: Tokens of the longest cached text.
        suffix: Tokens of the longest continuation of a cached text.
        offered: What to try; None: all that the model has methods for.

    Raises:
        SchemaError: The same sequence gives other logits after other calls.
    """
    import torch

    offered = offered_paths(model) if offered is None else offered
    limit = max_seq_len(model) or 2**31
    longest = min(max(longest, prefix, 4), limit)
    with torch.inference_mode():
        trial = _Trial(model, longest)
        trial.require_same_again()
        hidden, prefixed, batch, why = offered.hidden, offered.prefix, offered.batch, []
        if hidden and (off := trial.difference(trial.alone_by_hidden)):
            hidden = prefixed = False
            why.append(f"the model's hidden/head methods differ from its logits {off}")
        if batch and (off := trial.difference(lambda: trial.batched(hidden))):
            batch = prefixed = False
            why.append(
                f"a sequence's logits depend on its batch or its padding {off}: each sequence is "
                "scored alone"
            )
        if prefixed and limit >= 4:
            size = min(prefix, limit - 1)
            if off := trial.difference(lambda: trial.through_cache(size, suffix, limit)):
                prefixed = False
                why.append(f"the model's prefix cache differs from its logits {off}")
        elif prefixed:
            prefixed = False
    text = "; ".join(why)
    return Paths(hidden, prefixed, batch), f"{text}; not used" if text else ""


class _Trial:
    """Random sequences of uneven length, and their plain logits, each alone.

    The shortest has at most eight tokens, the longest all: some length between them is a trained
    length or a window, if the model has any that matters here.
    """

    def __init__(self, model: EvalModel, longest: int) -> None:
        self._model: Any = model
        lengths = (longest, max(2, longest // 2), max(1, longest // 5), min(8, longest // 2))
        tokens = _random_tokens(model, len(lengths), longest, PROBE_SEED)
        self._rows = [tokens[r, :n] for r, n in enumerate(lengths)]
        self._at = [_positions(n, model_device(model)) for n in lengths]
        self._plain = [self._alone(r) for r in range(len(lengths))]
        self._largest = tolerance(model)
        short = _random_tokens(model, 3, min(24, longest), PROBE_SEED + 2)
        noise = _mean_distance(
            _log_probs(model, short)[:1], _log_probs(model, short[:1, : short.shape[1]])
        )
        # Rounding moves all log-probabilities by about the same; a lost token moves their mean.
        self._mean = min(self._largest / 4, max(self._largest / 20, 4 * noise))

    def require_same_again(self) -> None:
        """Row 1 came after a longer one; now it comes after a shorter one."""
        off = self._words([(self._plain[1], self._alone(1))])
        if off:
            raise SchemaError(
                f"the same text gets another score after other texts {off}",
                hint="The model keeps state between calls or draws random numbers; it cannot be "
                "scored.",
            )

    def difference(self, compute: Callable[[], list[tuple[Tensor, Tensor]]]) -> str:
        """How far the pairs are apart, in words; empty if no further than rounding takes them."""
        try:
            return self._words(compute())
        except Exception as error:  # a model's own method may raise anything
            return f"or fail ({str(error).splitlines()[0] if str(error) else type(error).__name__})"

    def alone_by_hidden(self) -> list[tuple[Tensor, Tensor]]:
        """All but the longest sequence; `batched` has that one."""
        return [
            (self._plain[r], self._head(self._model.hidden(self._rows[r][None])[0, self._at[r]]))
            for r in (1, 2, 3)
        ]

    def batched(self, by_hidden: bool) -> list[tuple[Tensor, Tensor]]:
        """Sequences of different length padded into one batch."""
        order = (3, 0, 1)
        batch = self._rows[0].new_full((len(order), len(self._rows[0])), self._model.bos_id)
        for place, r in enumerate(order):
            batch[place, : len(self._rows[r])] = self._rows[r]
        states = self._model.hidden(batch) if by_hidden else self._model.logits(batch)
        turn = self._head if by_hidden else _log_softmax
        return [(self._plain[r], turn(states[p, self._at[r]])) for p, r in enumerate(order)]

    def through_cache(self, prefix: int, suffix: int, limit: int) -> list[tuple[Tensor, Tensor]]:
        """Two cached rows, of which the shorter leaves a hole before what continues it."""
        import torch

        model, device = self._model, self._rows[0].device
        cut = [max(2, prefix), max(1, prefix // 4)]
        suffix = max(1, min(suffix, limit - cut[1]))
        tokens = _random_tokens(model, 2, cut[0] + suffix, PROBE_SEED + 3)
        held = tokens[:, : cut[0]].clone()
        held[1, cut[1] :] = model.bos_id
        ends = [min(n + suffix, limit) for n in cut]
        plain = [_log_probs(model, tokens[r : r + 1, : ends[r]])[0] for r in (0, 1)]
        states, cache = model.prefill(held, torch.tensor(cut, device=device))
        pairs = [
            (plain[r][at], self._head(states[r, at]))
            for r in (0, 1)
            for at in [_positions(cut[r], device)]
        ]
        # A row may be taken more than once, and none must change by being read.
        rows = [r for r in (1, 0, 1) if cut[r] + suffix <= limit]
        more = torch.stack([tokens[r, cut[r] : cut[r] + suffix] for r in rows])
        at = _positions(suffix, device)
        for _ in range(2):
            extended = model.extend(cache, torch.tensor(rows, device=device), more)  # (R, S, C)
            pairs += [
                (plain[r][cut[r] + at], self._head(extended[place, at]))
                for place, r in enumerate(rows)
            ]
        return pairs

    def _words(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> str:
        found = [(_distance(a, b), _mean_distance(a, b)) for a, b in pairs]
        if all(far <= self._largest and mean <= self._mean for far, mean in found):
            return ""  # no NaN either: it compares as False
        largest, mean = (max(column) for column in zip(*found, strict=True))
        return f"by up to {largest:.3g} nats, {mean:.2g} in the mean"

    def _alone(self, r: int) -> Tensor:
        """(N, V) log-probabilities of row `r` at some of its positions, by the plain method."""
        row = self._rows[r][None]
        return _log_softmax(self._model.logits(row)[0, self._at[r]])

    def _head(self, states: Tensor) -> Tensor:
        return _log_softmax(self._model.head(states))


def tolerance(model: EvalModel) -> float:
    """The nats that rounding may make between two ways of computing one log-probability."""
    dtype = str(getattr(model, "dtype", "float32")).removeprefix("torch.")
    return TOLERANCE.get(dtype, TOLERANCE["bfloat16"])


def _probe(name: str, found: float, allowed: float, message: str) -> Probe:
    passed = found <= allowed  # False for NaN
    return Probe(name, passed, found, allowed, "" if passed else message)


def _look_ahead(
    model: EvalModel, tokens: Tensor, plain: Tensor, allowed: float
) -> tuple[float, float]:
    """How far later tokens move earlier logits, and how far they may.

    A causal model computes an earlier position from the same numbers whatever follows; only experts
    that share a batch round anew. An encoder of small weights moves its logits by less than
    rounding elsewhere may, but earlier and later tokens alike: a fifth of what earlier ones do is
    the bound. Two cuts, for attention within blocks.
    """
    length, worst, bound = tokens.shape[1], 0.0, allowed
    for cut in (length // 2, length // 2 + 1):
        if not 0 < cut < length:
            continue
        other = _random_tokens(model, len(tokens), length, PROBE_SEED + 1)
        later, earlier = tokens.clone(), tokens.clone()
        later[:, cut:], earlier[:, :cut] = other[:, cut:], other[:, :cut]
        ahead = _distance(plain[:, :cut], _log_probs(model, later)[:, :cut])
        if not ahead <= 0.0:  # true for NaN too
            behind = _distance(plain[:, cut:], _log_probs(model, earlier)[:, cut:])
            bound = min(bound, behind / 5)
        worst = max(worst, ahead) if ahead == ahead else ahead
    return worst, bound


def _positions(length: int, device: str | Any) -> Tensor:
    """Up to 48 positions of a sequence: some all over, and the last ones."""
    import torch

    spread = torch.linspace(0, length - 1, min(length, 32)).long()
    last = torch.arange(max(0, length - 16), length)
    chosen: Tensor = torch.unique(torch.cat([spread, last]))
    return chosen.to(device)


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


def _mean_distance(a: Tensor, b: Tensor) -> float:
    """The largest, over positions, of the mean difference over the vocabulary."""
    return float((a - b).abs().mean(dim=-1).max())


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())

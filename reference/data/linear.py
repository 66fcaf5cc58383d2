"""A linear model on hashed words and word pairs: the quality score and learned domain labels.

One weight a bucket and class, features of length one, AdaGrad on the softmax loss: the shape of
fastText's classifier without its hidden layer. Training is plain numpy in a fixed order, so the
same examples give the same weights.

References:
    Joulin et al. 2016, Bag of tricks for efficient text classification
    Li et al. 2024, DataComp-LM (a linear classifier as the best of its quality filters)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reference.data.words import ngram_hashes, word_hashes

BUCKETS = 1 << 18
MAX_WORDS = 2000  # of the start of a text
EPOCHS, BATCH, RATE = 8, 32, 0.5
HELD_OUT = 5  # every fifth example


class LinearModel:
    """Scores texts. `labels` name the classes; of a quality model the last is "clean"."""

    def __init__(self, labels: Sequence[str], weights: np.ndarray, bias: np.ndarray) -> None:
        self.labels = list(labels)
        self.weights = weights  # (BUCKETS, K) float32
        self.bias = bias  # (K,) float32

    @property
    def digest(self) -> str:
        """ "sha256:…" of labels and weights."""
        found = hashlib.sha256("\n".join(self.labels).encode())
        found.update(self.weights.tobytes())
        found.update(self.bias.tobytes())
        return f"sha256:{found.hexdigest()}"

    def probabilities(self, words: np.ndarray) -> np.ndarray:
        """(K,) float64, of a text given by its word hashes."""
        indices = features(words)
        total = self.weights[indices].sum(axis=0, dtype=np.float64)
        return softmax(total / max(1.0, len(indices) ** 0.5) + self.bias)

    def save(self, path: Path) -> None:
        """Writes the weights (.npz without pickles)."""
        with path.open("wb") as file:
            np.savez(file, labels=np.array(self.labels), weights=self.weights, bias=self.bias)

    @classmethod
    def load(cls, path: Path) -> LinearModel:
        with np.load(path, allow_pickle=False) as file:
            return cls([str(label) for label in file["labels"]], file["weights"], file["bias"])

    @classmethod
    def train(
        cls, texts: Sequence[str], classes: Sequence[int], labels: Sequence[str]
    ) -> LinearModel:
        """Learns from `texts`, `classes[i]` being an index into `labels`.

        Classes count alike, however many examples each has.
        """
        documents = [features(word_hashes(text)) for text in texts]
        known = np.asarray(classes)
        counts = np.bincount(known, minlength=len(labels))
        balance = len(known) / (len(labels) * np.maximum(1, counts))
        weights = np.zeros((BUCKETS, len(labels)), dtype=np.float32)
        bias = np.zeros(len(labels), dtype=np.float32)
        squares = np.full((BUCKETS, 1), 1e-6, dtype=np.float32)
        for epoch in range(EPOCHS):
            order = np.random.default_rng([epoch, len(documents)]).permutation(len(documents))
            for begin in range(0, len(order), BATCH):
                _step(
                    weights, bias, squares, documents, known, balance, order[begin : begin + BATCH]
                )
        return cls(labels, weights, bias)


def _step(
    weights: np.ndarray,
    bias: np.ndarray,
    squares: np.ndarray,
    documents: Sequence[np.ndarray],
    classes: np.ndarray,
    balance: np.ndarray,
    chosen: np.ndarray,
) -> None:
    """One AdaGrad step on the examples `chosen`, in place."""
    texts = [documents[index] for index in chosen]
    lengths = np.array([len(text) for text in texts])
    indices = np.concatenate(texts)
    scale = 1.0 / np.sqrt(np.maximum(1, lengths))
    sums = np.add.reduceat(
        np.concatenate([weights[indices], np.zeros((1, len(bias)), np.float32)]),
        np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        axis=0,
    )
    sums[lengths == 0] = 0  # reduceat gives the neighbour's first row there
    slope = softmax(sums * scale[:, None] + bias)
    slope[np.arange(len(chosen)), classes[chosen]] -= 1
    slope *= balance[classes[chosen]][:, None] / len(chosen)
    touched, place = np.unique(indices, return_inverse=True)
    gradient = np.zeros((len(touched), len(bias)), dtype=np.float32)
    per_feature = np.repeat(slope * scale[:, None], lengths, axis=0)
    for label in range(len(bias)):
        gradient[:, label] = np.bincount(place, per_feature[:, label], len(touched))
    squares[touched] += np.square(gradient).sum(axis=1, keepdims=True)
    weights[touched] -= RATE * gradient / np.sqrt(squares[touched])
    bias -= RATE * 0.1 * slope.sum(axis=0).astype(np.float32)


def features(words: np.ndarray) -> np.ndarray:
    """Distinct buckets of the first words and word pairs."""
    words = words[:MAX_WORDS]
    hashes = np.concatenate([words, ngram_hashes(words, 2)])
    return np.unique(hashes >> np.uint64(64 - BUCKETS.bit_length() + 1)).astype(np.int64)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """How often a positive score is above a negative one; ties count half."""
    both = np.concatenate([positive, negative])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = len(positive)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))

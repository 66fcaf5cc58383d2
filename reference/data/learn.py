"""Learns the models of a build from example files: the quality score and the domain labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reference.data.linear import HELD_OUT, LinearModel, auc
from reference.data.sources import read_examples
from reference.data.spec import Domains, Quality
from reference.data.words import word_hashes
from reference.errors import TrainerError


def learn_quality(section: Quality, path: Path) -> dict[str, Any]:
    """Learns clean from noisy, saves the model at `path`; what `learn` says about it."""
    examples = {
        "noisy": _examples(section.noisy, section.text, section.examples),
        "clean": _examples(section.clean, section.text, section.examples),
    }
    return learn(examples, path)


def learn_domains(section: Domains, path: Path) -> dict[str, Any]:
    """Learns the domains by name, saves the model at `path`; what `learn` says about it."""
    examples = {
        name: _examples((pattern,), section.text, section.per_domain)
        for name, pattern in sorted(section.examples.items())
    }
    return learn(examples, path)


def learn(examples: dict[str, list[str]], path: Path) -> dict[str, Any]:
    """Learns a model, and from four fifths of the examples another to say how good it is.

    Returns:
        labels, examples by label, digest, held_out (documents), accuracy, and auc of two labels.

    Raises:
        TrainerError: A label has too few examples.
    """
    labels = list(examples)
    for label, texts in examples.items():
        if len(texts) < HELD_OUT:
            raise TrainerError(
                "bad_input",
                f"{label}: {len(texts)} example documents are too few to learn from",
                f"Give at least {HELD_OUT}; hundreds are better.",
            )
    texts = [text for label in labels for text in examples[label]]
    classes = [number for number, label in enumerate(labels) for _ in examples[label]]
    held = np.arange(len(texts)) % HELD_OUT == 0
    trained = LinearModel.train(
        [text for text, out in zip(texts, held, strict=True) if not out],
        [known for known, out in zip(classes, held, strict=True) if not out],
        labels,
    )
    truth = np.asarray(classes)[held]
    scores = np.stack(
        [
            trained.probabilities(word_hashes(text))
            for text, out in zip(texts, held, strict=True)
            if out
        ]
    )
    model = LinearModel.train(texts, classes, labels)
    model.save(path)
    found = {
        "labels": labels,
        "examples": {label: len(texts) for label, texts in examples.items()},
        "digest": model.digest,
        "held_out": int(held.sum()),
        "accuracy": float((scores.argmax(axis=1) == truth).mean()),
    }
    if len(labels) == 2:
        found["auc"] = auc(scores[truth == 1, 1], scores[truth == 0, 1])
    return found


def _examples(patterns: Sequence[str], text: str, limit: int) -> list[str]:
    share = max(1, limit // len(patterns))
    return [item for pattern in patterns for item in read_examples(pattern, text, share)]

"""Probes: a sound model passes, and each broken one fails the probe that is about its fault."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kit.core_eval.loaders import from_recipe
from kit.core_eval.model import Paths
from kit.core_eval.probes import check_fast_path, probe_model

ASSETS = Path(__file__).parents[1] / "assets/core"


def tiny(name: str = "PrefixModel", **options: Any) -> Any:
    return from_recipe(f"tiny_model.py:{name}", ASSETS)(**options)


def failed(model: Any) -> list[str]:
    return [probe.name for probe in probe_model(model) if not probe.passed]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_causal_model_passes(dtype: str) -> None:
    assert failed(tiny(dtype=dtype)) == []


def test_a_model_that_looks_ahead_fails() -> None:
    model = tiny()
    original = model.logits

    def peek(tokens: Tensor) -> Tensor:
        logits = original(tokens)
        after = torch.nn.functional.one_hot(tokens.roll(-1, dims=1), model.vocab_size)
        return logits + after.float()

    model.logits = peek
    assert "causal" in failed(model)


def test_a_model_whose_scores_are_no_distribution_fails() -> None:
    model = tiny()
    original = model.logits
    model.logits = lambda tokens: torch.full_like(original(tokens), float("inf"))
    assert "normalised" in failed(model)


def test_a_model_that_mixes_its_batch_fails() -> None:
    model = tiny()
    original = model.logits

    def mix(tokens: Tensor) -> Tensor:
        logits = original(tokens)
        return logits + 0.1 * logits[:1]

    model.logits = mix
    assert failed(model) == ["batch_independent"]


def test_a_model_that_depends_on_padding_fails() -> None:
    model = tiny()
    original = model.logits
    model.logits = lambda tokens: original(tokens) * (1 + tokens.shape[1] / 100)
    assert failed(model) == ["batch_independent"]


def test_optional_methods_are_used_when_they_repeat_the_logits() -> None:
    assert check_fast_path(tiny("PlainModel")) == (Paths(False, False), "")
    assert check_fast_path(tiny("HiddenModel")) == (Paths(True, False), "")
    assert check_fast_path(tiny("PrefixModel")) == (Paths(True, True), "")


def test_a_head_that_differs_is_not_used() -> None:
    model = tiny()
    original = model.head
    model.head = lambda hidden: original(hidden).clamp(-1, 1)
    paths, why = check_fast_path(model)
    assert paths[:2] == (False, False) and "differ" in why


def test_a_cache_that_forgets_positions_is_not_used() -> None:
    model = tiny()
    original = model.extend

    def extend(cache: Any, rows: Tensor, tokens: Tensor) -> Tensor:
        memory, lengths = cache
        return original((memory, torch.full_like(lengths, memory[0][0].shape[1])), rows, tokens)

    model.extend = extend
    paths, why = check_fast_path(model)
    assert paths[:2] == (True, False) and "prefix cache" in why


def test_a_cache_that_changes_when_read_is_not_used() -> None:
    model = tiny()
    original = model.extend

    def extend(cache: Any, rows: Tensor, tokens: Tensor) -> Tensor:
        found = original(cache, rows, tokens)
        for keys, _ in cache[0]:
            keys.zero_()
        return found

    model.extend = extend
    assert check_fast_path(model)[0][:2] == (True, False)

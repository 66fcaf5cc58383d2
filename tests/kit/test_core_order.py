"""A score depends on model and text alone: any model, any order, any batch size (extra `eval`)."""

import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_hf import SHAPE, save

from kit.core_eval.bpb import evaluate_bpb
from kit.core_eval.encode import EncodedItem
from kit.core_eval.grouping import reach
from kit.core_eval.loaders import load_model
from kit.core_eval.model import offered_paths
from kit.core_eval.probes import PathProof
from kit.core_eval.score import Budget, score_items
from kit.errors import SchemaError

transformers: Any = pytest.importorskip(
    "transformers", reason="the extra eval is not installed", exc_type=ImportError
)
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4, "original_max_position_embeddings": 40}  # fmt: skip
# Kind -> class of config, class of model, what differs from SHAPE. Windows and trained lengths are
# 16 to 40 tokens; the longest sequences that are scored have 100.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "past_trained_length": (
        "LlamaConfig", "LlamaForCausalLM", {"max_position_embeddings": 40},
    ),
    "dynamic_ntk": (
        "LlamaConfig", "LlamaForCausalLM",
        {"max_position_embeddings": 40,
         "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "longrope": (
        "Phi3Config", "Phi3ForCausalLM",
        {"max_position_embeddings": 160, "original_max_position_embeddings": 40,
         "rope_parameters": LONG, "pad_token_id": 0},
    ),
    "yarn": (
        "LlamaConfig", "LlamaForCausalLM",
        {"max_position_embeddings": 160,
         "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                             "original_max_position_embeddings": 40}},
    ),
    "sliding_window": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 16}),
    "mixed_windows": (
        "Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8, "sliding_window": 16},
    ),
    "local_layers": (
        "GPTNeoConfig", "GPTNeoForCausalLM",
        {"num_layers": 2, "num_heads": 4, "window_size": 16,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128},
    ),
    "alibi": ("BloomConfig", "BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
    "learned_positions": (
        "GPT2Config", "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "experts": (
        "MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4, "sliding_window": None},
    ),
    "recurrent": ("MambaConfig", "MambaForCausalLM", {"state_size": 8}),
}  # fmt: skip
KINDS = sorted(MODELS)


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(folder: Path) -> Any:
    @cache
    def made(kind: str) -> Any:
        config, model, values = MODELS[kind]
        settings = {**SHAPE, "bos_token_id": 0, "eos_token_id": 0, **values}
        network = getattr(transformers, model)
        save(folder / kind, getattr(transformers, config)(**settings), network, noise=0.15)
        return load_model(folder / kind, device="cpu")

    return made


def some_items(seed: int, count: int, longest: int) -> list[EncodedItem]:
    """Items with two to four options after a prefix of 1 to `longest` tokens."""
    draw = random.Random(seed)
    items = []
    for _ in range(count):
        shared = draw.choice([draw.randint(1, 12), draw.randint(30, longest - 25)])
        options = [
            np.array([draw.randrange(320) for _ in range(draw.randint(1, 24))], dtype=np.int32)
            for _ in range(draw.randint(2, 4))
        ]
        prefix = np.array([0, *(draw.randrange(320) for _ in range(shared))], dtype=np.int32)
        items.append(EncodedItem(prefix, tuple(options), (len(prefix),) * len(options), 0))
    return items


def by_hand(model: Any, item: EncodedItem) -> list[float]:
    """Each sequence alone, every logit, nothing that a longer sequence left behind."""
    scores = []
    for option in item.suffixes:
        tokens = torch.from_numpy(np.concatenate((item.prefix, option)).astype(np.int64))
        with torch.inference_mode():
            logits = model.logits(tokens[None, :-1])[0].log_softmax(-1)
        start = len(item.prefix)
        picked = logits[range(start - 1, len(tokens) - 1), tokens[start:]]
        scores.append(-float(picked.mean()))
    return scores


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 9), order=st.randoms(use_true_random=False), budget=st.integers(1, 900))
def test_any_order_and_batch_size_give_the_scores_of_each_sequence_alone(
    kind: str, models: Any, seed: int, order: random.Random, budget: int
) -> None:
    model = models(kind)
    longest = 60 if model.max_seq_len == 64 else 100
    items = some_items(seed, 6, longest)
    order.shuffle(items)
    paths = PathProof(model).paths(*reach("multiple_choice", items, offered_paths(model)))
    found = score_items(model, "multiple_choice", items, budget=Budget(budget), paths=paths)
    expected = [by_hand(model, item) for item in items]
    assert [len(row) for row in found] == [len(row) for row in expected]
    for ours, plain in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, abs=1e-3)


TEXTS = ["An owl told a fox the story of a long winter. " * n for n in (1, 9, 3, 14, 2)]


@pytest.mark.parametrize("kind", ["dynamic_ntk", "longrope", "local_layers", "mixed_windows"])
def test_bits_per_byte_know_neither_order_nor_batch_size(kind: str, models: Any) -> None:
    model, notes = models(kind), []
    first = evaluate_bpb(model, TEXTS, seq_len=120, batch_tokens=1, note=notes.append)
    other = evaluate_bpb(model, [TEXTS[i] for i in (3, 0, 4, 2, 1)], seq_len=120, batch_tokens=900)
    assert other.bpb == pytest.approx(first.bpb, abs=1e-4)
    if kind in ("dynamic_ntk", "longrope"):
        assert any("each sequence is scored alone" in note for note in notes)


def test_a_window_that_only_long_sequences_reach_is_found_when_they_come(models: Any) -> None:
    notes: list[str] = []
    proof = PathProof(models("local_layers"), notes.append)
    assert proof.paths(14, 6, 6).prefix and not notes
    assert not proof.paths(90, 60, 24).prefix and "prefix cache" in notes[0]
    assert not proof.paths(14, 6, 6).prefix, "what failed once is not used again"


def encoder(kind: str, **values: Any) -> Any:
    settings = {**SHAPE, "max_position_embeddings": 514, "bos_token_id": 0, "eos_token_id": 0}
    return getattr(transformers, f"{kind}Config")(**{**settings, **values})


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("Bert", "BertLMHeadModel"),
        ("Roberta", "RobertaForCausalLM"),
        ("Electra", "ElectraForCausalLM"),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.filterwarnings("ignore:.*is_decoder")
def test_an_encoder_is_refused_however_small_its_weights(
    kind: str, head: str, noise: float, tmp_path: Path
) -> None:
    save(tmp_path, encoder(kind), getattr(transformers, head), noise=noise)
    model = load_model(tmp_path, device="cpu")
    with pytest.raises(SchemaError, match="not a causal language model"):
        evaluate_bpb(model, TEXTS)
    with pytest.raises(SchemaError, match="not a causal language model"):
        PathProof(model)


def test_a_decoder_of_the_same_family_is_scored(tmp_path: Path) -> None:
    config = encoder("Bert", is_decoder=True)
    save(tmp_path, config, transformers.BertLMHeadModel)
    assert evaluate_bpb(load_model(tmp_path, device="cpu"), TEXTS).bpb > 0


def test_logits_that_overflow_are_refused(models: Any, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    models("llama")
    shutil.copytree(folder / "llama", tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    found = load_file(file)
    found["lm_head.weight"][0] = 3e38
    save_file(found, file, metadata={"format": "pt"})
    with pytest.raises(SchemaError, match="NaN or infinite"):
        evaluate_bpb(load_model(tmp_path / "m", device="cpu"), TEXTS)


class Moody:
    """Tells the same text another score after others."""

    def __init__(self, model: Any) -> None:
        self._model, self._calls = model, 0
        self.vocab_size, self.bos_id, self.encode = model.vocab_size, 0, model.encode

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        logits: torch.Tensor = self._model.logits(tokens)
        return logits * (1 + 0.01 * (self._calls % 7))


def test_a_model_that_keeps_state_between_calls_is_refused(models: Any) -> None:
    with pytest.raises(SchemaError, match=r"causal|after other texts"):
        evaluate_bpb(Moody(models("llama")), TEXTS)

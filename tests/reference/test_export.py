"""The exported folder, loaded by the real transformers: same tokens, logits and greedy text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from reference.chat.conversation import render, render_prompt
from reference.chat.engine import Sampling, generate
from reference.config.model import ModelConfig
from reference.export.huggingface import MODELING, write_folder
from reference.export.mapping import obstacles
from reference.model.gpt import GPT
from reference.tokenizer.bpe import Tokenizer, split_pattern

transformers = pytest.importorskip("transformers", reason="transformers is not installed (eval)")

TEXT = (Path(__file__).parents[2] / "README.md").read_text() + "don't we'll I'M naïve 日本語 🙂 "
HARD = (
    "The year 1984 cost $12,345.67 (about 3.5 %).\n\n\tindented  text   with  spaces\r\n",
    "don't we'll I'M naïve façade 日本語 العربية русский 🙂🏽 ½ ²",
    "def f(x):\n    return x**2  # square\n\n\n",
    "  2 spaces  12 34\n 5\n\n 6  ",
    "",
    "\u200b\ufeff\xa0 a\x00b\x1f",
)
BASE = {"n_layer": 5, "n_embd": 48, "n_head": 4, "n_kv_head": 4, "seq_len": 96, "short_window": 11}
MAPS = {
    "value_embeddings": False, "x0_mix": False, "smear": False, "backout": False, "softcap": 0.0,
}  # fmt: skip
OURS = {
    "everything": {},
    "grouped queries": {"n_kv_head": 2},
    "swiglu": {"ffn": "swiglu"},
    "tied": {"tied_until": 1.0},
    "no smear": {"smear": False},
    "no backout": {"backout": False},
    "no x0": {"x0_mix": False},
    "no value embeddings": {"value_embeddings": False},
    "only short windows": {"window_pattern": "S"},
    "no cap": {"softcap": 0.0},
    "scales of norms": {"norm_scales": True},
    "one layer": {"n_layer": 1},
}
QWEN3 = {
    "plain": MAPS,
    "plain, grouped queries": {**MAPS, "n_kv_head": 1},
    "plain, swiglu, long": {**MAPS, "ffn": "swiglu", "window_pattern": "L"},
    "plain, tied": {**MAPS, "tied_until": 1.0},
    "plain, scales of norms": {**MAPS, "norm_scales": True},
}
# The others differ from these in what has no state between tokens.
GENERATE = ("everything", "grouped queries", "no value embeddings", "plain", "plain, swiglu, long")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 420)


def build(tokenizer: Tokenizer, **changes) -> GPT:
    config = dataclasses.replace(ModelConfig(tokenizer.vocab_size, **BASE), **changes)
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 1.0 if name in ("smear_scale", "backout_scale") else 0.1
            p.add_(spread * torch.randn(p.shape, generator=generator))
        model.resid_scale[0] = -0.7  # a sign that norms do see
    return model.place().eval()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads an exported folder with nothing but transformers' own code, or with the folder's."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code")
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def load(folder: Path, **options):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, **options
        )
        return model.eval(), tokenizer

    return load


@pytest.mark.parametrize("name", [*OURS, *QWEN3])
def test_logits_and_fifty_greedy_tokens_are_ours(tokenizer, load, tmp_path: Path, name) -> None:
    ours = build(tokenizer, **{**OURS, **QWEN3}[name])
    write_folder(ours, tokenizer, tmp_path / "hf", chat=True, dtype=torch.float32)
    remote = name in OURS
    assert (tmp_path / "hf" / MODELING).exists() == remote == bool(obstacles(ours.config))
    theirs, hf = load(tmp_path / "hf", **({"trust_remote_code": True} if remote else {}))
    tokens = torch.randint(0, 256, (3, 90), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-4, rtol=0)
    if name not in GENERATE:
        return
    # Rows of uneven length, padded at the left as transformers does; none may see another's length.
    messages = [
        [{"role": "user", "content": text}] for text in ("How are you?", "Ja", "don't " * 6)
    ]
    prompts = [render_prompt(tokenizer, conversation) for conversation in messages]
    end = tokenizer.special["<|assistant_end|>"]
    expected = generate(ours, prompts, Sampling(50), {end})
    inputs = hf.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    written = theirs.generate(**inputs, max_new_tokens=50, do_sample=False)
    for row, answer in zip(
        written[:, inputs["input_ids"].shape[1] :].tolist(), expected, strict=True
    ):
        assert row[: len(answer.ids)] == answer.ids
        assert row[len(answer.ids) :][:1] == [end] * answer.ended


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_the_fast_tokenizer_gives_our_ids(load, tmp_path: Path, digits: int) -> None:
    tokenizer = Tokenizer.train([TEXT], 900, pattern=split_pattern(digits))
    write_folder(build(tokenizer), tokenizer, tmp_path, chat=True, dtype=torch.float32)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert hf.is_fast
    for text in (*HARD, TEXT):
        ids = tokenizer.encode([text])[0]
        assert hf(text, add_special_tokens=False)["input_ids"] == ids
        assert hf(text)["input_ids"] == [tokenizer.bos_id, *ids]
        assert hf.decode(ids) == text


def test_the_chat_template_writes_our_conversations(tokenizer, tmp_path: Path) -> None:
    write_folder(build(tokenizer), tokenizer, tmp_path, chat=True, dtype=torch.float32)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    turns = [
        {"role": "user", "content": " Hi there.\n"},
        {"role": "assistant", "content": "Hello. "},
        {"role": "user", "content": "Bye"},
    ]
    for messages in (turns, [{"role": "system", "content": "Be short."}, *turns], turns[:2]):
        whole = hf.apply_chat_template(messages, return_dict=False)
        assert whole == list(render(tokenizer, messages).ids)
        asked = hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert asked == render_prompt(tokenizer, messages)
    with pytest.raises(Exception, match="in turn"):
        hf.apply_chat_template([turns[0], turns[0]])


def test_a_base_model_has_no_template_and_ends_at_the_next_document(tokenizer, tmp_path) -> None:
    names = write_folder(build(tokenizer), tokenizer, tmp_path, chat=False, dtype=torch.bfloat16)
    assert "chat_template.jinja" not in names
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eos_token_id"] == tokenizer.bos_id
    assert config["dtype"] == "bfloat16"

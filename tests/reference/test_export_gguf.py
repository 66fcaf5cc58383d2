"""The GGUF file, read back by the real `gguf` package, and by transformers' own reader of GGUF."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.overrides import override
from kit.recipe import load_recipe
from reference.chat.conversation import render_prompt
from reference.chat.engine import Sampling, generate
from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.export.gguf_file import FILE_NAME, obstacles, write_folder
from reference.export.mapping import qwen3_tensors
from reference.export.tokenizer import byte_letters
from reference.model.gpt import GPT
from reference.tokenizer.bpe import Tokenizer, split_pattern

gguf = pytest.importorskip("gguf", reason="gguf is not installed (eval)")
TEXT = (Path(__file__).parents[2] / "README.md").read_text() + "naïve 日本語 🙂 12345 1999 "
MAPS = {
    "value_embeddings": False, "x0_mix": False, "smear": False, "backout": False, "softcap": 0.0,
    "ffn": "swiglu", "window_pattern": "L",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 500, pattern=split_pattern(3))


def build(tokenizer: Tokenizer, **changes) -> GPT:
    shape = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_kv_head": 2, "seq_len": 64}
    config = ModelConfig(tokenizer.vocab_size, **{**shape, **MAPS, "norm_scales": True, **changes})
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.place().eval()


def read(folder: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(folder / FILE_NAME)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
    }
    return fields, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_file_holds_the_weights_tokens_and_shape(tokenizer, tmp_path: Path, dtype) -> None:
    model = build(tokenizer)
    files = write_folder(model, tokenizer, tmp_path, name="a run", chat=True, dtype=dtype)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    fields, tensors = read(tmp_path)
    expected = qwen3_tensors(model)
    assert len(tensors) == len(expected)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 3)
    for theirs, value in expected.items():
        stored = tensors[names.get_name(theirs, try_suffixes=(".weight",))]
        wanted = value.to(dtype).float() if value.dim() > 1 else value
        assert np.array_equal(stored.reshape(value.shape), wanted.numpy()), theirs
    shape = {
        "block_count": 3, "embedding_length": 64, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.key_length": 16, "context_length": 64,
        "feed_forward_length": model.config.ffn_dim,
    }  # fmt: skip
    assert {name: fields[f"qwen3.{name}"] for name in shape} == shape
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"
    letters = {letter: byte for byte, letter in byte_letters().items()}
    tokens = fields["tokenizer.ggml.tokens"]
    assert [bytes(letters[c] for c in t) for t in tokens[: len(tokenizer.ranks)]] == tokenizer.ranks
    assert tokens[tokenizer.bos_id] == "<|bos|>" == tokens[fields["tokenizer.ggml.bos_token_id"]]
    assert tokens[fields["tokenizer.ggml.eos_token_id"]] == "<|assistant_end|>"


def test_another_reader_computes_our_logits_and_greedy_text(tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    # transformers takes the width of a head for 128 whatever the file says.
    ours = build(tokenizer, n_embd=256, n_head=2, n_kv_head=1)
    write_folder(ours, tokenizer, tmp_path, name="a run", chat=True, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=FILE_NAME, local_files_only=True, dtype=torch.float32
    ).eval()
    tokens = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-4, rtol=0)
    prompt = tokens[:1, :9]
    written = theirs.generate(prompt, max_new_tokens=50, do_sample=False, eos_token_id=None)
    answer = generate(ours, prompt.tolist(), Sampling(50), ())[0]
    assert written[0, 9:].tolist() == answer.ids


def test_what_does_not_map_is_named_with_the_lines_that_would(tokenizer, tmp_path: Path) -> None:
    model = build(tokenizer, **{name: True for name in ("x0_mix", "smear", "value_embeddings")})
    other = Tokenizer.train([TEXT], 400)
    with pytest.raises(TrainerError) as refused:
        write_folder(model, other, tmp_path / "out", name="a run", chat=True, dtype=torch.float32)
    assert "value embeddings, " in refused.value.message and "smear" in refused.value.message
    for line in ("--set model.smear=false", "--set model.x0_mix=false", "--set tokenizer.digits=3"):
        assert line in refused.value.hint
    assert "backout" not in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_the_lines_it_names_are_enough(tokenizer) -> None:
    """Following the advice for the default architecture leaves nothing in the way."""
    config = ModelConfig(500, n_layer=3, seq_len=512)
    settings = list(obstacles(config, tokenizer))
    assert {setting.split("=")[0].split(".")[1] for setting in settings} == set(MAPS)
    advised = override(load_recipe("smoke"), settings).document["model"]
    advice = {name: advised[name] for name in MAPS}
    assert not obstacles(dataclasses.replace(config, **advice), tokenizer)


@pytest.mark.parametrize("chat", [True, False])
def test_the_modelfile_names_the_file_and_where_an_answer_ends(tokenizer, tmp_path, chat) -> None:
    write_folder(build(tokenizer), tokenizer, tmp_path, name="r", chat=chat, dtype=torch.float32)
    text = (tmp_path / "Modelfile").read_text()
    assert text.startswith(f"FROM ./{FILE_NAME}\n")
    assert f'PARAMETER stop "{"<|assistant_end|>" if chat else "<|bos|>"}"' in text
    assert text.count('"""') == 2


@pytest.mark.parametrize("digits", [1, 3])
def test_llama_cpp_cuts_text_and_writes_as_we_do(tmp_path: Path, digits: int) -> None:
    """llama-cpp-python is built from source, so it is no dependency: pip install it to run this."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    tokenizer = Tokenizer.train([TEXT], 500, pattern=split_pattern(digits))
    ours = build(tokenizer, seq_len=256)
    write_folder(ours, tokenizer, tmp_path, name="a run", chat=True, dtype=torch.float32)
    theirs = llama_cpp.Llama(
        str(tmp_path / FILE_NAME), n_ctx=256, logits_all=True, n_threads=1, verbose=False
    )
    for text in (TEXT[:700], "don't I'M naïve façade 日本 🙂🏽 ½ 1984", "  2 \n 5\n\n 6  \r\n\tx"):
        ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode([text])[0]
    messages = [{"role": "user", "content": "the fox"}]
    template = Jinja2ChatFormatter(
        theirs.metadata["tokenizer.chat_template"], eos_token="", bos_token=""
    )
    prompt = theirs.tokenize(
        template(messages=messages).prompt.encode(), add_bos=True, special=True
    )
    assert prompt == render_prompt(tokenizer, messages)
    theirs.eval(prompt)
    with torch.no_grad():
        logits = ours(torch.tensor([prompt]))[0, -1].numpy()
    # llama.cpp keeps keys and values in fp16.
    assert np.abs(theirs.scores[len(prompt) - 1] - logits).max() < 5e-3
    written = []
    for _ in range(50):
        written.append(int(theirs.scores[theirs.n_tokens - 1].argmax()))
        theirs.eval(written[-1:])
    assert written == generate(ours, [prompt], Sampling(50), ())[0].ids

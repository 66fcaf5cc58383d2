"""A model of which anything was not loaded is refused, with what is wrong (extra `eval`)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hf import SHAPE, save, save_llama

from kit.core_eval.bpb import evaluate_bpb
from kit.core_eval.loaders import load_model
from kit.errors import KitError

transformers: Any = pytest.importorskip(
    "transformers", reason="the extra eval is not installed", exc_type=ImportError
)
TEXTS = ["The capital of France is Paris, and an owl told the story of a fox. " * 6, "x", "A B"]
PAD = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0,
       "pad_token": "!"}  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    path = folder / "model.safetensors"
    found = load_file(path)
    save_file(change(found) or found, path, metadata={"format": "pt"})


def edit(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text())
    for name, value in values.items():
        target = document
        *parents, last = name.split("__")
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(document))


def shard(folder: Path, files: int = 3) -> None:
    """model.safetensors as shards with an index."""
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"model-{i % files + 1:05}-of-{files:05}.safetensors"
             for i, name in enumerate(sorted(found))}  # fmt: skip
    for file in set(place.values()):
        part = {name: found[name] for name, where in place.items() if where == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def renamed(**names: str) -> Callable[[Path], None]:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        for old, new in names.items():
            found = {name.replace(old, new): value for name, value in found.items()}
        return found

    return lambda folder: tensors(folder, change)


def prefixed(prefix: str) -> Callable[[Path], None]:
    return lambda folder: tensors(folder, lambda t: {prefix + name: v for name, v in t.items()})


def written(name: str, content: bytes | str) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: [(folder / name).write_bytes(data), None][1]


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).write_bytes((folder / name).read_bytes()[:size]), None][
        1
    ]


def drop(*names: str) -> Callable[[Path], None]:
    return lambda folder: tensors(folder, lambda t: {n: v for n, v in t.items() if n not in names})


def put(name: str, at: int, value: float) -> Callable[[Path], None]:
    def change(found: dict[str, Any]) -> None:
        found[name].view(-1)[at] = value

    return lambda folder: tensors(folder, change)


def lost_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def pointer_shard(folder: Path) -> None:
    shard(folder)
    written("model-00003-of-00003.safetensors", LFS)(folder)


def shard_without_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()


def swapped_shard(folder: Path) -> None:
    """Two shards with the same content: one tensor twice, others never."""
    shard(folder)
    shutil.copy(folder / "model-00001-of-00003.safetensors",
                folder / "model-00002-of-00003.safetensors")  # fmt: skip


def more_layers(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=1, layer_types=None)


def dangling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/0123abc")


def integers(folder: Path) -> None:
    tensors(folder, lambda t: {n: v.to(torch.int8) if "proj" in n else v for n, v in t.items()})


def larger_vocabulary(folder: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            found[name] = found[name][:300].clone()

    tensors(folder, change)
    edit(folder / "config.json", vocab_size=300)


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def adapter(folder: Path) -> None:
    written("adapter_config.json", json.dumps({"peft_type": "LORA"}))(folder)


LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{1:064}\nsize 1234567\n"
HTML = "\n<!DOCTYPE html><html><body>Gateway time-out</body></html>"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "compiled": (prefixed("_orig_mod."), "would be random"),
    "wrapped": (prefixed("module."), "would be random"),
    "other_names": (renamed(mlp="feed_forward"), r"mlp\.down_proj\.weight"),
    "one_missing": (drop("model.layers.1.self_attn.k_proj.weight"), r"1\.self_attn\.k_proj"),
    "norm_missing": (drop("model.norm.weight"), r"model\.norm\.weight"),
    "head_missing": (drop("lm_head.weight"), r"lm_head\.weight"),
    "resized": (
        lambda folder: tensors(
            folder, lambda t: {**t, "model.embed_tokens.weight": torch.randn(330, 32)}
        ),
        r"\[330, 32\] in the file and \[320, 32\]",
    ),
    "unused_layers": (more_layers, "have no place in the model"),
    "unused_bias": (
        lambda folder: tensors(
            folder, lambda t: {**t, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
        ),
        "have no place in the model",
    ),
    "pointer": (written("model.safetensors", LFS), "Git LFS pointer"),
    "pointer_of_tokenizer": (written("tokenizer.json", LFS), r"tokenizer\.json is a Git LFS"),
    "pointer_of_config": (written("config.json", LFS), r"config\.json is a Git LFS"),
    "page": (written("model.safetensors", HTML), "a web page"),
    "page_as_config": (written("config.json", HTML), r"config\.json is a web page"),
    "empty": (written("model.safetensors", b""), "is empty"),
    "empty_config": (written("config.json", b""), "is empty"),
    "zeros": (written("model.safetensors", bytes(4096)), "only zero bytes"),
    "cut": (cut("model.safetensors", 40_000), "cut off"),
    "cut_header": (cut("model.safetensors", 300), "not a safetensors file"),
    "cut_tokenizer": (cut("tokenizer.json", 900), r"tokenizer\.json is damaged"),
    "pickle": (written("model.safetensors", b"\x80\x04\x95" + bytes(90)), "not a safetensors"),
    "lost_shard": (lost_shard, "1 of 3 weight files are missing: model-00002"),
    "pointer_shard": (pointer_shard, "00003-of-00003.safetensors is a Git LFS"),
    "no_index": (shard_without_index, "but neither model.safetensors nor"),
    "swapped_shard": (swapped_shard, "both hold"),
    "dangling": (dangling, "a link to a file that does not exist"),
    "integers": (integers, "holds integers"),
    "nan": (put("model.layers.1.mlp.up_proj.weight", 7, float("nan")), "NaN or infinite"),
    "nan_in_one_rare_row": (
        put("model.embed_tokens.weight", 319 * 32, float("nan")),
        "NaN or infinite numbers: model.embed_tokens.weight",
    ),
    "infinite": (put("lm_head.weight", 3, float("-inf")), "NaN or infinite"),
    "past_embedding": (larger_vocabulary, "embedding has 300 rows"),
    "no_tokenizer": (no_tokenizer, "holds no tokenizer"),
    "newer_tokenizer": (
        lambda folder: edit(folder / "tokenizer.json", model__type="BPE2"),
        "newer version of the package tokenizers",
    ),
    "newer_splitter": (
        lambda folder: edit(folder / "tokenizer.json", pre_tokenizer={"type": "Novel"}),
        "newer version of the package tokenizers",
    ),
    "adapter": (adapter, "adapter"),
    "unknown_architecture": (
        lambda folder: edit(folder / "config.json", model_type="novel", architectures=["Novel"]),
        "cannot be loaded",
    ),
    "no_architecture": (
        lambda folder: edit(folder / "config.json", num_attention_heads=0),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_model_that_was_not_wholly_loaded_is_refused(
    name: str, llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(KitError, match=message):
        load_model(folder, device="cpu")


def test_shards_give_the_score_of_the_single_file(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    shard(folder)
    whole, parts = (load_model(path, device="cpu") for path in (llama, folder))
    assert evaluate_bpb(parts, TEXTS) == evaluate_bpb(whole, TEXTS)


def test_a_snapshot_of_links_is_read_through_them(llama: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(llama.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    read = evaluate_bpb(load_model(snapshot, device="cpu"), TEXTS)
    assert read == evaluate_bpb(load_model(llama, device="cpu"), TEXTS)


def test_a_tied_head_counts_as_loaded(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert evaluate_bpb(load_model(folder, device="cpu"), TEXTS).bpb > 0


def test_a_head_of_its_own_is_not_replaced_by_the_embedding(llama: Path, tmp_path: Path) -> None:
    """config.json says tied, the file holds another head: its head is used, or it is refused."""
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    edit(folder / "config.json", tie_word_embeddings=True)
    loaded: Any = load_model(folder, device="cpu")
    stored = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(loaded.network.lm_head.weight, stored)


@pytest.mark.parametrize(
    "values",
    [
        {"padding": {**PAD, "strategy": "BatchLongest"}},
        {"padding": {**PAD, "strategy": {"Fixed": 700}}},
        {"padding": {**PAD, "strategy": "BatchLongest", "direction": "Left"}},
        {"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst",
                        "stride": 0}},
        {"truncation": {"direction": "Left", "max_length": 8, "strategy": "OnlyFirst",
                        "stride": 4}},
        {"model__dropout": 0.5},
    ],
)  # fmt: skip
def test_what_tokenizer_json_carries_for_training_does_not_move_the_score(
    values: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    edit(folder / "tokenizer.json", **values)
    model, plain = load_model(folder, device="cpu"), load_model(llama, device="cpu")
    assert model.encode(TEXTS) == plain.encode(TEXTS) == model.encode(TEXTS)
    assert evaluate_bpb(model, TEXTS) == evaluate_bpb(plain, TEXTS)


def gguf(path: Path, *, split: int = 1, scaled: bool = False) -> Path:
    """A GGUF file of one layer; only its head is looked at."""
    writer: Any = pytest.importorskip("gguf", reason="gguf is not installed").GGUFWriter(
        path, "llama"
    )
    writer.add_block_count(1)
    if split > 1:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", split)
    if scaled:
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(4.0)
    writer.add_tensor("output_norm.weight", torch.ones(8).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("part.gguf", lambda p: gguf(p, split=2), "part 1 of 2"),
        ("PART.GGUF", lambda p: gguf(p, split=3), "part 1 of 3"),
        ("scaled.gguf", lambda p: gguf(p, scaled=True), "scales its rotary positions"),
        ("pointer.gguf", lambda p: p.write_text(LFS), "Git LFS pointer"),
        ("page.gguf", lambda p: p.write_text(HTML), "a web page"),
        ("other.gguf", lambda p: p.write_bytes(b"PK\x03\x04" * 9), "not a GGUF file"),
        ("cut.gguf", lambda p: p.write_bytes(b"GGUF\x03\0\0\0\x01\0"), "damaged or cut off"),
        ("few.gguf", gguf, "cannot be loaded|would be random"),
    ],
)
def test_a_gguf_file_that_is_not_a_whole_model_is_refused(
    name: str, make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(KitError, match=message):
        load_model(tmp_path / name, device="cpu")


def test_weights_that_the_dtype_cannot_hold_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    put("model.layers.0.mlp.up_proj.weight", 0, 1e6)(folder)
    with pytest.raises(KitError, match="NaN or infinite"):
        load_model(folder, device="cpu", dtype="float16")
    assert load_model(folder, device="cpu", dtype="float32")


def test_gpt2_with_the_buffers_of_old_files_is_read(tmp_path: Path) -> None:
    """Old GPT-2 files hold the causal mask of each layer; the architecture makes it itself."""
    config = transformers.GPT2Config(
        vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    folder = save(tmp_path, config, transformers.GPT2LMHeadModel)
    plain = evaluate_bpb(load_model(folder, device="cpu"), TEXTS)

    def old(found: dict[str, Any]) -> dict[str, Any]:
        masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in (0, 1)}
        return {**found, **masks, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}

    tensors(folder, old)
    assert evaluate_bpb(load_model(folder, device="cpu"), TEXTS) == plain
    assert SHAPE["vocab_size"] == config.vocab_size

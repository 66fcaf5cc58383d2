"""Tokenizers trained from a lock, taken over from others, compared."""

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken

from reference.errors import TrainerError
from reference.tokenizer.bpe import Tokenizer, split_pattern
from reference.tokenizer.compare import compare, measure_speed, read_domains, write_page
from reference.tokenizer.reuse import reuse
from reference.tokenizer.train import train_locked

TEXTS = [f"The cat number {i} sat on the mat in {1900 + i}, didn't it?\n" for i in range(300)]
OPTIONS = {
    "vocab_size": 400,
    "digits": 2,
    "pattern": "",
    "special": [],
    "text_column": "text",
    "max_chars": 10**6,
    "doc_cap": 1000,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.mkdir()
    for name, texts in (("a", TEXTS[:100]), ("b", TEXTS[100:]), ("validation", TEXTS[:5])):
        pq.write_table(
            pa.table({"text": texts, "source": [name] * len(texts)}), path / f"{name}.parquet"
        )
    return path


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


def test_every_byte_comes_back(trained: Tokenizer) -> None:
    ids = [trained.ranks.index(bytes([byte])) for byte in range(256)]
    assert trained.decode_bytes(ids) == bytes(range(256))
    text = "naïve 🙂 日本 ok"
    assert trained.decode_bytes(trained.encode([text])[0]) == text.encode()


def test_tiktoken_and_the_saved_form_agree(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    alone = tiktoken.Encoding(
        "alone",
        pat_str=document["pattern"],
        mergeable_ranks={base64.b64decode(t): i for i, t in enumerate(document["ranks"])},
        special_tokens=document["special"],
    )
    assert loaded.encode(TEXTS) == alone.encode_ordinary_batch(TEXTS)
    assert [ids.tolist() for ids in loaded.encode_arrays(TEXTS)] == loaded.encode(TEXTS)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_the_digits_rule_bounds_numbers(digits: int) -> None:
    tokenizer = Tokenizer.train(["1984 1985 1986 " * 50], 300, pattern=split_pattern(digits))
    runs = [t for t in tokenizer.ranks if t.isdigit()]
    assert max(map(len, runs)) == digits


def test_extra_special_tokens_are_saved_and_never_read_from_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, 400, extra_special=["<|think|>"])
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.special["<|think|>"] == loaded.vocab_size - 1
    assert loaded.vocab_size - 1 not in loaded.encode(["<|think|>"])[0]


def test_a_lock_pins_shards_options_and_outcome(folder: Path, tmp_path: Path) -> None:
    first = train_locked(folder, tmp_path / "one", OPTIONS, ["b.parquet"])
    assert [shard["path"] for shard in first["shards"]] == ["b.parquet"]
    lock = tmp_path / "one" / "tokenizer.lock.json"
    again = train_locked(folder, tmp_path / "two", {**OPTIONS, "vocab_size": 999}, (), lock)
    assert again == first
    everything = train_locked(folder, tmp_path / "three", OPTIONS)
    assert [shard["path"] for shard in everything["shards"]] == ["a.parquet", "b.parquet"]
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes())
    with pytest.raises(TrainerError, match=r"b\.parquet differ"):
        train_locked(folder, tmp_path / "four", OPTIONS, (), lock)


def hugging_face(path: Path, pre_tokenizer: object, vocab_size: int = 350) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.save(str(path))
    return path


def test_hugging_face_tokenizers_cut_text_alike_in_our_form(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    kinds = tokenizers.pre_tokenizers
    split = kinds.Split(tokenizers.Regex(r"\p{N}{1,3}| ?\p{L}+|[^\p{L}\p{N}]+"), "isolated")
    for index, step in enumerate(
        [
            kinds.ByteLevel(add_prefix_space=False),
            kinds.Sequence([kinds.Digits(True), kinds.ByteLevel(add_prefix_space=False)]),
            kinds.Sequence([split, kinds.ByteLevel(add_prefix_space=False, use_regex=False)]),
        ]
    ):
        path = hugging_face(tmp_path / f"{index}.json", step)
        ours = reuse(str(path), probes=TEXTS[:50])
        theirs = tokenizers.Tokenizer.from_file(str(path))
        assert [len(ids) for ids in ours.encode(TEXTS)] == [
            len(theirs.encode(text).ids) for text in TEXTS
        ]
        assert ours.decode(ours.encode([TEXTS[7]])[0]) == TEXTS[7]


def test_what_cannot_be_taken_over_is_refused(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = hugging_face(tmp_path / "w.json", tokenizers.pre_tokenizers.Whitespace())
    with pytest.raises(TrainerError, match="pre-tokenizer"):
        reuse(str(path))
    (tmp_path / "broken.tiktoken").write_bytes(b"IQ== 0\nIg== 2\n")
    with pytest.raises(TrainerError, match="not a file of ranks"):
        reuse(str(tmp_path / "broken.tiktoken"))


def test_a_tiktoken_file_gives_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(
        b"".join(base64.b64encode(t) + f" {i}\n".encode() for i, t in enumerate(trained.ranks))
    )
    assert reuse(str(path)).digest == trained.digest


def test_comparison_counts_what_it_says(trained: Tokenizer, folder: Path, tmp_path: Path) -> None:
    from reference.config.resolve import resolve_recipe

    recipe = resolve_recipe("smoke")
    bytes_only = Tokenizer([bytes([i]) for i in range(256)])
    domains = read_domains(folder)
    assert sorted(domains) == ["a", "b", "validation"]
    found = compare({"bytes": bytes_only, "trained": trained}, domains, recipe, repeats=1)
    first, second = found["tokenizers"]
    assert first["bytes_per_token"] == 1.0 and first["bpb_factor_estimate"] == 1.0
    assert second["bytes_per_token"] > 2 and second["text_ratio"] > 1.5
    assert second["bpb_factor_estimate"] < 1 < second["step_time_ratio"]
    write_page(found, tmp_path / "c.html")
    assert "<script" not in (tmp_path / "c.html").read_text()


def test_encoding_is_about_as_fast_as_tiktoken_alone(trained: Tokenizer) -> None:
    texts = ["".join(TEXTS[i : i + 30]) for i in range(0, 270)]
    speed = measure_speed(trained, texts, repeats=5)
    assert speed["speed_beside_tiktoken"] > 0.9

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.errors import TrainerError
from reference.tokenizer.bpe import MIN_VOCAB_SIZE, SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

TEXTS = [
    "Anna lives in Rome. She's got 12345 red apples, and they're good.",
    "The fox does not see the owl; the owl sees the fox!\n\nIs it 10 o'clock?",
    "naïve café — 東京 🦊\ttabs  and   spaces\r\n",
] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 330)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_byte_for_byte(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode([text])[0]
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert all(0 <= token < tokenizer.vocab_size - len(SPECIAL_TOKENS) for token in ids)
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_every_single_byte_has_a_token(tokenizer: Tokenizer) -> None:
    assert {bytes([i]) for i in range(256)} <= set(tokenizer.ranks)
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    assert tokenizer.decode_bytes(tokenizer.encode([everything])[0]) == everything.encode()


def test_special_tokens_take_the_last_ids_and_are_never_read_from_text(
    tokenizer: Tokenizer,
) -> None:
    last = range(tokenizer.vocab_size - len(SPECIAL_TOKENS), tokenizer.vocab_size)
    assert sorted(tokenizer.special.values()) == list(last)
    text = "".join(SPECIAL_TOKENS)
    ids = tokenizer.encode([text])[0]
    assert not set(ids) & set(last)
    assert [array.tolist() for array in tokenizer.encode_arrays([text])] == [ids]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.bos_id]) == "<|bos|>"
    assert tokenizer.token_bytes()[tokenizer.bos_id] == 0


def test_merges_equal_the_plain_algorithm() -> None:
    """Byte pair encoding written down naively: the most frequent pair first, smallest on a tie."""
    words = [list(word.encode()) for text in TEXTS for word in split(text)]
    naive = []
    for new in range(256, 300):
        counts: dict[tuple[int, int], int] = {}
        for word in words:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        naive.append(best)
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = [new]
                at += 1
    spelled = {i: bytes([i]) for i in range(256)}
    for new, (left, right) in enumerate(naive, start=256):
        spelled[new] = spelled[left] + spelled[right]
    trained = Tokenizer.train(TEXTS, 300 + len(SPECIAL_TOKENS))
    assert trained.ranks[256:] == [spelled[i] for i in range(256, 300)]


def split(text: str) -> list[str]:
    """The pieces of `text` under the split pattern, by an encoding that knows only bytes."""
    import regex

    return regex.findall(SPLIT_PATTERN, text)


def test_numbers_are_split_into_groups_of_two_digits() -> None:
    assert split("in 12345 days") == ["in", " ", "12", "34", "5", " days"]
    assert split("she's HERE'LL") == ["she", "'s", " HERE", "'LL"]


def test_tokenizer_file_is_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from reference.tokenizer.bpe import Tokenizer;"
        "texts = [f'{i} owl{i % 7} saw fox{i % 5}' for i in range(3000)];"
        "Tokenizer.train(texts, 600).save(Path(sys.argv[1]))"
    )
    files = []
    for threads in ("1", "2"):
        folder = tmp_path / threads
        environment = {"RAYON_NUM_THREADS": threads, "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
        files.append((folder / "tokenizer.json").read_bytes())
    assert files[0] == files[1]


def test_saved_tokenizer_loads_as_the_same_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.digest == tokenizer.digest
    assert loaded.encode(TEXTS) == tokenizer.encode(TEXTS, threads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_threads_and_arrays_give_the_same_tokens(tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode(TEXTS)
    for threads in (1, 3):
        arrays = tokenizer.encode_arrays(TEXTS, threads)
        assert [array.tolist() for array in arrays] == expected
        assert all(array.dtype == np.uint32 for array in arrays)


def test_digest_changes_with_the_merges() -> None:
    assert Tokenizer.train(TEXTS, 330).digest != Tokenizer.train(TEXTS, 331).digest


def test_too_few_merges_in_the_text_give_a_smaller_vocabulary() -> None:
    assert Tokenizer.train(["ab ab"], 4096).vocab_size < 300


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(TrainerError, match=f"at least {MIN_VOCAB_SIZE}"):
        Tokenizer.train(TEXTS, MIN_VOCAB_SIZE - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "format 'other'"),
        (lambda d: d["ranks"].append(d["ranks"][0]), "ranks repeat"),
        (lambda d: d["ranks"].pop(0), "single bytes are missing"),
        (lambda d: d["ranks"].__setitem__(0, "$$"), "Error"),
        (lambda d: d["special"].pop("<|bos|>"), "special tokens"),
        (lambda d: d.pop("pattern"), "pattern"),
    ],
    ids=["format", "repeat", "missing-byte", "base64", "special", "pattern"],
)
def test_damaged_tokenizer_file_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, change, message: str
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(TrainerError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_missing_tokenizer_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"no tokenizer at .*tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_tiktoken_knows_the_split_pattern(tokenizer: Tokenizer) -> None:
    bytes_only = tiktoken.Encoding(
        "bytes", pat_str=SPLIT_PATTERN, mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={},
    )  # fmt: skip
    text = " ".join(TEXTS)
    assert bytes_only.decode_bytes(bytes_only.encode_ordinary(text)) == text.encode()

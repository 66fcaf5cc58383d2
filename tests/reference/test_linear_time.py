"""A million times one character: every pattern that touches text is linear, no document ends a run.

A quadratic pattern takes hours here, so these tests need no clock to fail: the suite's limit does.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reference.data.words import normalise, shingles, word_hashes
from reference.rows.documents import Documents, tokenize_shard, write_index
from reference.tokenizer.bpe import SPLIT_PATTERN, Tokenizer

MILLION = 1_000_000
SIGNS = {
    "space": " ",
    "tab": "\t",
    "no_break_space": "\u00a0",
    "wide_space": "\u3000",
    "line_break": "\n",
    "carriage_return": "\r",
    "letter": "a",
    "digit": "7",
    "dot": ".",
    "combining": "\u0301",
    "ideograph": "\u5b57",
    "emoji": "\U0001f600",
    "zero_width": "\u200b",
    "nul": "\0",
    "bracket": "[",
    "quote": "'",
    "letter_dot": "a.",
    "blank_break": " \n",
    "blanks": " \t",
}
CORPUS = ["the river runs slowly past a quiet mill, 12 34 times.    \n\n aa a.a.a ...\t\t"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, 400)


def long_text(sign: str) -> str:
    return "A table from a scan:" + (sign * MILLION)[:MILLION] + "end"


@pytest.mark.parametrize("sign", SIGNS)
def test_steps_of_a_build_are_linear(sign: str) -> None:
    text = long_text(SIGNS[sign])
    assert normalise(text).endswith("end")
    assert normalise(text + "\n" * 3).endswith("end")
    assert len(shingles(word_hashes(text), 5)) > 0


@pytest.mark.parametrize(
    "sign", ["space", "tab", "letter", "dot", "letter_dot", "bracket", "emoji"]
)
def test_filters_are_linear(sign: str) -> None:
    pytest.importorskip("datatrove", reason="the extra data is not installed")
    from datatrove.data import Document

    from reference.data.filters import rules
    from reference.data.spec import Filters

    for name, rule in rules(Filters(c4=True)):
        assert rule(Document(text=long_text(SIGNS[sign]), id="")) is not None, name


@pytest.mark.parametrize("sign", SIGNS)
def test_encoding_takes_any_run_and_gives_its_bytes_back(sign: str, tokenizer: Tokenizer) -> None:
    text = long_text(SIGNS[sign])
    [ids] = tokenizer.encode_arrays([text])
    assert tokenizer.decode_bytes(ids.tolist()) == text.encode()


@pytest.mark.parametrize("sign", ["space", "blanks", "letter", "line_break", "letter_dot"])
def test_training_takes_any_run(sign: str) -> None:
    found = Tokenizer.train([*CORPUS, long_text(SIGNS[sign])], 300)
    assert found.vocab_size > 256


def test_the_slow_way_gives_the_tokens_of_the_fast_one(tokenizer: Tokenizer) -> None:
    texts = [
        *CORPUS,
        " " * 4000 + "x" + "\t " * 900 + "\n" + " " * 77 + "\n\n  end",
        "Ünïcode, 字字\u3000\u3000字 \u2028 don't I'LL 12345 …\u00a0\u00a0x\x1c\x85",
        "\U0001f600!!\r\n\r\n ",
        "".join(map(chr, range(0x20, 0x2100))),
        "",
        "   ",
    ]
    for text in texts:
        [fast] = tokenizer.encode_arrays([text])
        slow = tokenizer._encode_pieces(text)
        assert slow is not None and np.array_equal(fast, slow), text[:40]


def test_a_text_that_cannot_be_split_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Tokenizer.train(CORPUS, 400, pattern=SPLIT_PATTERN)
    monkeypatch.setattr(odd, "_encode_pieces", lambda text: None)
    texts = ["one text", long_text(" "), "", None, "another text"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=3)
    record = tokenize_shard(tmp_path / "a.parquet", tmp_path / "cache", odd)
    assert record.documents + record.skipped + len(record.refused) == len(texts)
    assert record.refused == ("a.parquet, row group 0, row 1",)
    assert record.text_bytes == len("one textanother text")
    write_index(tmp_path / "cache", ["a"], ["a"])
    assert len(Documents(tmp_path / "cache", ["a"]).lengths) == 2
    assert json.loads((tmp_path / "cache/a.json").read_text())["refused"]
    again = tokenize_shard(tmp_path / "a.parquet", tmp_path / "cache", odd)
    assert again == record, "a finished shard is not tokenized twice"


def test_lone_surrogates_are_read_as_tiktoken_reads_them(tokenizer: Tokenizer) -> None:
    for text in ("cut \ud83d here", "\ud800"):
        assert tokenizer.encode([text]) == [tokenizer._encoding.encode_ordinary(text)]

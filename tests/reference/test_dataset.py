from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reference.errors import TrainerError
from reference.rows.documents import (
    Documents,
    find_shards,
    read_shard,
    sample_texts,
    tokenize_shard,
    write_index,
)
from reference.tokenizer.bpe import Tokenizer

TEXTS = [f"The {animal} number {i} eats." for i in range(10) for animal in ("owl", "fox", "cat")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def write_shard(path: Path, texts: list, column: str = "text", rows: int = 4) -> Path:
    pq.write_table(pa.table({column: texts}), path, row_group_size=rows)
    return path


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def test_last_shard_by_name_is_validation(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_shard(tmp_path / f"{name}.parquet", TEXTS)
    shards = find_shards(tmp_path)
    assert (names(shards.train), names(shards.validation)) == (
        ["a.parquet", "b.parquet"],
        ["c.parquet"],
    )


def test_files_named_validation_win_over_the_last_one(tmp_path: Path) -> None:
    for name in ("wiki", "validation-000", "books"):
        write_shard(tmp_path / f"{name}.parquet", TEXTS)
    shards = find_shards(tmp_path)
    assert names(shards.train) == ["books.parquet", "wiki.parquet"]
    assert names(shards.validation) == ["validation-000.parquet"]


def test_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"no \*\.parquet file"):
        find_shards(tmp_path)
    write_shard(tmp_path / "only.parquet", TEXTS)
    with pytest.raises(TrainerError, match=r"only\.parquet is the validation split"):
        find_shards(tmp_path)


def test_empty_and_blank_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", ["x", None, "", " \n", "y"], rows=3)
    groups = list(read_shard(path))
    assert [group.texts for group in groups] == [["x"], ["y"]]
    assert [group.skipped for group in groups] == [2, 1]


def test_dictionary_and_large_strings_are_text(tmp_path: Path) -> None:
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"text": pa.array(["one", "two"]).cast(kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        assert [g.texts for g in read_shard(tmp_path / "a.parquet")] == [["one", "two"]]


def test_missing_column_names_the_columns_there(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", TEXTS, column="content")
    with pytest.raises(TrainerError, match=r"a\.parquet has no column 'text'; it has 'content'"):
        list(read_shard(path))


def test_column_of_another_type_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", [1, 2, 3])
    with pytest.raises(TrainerError, match="column 'text' is of type int64, not string") as caught:
        list(read_shard(path))
    assert "data.text_column" in caught.value.hint


def test_file_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(TrainerError, match="holds no documents"):
        list(read_shard(tmp_path / "a.parquet"))


@pytest.mark.parametrize("data", [b"", b"PAR1 this is not parquet"], ids=["empty", "garbage"])
def test_file_that_is_no_parquet_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    with pytest.raises(TrainerError, match=r"a\.parquet is not a readable parquet file") as caught:
        list(read_shard(path))
    assert caught.value.kind == "bad_input" and "again" in caught.value.hint


def test_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": TEXTS})
    pq.write_table(table, path, row_group_size=10, compression="zstd")
    begin = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[begin : begin + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(TrainerError, match=r"a\.parquet: row group 1, column 'text'"):
        list(read_shard(path))


def test_tokenizer_sample_takes_turns_between_shards_and_keeps_both_caps(tmp_path: Path) -> None:
    a = write_shard(tmp_path / "a.parquet", ["a" * 50] * 6, rows=2)
    b = write_shard(tmp_path / "b.parquet", ["b" * 50] * 2, rows=2)
    texts = list(sample_texts([a, b], "text", max_chars=75, doc_cap=10))
    assert "".join(text[0] for text in texts) == "aabbaaaa"
    assert [len(text) for text in texts] == [10] * 7 + [5]


def test_cache_returns_the_documents_token_for_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, texts in (("a", TEXTS[:9]), ("b", [*TEXTS[9:20], None]), ("c", TEXTS[20:])):
        record = tokenize_shard(
            write_shard(tmp_path / f"{name}.parquet", texts), tmp_path / "cache", tokenizer
        )
        assert record.text_bytes == sum(len(text or "") for text in texts)
    write_index(tmp_path / "cache", ["a", "b"], ["c"])
    train = Documents.open(tmp_path / "cache", "train", tokenizer)
    expected = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode(TEXTS)]
    assert [train[i].tolist() for i in range(len(train))] == expected[:20]
    assert train.lengths.tolist() == [len(ids) for ids in expected[:20]]
    validation = Documents.open(tmp_path / "cache", "validation", tokenizer)
    assert [validation[i].tolist() for i in range(len(validation))] == expected[20:]
    assert train[0].dtype == np.uint16


def test_large_vocabularies_take_four_bytes_a_token(tmp_path: Path) -> None:
    class Wide(Tokenizer):
        vocab_size = 1 << 17

    wide = Wide(Tokenizer.train(TEXTS, 300).ranks)
    record = tokenize_shard(write_shard(tmp_path / "a.parquet", TEXTS), tmp_path / "cache", wide)
    assert record.dtype == "<u4"
    assert Documents(tmp_path / "cache", ["a"])[3].tolist()[1:] == wide.encode([TEXTS[3]])[0]


def test_interrupted_shard_leaves_nothing_whole_and_the_next_try_gives_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = write_shard(tmp_path / "a.parquet", TEXTS)
    tokenize_shard(path, tmp_path / "whole", tokenizer)

    class Killed(Exception):
        pass

    calls = 0

    def kill(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed

    with pytest.raises(Killed):
        tokenize_shard(path, tmp_path / "torn", tokenizer, on_documents=kill)
    assert not list((tmp_path / "torn").glob("*.json"))
    with pytest.raises(TrainerError, match="shard 'a' is missing or torn"):
        Documents(tmp_path / "torn", ["a"])
    tokenize_shard(path, tmp_path / "torn", tokenizer, threads=2)
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_finished_shard_is_not_tokenized_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_shard(tmp_path / "a.parquet", TEXTS)
    first = tokenize_shard(path, tmp_path / "cache", tokenizer)
    before = (tmp_path / "cache" / "a.tokens").stat().st_mtime_ns
    counts: list[int] = []
    assert tokenize_shard(path, tmp_path / "cache", tokenizer, on_documents=counts.append) == first
    assert (tmp_path / "cache" / "a.tokens").stat().st_mtime_ns == before
    assert sum(counts) == len(TEXTS)


def test_truncated_cache_is_tokenized_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_shard(tmp_path / "a.parquet", TEXTS)
    tokenize_shard(path, tmp_path / "cache", tokenizer)
    whole = files(tmp_path / "cache")
    (tmp_path / "cache" / "a.tokens").write_bytes(whole["a.tokens"][:-2])
    tokenize_shard(path, tmp_path / "cache", tokenizer)
    assert files(tmp_path / "cache") == whole


def test_cache_of_another_tokenizer_is_refused_and_remade(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = write_shard(tmp_path / "a.parquet", TEXTS)
    other = Tokenizer.train(TEXTS, 270)
    tokenize_shard(path, tmp_path / "cache", tokenizer)
    write_index(tmp_path / "cache", ["a"], ["a"])
    with pytest.raises(TrainerError, match="made with tokenizer"):
        Documents.open(tmp_path / "cache", "train", other)
    assert tokenize_shard(path, tmp_path / "cache", other).tokenizer == other.digest


def test_missing_cache_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="no token cache") as caught:
        Documents.open(tmp_path, "train")
    assert "tokenizer stage" in caught.value.hint


def test_shards_with_nothing_but_blanks_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenize_shard(write_shard(tmp_path / "a.parquet", ["", " "]), tmp_path / "cache", tokenizer)
    with pytest.raises(TrainerError, match="holds no document"):
        Documents(tmp_path / "cache", ["a"])


def test_record_of_a_shard_holds_digests(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import hashlib

    tokenize_shard(write_shard(tmp_path / "a.parquet", TEXTS), tmp_path / "c", tokenizer)
    record = json.loads((tmp_path / "c" / "a.json").read_text())
    for suffix in ("tokens", "offsets"):
        data = (tmp_path / "c" / f"a.{suffix}").read_bytes()
        assert record[f"{suffix}_sha256"] == hashlib.sha256(data).hexdigest()


FEW_HANDLES = """
import os, resource, sys
from pathlib import Path
from reference.rows.documents import Documents
import torch
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
documents = Documents(Path(sys.argv[1]), [f"{i:03}" for i in range(150)])
before = len(os.listdir("/proc/self/fd"))
kept = [documents[i] for i in range(len(documents))]
assert len(os.listdir("/proc/self/fd")) == before < 64
print(*(int(tokens[-1]) for tokens in kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts handles in /proc")
def test_many_shards_need_few_file_handles(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_shard(tmp_path / "a.parquet", TEXTS[:1])
    tokenize_shard(path, tmp_path / "one", tokenizer)
    cache = tmp_path / "cache"
    cache.mkdir()
    record = json.loads((tmp_path / "one/a.json").read_text())
    offsets = (tmp_path / "one/a.offsets").read_bytes()
    for i in range(150):
        (cache / f"{i:03}.json").write_text(json.dumps({**record, "name": f"{i:03}"}))
        (cache / f"{i:03}.offsets").write_bytes(offsets)
        tokens = np.full(record["tokens"], i, dtype=record["dtype"])
        (cache / f"{i:03}.tokens").write_bytes(tokens.tobytes())
    done = subprocess.run(
        [sys.executable, "-c", FEW_HANDLES, str(cache)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(i) for i in range(150)]

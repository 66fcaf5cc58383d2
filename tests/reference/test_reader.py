"""The one reader of text: files as people really have them are read, or named with a remedy."""

import base64
import datetime
import gzip
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kit.core_eval.bpb import read_texts as eval_reader
from kit.errors import SchemaError
from reference.errors import TrainerError
from reference.rows.documents import read_shard, sample_texts
from reference.rows.reader import kind_of, read_file, read_texts, text_files

TEXTS = [f"Text number {i} über den Fluss, told at length." for i in range(12)]
LINES = [json.dumps({"text": text}).encode() for text in TEXTS]
WHOLE = b"\n".join(LINES) + b"\n"
DEEP = b'{"text":"a","m":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def zst(data: bytes, log: int = 0, frames: int = 1) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, **({"window_log": log} if log else {})
    )
    made = []
    for part in range(frames):
        size = -(-len(data) // frames)
        engine = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        made.append(engine.compress(data[part * size : (part + 1) * size]) + engine.flush())
    return b"".join(made)


READ: dict[str, tuple[str, Callable[[], bytes]]] = {
    "plain": ("a.jsonl", lambda: WHOLE),
    "upper": ("A.JSONL", lambda: WHOLE),
    "bom": ("a.jsonl", lambda: b"\xef\xbb\xbf" + WHOLE),
    "crlf": ("a.jsonl", lambda: WHOLE.replace(b"\n", b"\r\n")),
    "blank_lines": ("a.jsonl", lambda: b"\n\n  \n" + WHOLE.replace(b"\n", b"\n\n")),
    "no_last_break": ("a.jsonl", lambda: WHOLE[:-1]),
    "nul_tail": ("a.jsonl", lambda: WHOLE + bytes(4096)),
    "nul_before_a_line": ("a.jsonl", lambda: WHOLE.replace(LINES[5], bytes(37) + LINES[5])),
    "nul_lines": ("a.jsonl", lambda: WHOLE + bytes(9) + b"\n" + bytes(7) + b"\n"),
    "gzip": ("a.jsonl.gz", lambda: gzip.compress(WHOLE)),
    "gzip_upper": ("a.JSONL.GZ", lambda: gzip.compress(WHOLE)),
    "members": ("a.jsonl.gz", lambda: b"".join(gzip.compress(x + b"\n") for x in LINES)),
    "gzip_zero_tail": ("a.jsonl.gz", lambda: gzip.compress(WHOLE) + bytes(512)),
    "zst": ("a.jsonl.zst", lambda: zst(WHOLE)),
    "zst_frames": ("a.jsonl.zst", lambda: zst(WHOLE, frames=4)),
    "zst_window": ("a.jsonl.zst", lambda: zst(WHOLE, log=30)),
    "long_number": ("a.jsonl", lambda: b'{"n":' + b"9" * 5000 + b"," + WHOLE[1:]),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_holds_text_is_read(name: str, tmp_path: Path) -> None:
    file, make = READ[name]
    (tmp_path / file).write_bytes(make())
    assert list(read_texts([tmp_path / file])) == TEXTS
    assert list(eval_reader([tmp_path / file])) == TEXTS, "eval reads what a build reads"


REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "utf16": ("a.jsonl", lambda: WHOLE.decode().encode("utf-16"), "UTF-16"),
    "latin1": ("a.jsonl", lambda: b'{"text": "\xfcber"}\n', "line 1: the text is no UTF-8"),
    "list": ("a.jsonl", lambda: b"[" + b",".join(LINES) + b"]", "one JSON list"),
    "commas": ("a.jsonl", lambda: b",\n".join(LINES), "line 1 is no JSON"),
    "deep": ("a.jsonl", lambda: WHOLE + DEEP, "line 13 is nested too deeply"),
    "number": ("a.jsonl", lambda: b'{"text": 4}\n', "line 1: 'text' is int, not a text"),
    "nul_inside": ("a.jsonl", lambda: WHOLE.replace(b"r 3", b"r\0\0 3"), "line 4 is no JSON"),
    "other_key": ("a.jsonl", lambda: b'{"body": "a"}\n', "no key 'text'; it has 'body'"),
    "cut_gzip": ("a.jsonl.gz", lambda: gzip.compress(WHOLE)[:-40], "cannot be read after line"),
    "not_gzip": ("a.jsonl.gz", lambda: WHOLE, "cannot be read after line 0"),
    "gzip_garbage": ("a.jsonl.gz", lambda: gzip.compress(WHOLE) + b"hello", "cannot be read after"),
    "not_zst": ("a.jsonl.zst", lambda: WHOLE, "cannot be read after line 0"),
    "pointer": ("a.jsonl", lambda: LFS, "Git LFS pointer"),
    "pointer_txt": ("a.txt", lambda: LFS, "Git LFS pointer"),
    "page": ("a.jsonl", lambda: b"<!DOCTYPE html><p>no</p>", "a web page"),
    "empty_parquet": ("a.parquet", lambda: b"", "is empty"),
    "zeros": ("a.parquet", lambda: bytes(300), "zero bytes"),
    "latin1_txt": ("a.txt", lambda: b"\xfcber", "no UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_error_with_its_place(name: str, tmp_path: Path) -> None:
    file, make, message = REFUSED[name]
    path = tmp_path / file
    path.write_bytes(make())
    with pytest.raises(TrainerError) as caught:
        list(read_texts([path]))
    assert message in caught.value.message and str(path) in caught.value.message
    assert caught.value.hint
    if "JSON" in caught.value.message or "UTF-8" in caught.value.message:
        assert "ownload" not in caught.value.hint, "the file is not damaged"
    with pytest.raises(SchemaError):
        list(eval_reader([path]))


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "cut \\ud83d here"}\n')
    assert list(read_texts([tmp_path / "a.jsonl"])) == ["cut \ufffd here"]


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


STRINGS = pa.array(TEXTS)
PARQUET: dict[str, pa.Array] = {
    "string": STRINGS,
    "large": STRINGS.cast(pa.large_string()),
    "view": STRINGS.cast(pa.string_view()),
    "binary": STRINGS.cast(pa.binary()),
    "binary_view": STRINGS.cast(pa.binary_view()),
    "dictionary": STRINGS.dictionary_encode(),
    "large_dictionary": STRINGS.cast(pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("name", PARQUET)
def test_text_of_any_encoding_is_read_by_build_and_run_alike(name: str, tmp_path: Path) -> None:
    pq.write_table(table(text=PARQUET[name]), tmp_path / "a.parquet", row_group_size=5)
    assert list(read_texts([tmp_path / "a.parquet"])) == TEXTS
    assert [t for g in read_shard(tmp_path / "a.parquet") for t in g.texts] == TEXTS


ODD: dict[str, tuple[pa.Table, str, str]] = {
    "twice": (pa.Table.from_arrays([STRINGS] * 2, ["text"] * 2), "2 columns named", "Rename"),
    "struct": (table(text=[{"body": t} for t in TEXTS]), "is of type struct", "there is none"),
    "list": (table(text=[[t] for t in TEXTS], body=STRINGS), "is of type list", "'body'"),
    "nulls": (table(text=pa.nulls(4)), "holds nulls only", "there is none"),
    "case": (table(Text=STRINGS), "no column 'text'; it has 'Text'", "'Text'"),
    "time": (table(text=[datetime.date(2024, 1, 1)]), "is of type date", "there is none"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_column_that_holds_no_text_is_named_with_those_that_do(name: str, tmp_path: Path) -> None:
    made, message, hint = ODD[name]
    pq.write_table(made, tmp_path / "a.parquet")
    for read in (lambda p: list(read_texts([p])), lambda p: list(read_shard(p))):
        with pytest.raises(TrainerError, match=message) as caught:
            read(tmp_path / "a.parquet")
        assert hint in caught.value.hint and "ownload" not in caught.value.hint


def test_a_dotted_name_is_a_column_not_a_path(tmp_path: Path) -> None:
    inner = pa.array([{"text": "inner"}] * 12)
    pq.write_table(pa.table({"doc": inner, "doc.text": STRINGS}), tmp_path / "a.parquet")
    assert list(read_texts([tmp_path / "a.parquet"], column="doc.text")) == TEXTS
    assert [t for g in read_shard(tmp_path / "a.parquet", "doc.text") for t in g.texts] == TEXTS


@pytest.mark.parametrize("name", ["int", "time", "list"])
def test_labels_of_any_plain_type(name: str, tmp_path: Path) -> None:
    values = {"int": range(12), "time": [datetime.date(2024, 1, 2)] * 12, "list": [["a"]] * 12}
    pq.write_table(pa.table({"text": STRINGS, "k": list(values[name])}), tmp_path / "a.parquet")
    if name == "list":
        with pytest.raises(TrainerError, match="'k' is of type list"):
            list(read_file(tmp_path / "a.parquet", label="k"))
        return
    labels = [text.label for text in read_file(tmp_path / "a.parquet", label="k")]
    assert labels[1] == {"int": "1", "time": "2024-01-02"}[name]


def test_a_damaged_page_costs_its_row_group_and_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(text=STRINGS), path, row_group_size=4, compression="gzip",
                   use_dictionary=False, write_page_checksum=True)  # fmt: skip
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    data[end - 30 : end - 10] = bytes(20)
    path.write_bytes(data)
    found = list(read_file(path))
    bad = [text.bad for text in found if text.bad]
    assert [t.data.decode() for t in found if t.data] == TEXTS[:4] + TEXTS[8:]
    assert [b.rows for b in bad] == [4] and "row group 1" in bad[0].message


def test_names_that_are_no_data_are_passed_over_and_links_followed(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    folder.mkdir()
    pq.write_table(table(text=STRINGS), blobs / "0a1b")
    (folder / "odd , : \"'\n.parquet").symlink_to(blobs / "0a1b")
    (folder / "._a.parquet").write_bytes(b"\0\x05\x16\7" + bytes(90))
    (folder / "_SUCCESS").write_bytes(b"")
    spark = folder / "part.parquet"
    spark.mkdir()
    pq.write_table(table(text=STRINGS), spark / "part-0000.snappy.parquet")
    files = text_files(folder)
    assert len(files) == 2 and list(read_texts(files)) == TEXTS * 2
    (folder / "gone.jsonl").symlink_to("../nowhere")
    with pytest.raises(TrainerError, match="a link to a file that does not exist"):
        text_files(folder)
    assert kind_of(Path("a.TXT")) == "text" and kind_of(Path("._a.txt")) is None


def test_a_thousand_shards_need_few_file_handles(tmp_path: Path) -> None:
    pq.write_table(table(text=STRINGS), tmp_path / "first.parquet", row_group_size=6)
    shards = [tmp_path / f"{i:04}.parquet" for i in range(1200)]
    for path in shards:
        path.hardlink_to(tmp_path / "first.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        texts = sample_texts(shards, "text", max_chars=2_000_000, doc_cap=1000)
        assert sum(1 for _ in texts) == 1200 * len(TEXTS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_build_that_skips_counts_every_line_it_skipped(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("datatrove")
    from dataclasses import replace

    from reference.data.build import Options, build_corpus
    from reference.data.spec import load_spec

    (tmp_path / "in").mkdir()
    bad = [b"{broken", b'{"body": "x"}', b'{"text": "\xfc"}', b'{"text":"a","m":' + b"[" * 9_999]
    lines = [*LINES[:3], *bad, *LINES[3:]]
    (tmp_path / "in/A.JSONL").write_bytes(b"\n".join(lines) + b"\n" + bytes(64))
    (tmp_path / "in/b.jsonl.gz").write_bytes(gzip.compress(WHOLE)[:-25])
    spec = tmp_path / "s.toml"
    spec.write_text('[[source]]\nname="s"\npath="in"\nfilters=false\n[dedup]\nnear=false\n')
    with pytest.raises(TrainerError, match="line 4 is no JSON"):
        build_corpus(load_spec(spec), tmp_path / "one", Options(workers=1))
    skipping = replace(load_spec(spec), on_error="skip")
    manifest = build_corpus(skipping, tmp_path / "two", Options(workers=1))
    counts = {name: entry["documents"] for name, entry in manifest["removed"].items()}
    assert counts == {"read/bad_json": 2, "read/no_text": 1, "read/invalid_utf8": 1,
                      "read/damaged": 1}  # fmt: skip
    assert len(manifest["problems"]) == 5
    texts = {
        t
        for p in (tmp_path / "two").glob("*.parquet")
        for t in pq.read_table(p)["text"].to_pylist()
    }
    assert texts == set(TEXTS)


def test_a_split_pattern_that_no_engine_reads_is_one_error(tmp_path: Path) -> None:

    from reference.tokenizer.reuse import reuse

    ranks = (base64.b64encode(bytes([i])) + f" {i}".encode() for i in range(256))
    (tmp_path / "a.tiktoken").write_bytes(b"\n".join(ranks))
    with pytest.raises(TrainerError, match="cannot be used as the tokenizer"):
        reuse(str(tmp_path / "a.tiktoken"), pattern="(")


def test_a_token_with_two_ranks_is_no_file_of_ranks(tmp_path: Path) -> None:
    from reference.tokenizer.reuse import reuse

    tokens = [bytes([i]) for i in range(256)] + [b"th", b"th"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (tmp_path / "a.tiktoken").write_bytes(b"\n".join(lines))
    with pytest.raises(TrainerError, match="1 tokens have two ranks"):
        reuse(str(tmp_path / "a.tiktoken"))


@pytest.mark.parametrize("text", ['{"format": 1}', '{"format": 1, "sources": {"a": 3}}'])
def test_a_damaged_manifest_is_named(text: str, tmp_path: Path) -> None:
    from reference.data.diff import diff
    from reference.data.report import write_report

    (tmp_path / "corpus.json").write_text(text)
    with pytest.raises(TrainerError, match=r"corpus\.json of .* is damaged"):
        write_report(tmp_path, tmp_path / "out.html")
    with pytest.raises(TrainerError, match=r"corpus\.json of .* is damaged"):
        diff(tmp_path, tmp_path)
    assert not (tmp_path / "out.html").exists()

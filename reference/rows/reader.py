"""The one reader of text files: `data build`, `data report`, `eval bpb`, `tokenizer` and `run`.

Parquet (a column), JSON lines (a field; plain, .gz or .zst) and text files, names in any case. What
cannot be read becomes a `BadText` with its place and a remedy for this very file; the caller stops
there or counts it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reference.errors import TrainerError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
AGAIN = "Download the file again, or leave it out."
NO_LIMIT = 1 << 62
_ROWS = 64  # documents read at a time, fewer where they are large
_READ_BYTES = 16 << 20
_HEAD = 4096  # bytes of what is too long to be read
_ESCAPES = 6  # bytes of JSON for one of text at most
BOM = b"\xef\xbb\xbf"


class BadText(NamedTuple):
    """What could not be read: the reason as a word, a sentence, a remedy, and how many rows."""

    reason: str
    message: str
    hint: str
    rows: int = 1

    def error(self) -> TrainerError:
        return TrainerError("bad_input", self.message, self.hint)


class Text(NamedTuple):
    """One text as UTF-8 (None: a null), its label, and where it stands for messages."""

    data: bytes | None
    label: str | None
    place: str
    size: int = 0  # bytes, where only the beginning was read because the rest is of no use
    bad: BadText | None = None


def kind_of(path: Path) -> str | None:
    """ "parquet", "jsonl" or "text" by the end of the name, in any case; None for all else."""
    name = path.name.lower()
    if name.startswith((".", "_")):  # ._a.parquet of macOS, _SUCCESS of Spark
        return None
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return {".parquet": "parquet", ".txt": "text"}.get(suffix, "jsonl")
    return None


def files_ending(folder: Path, ending: str) -> list[Path]:
    """Visible items of `folder` with this ending, in any case, by name; the kit lists them alike.

    macOS puts a hidden `._a.parquet` beside each `a.parquet` that it copies.
    """
    if not folder.is_dir():
        return []
    names = (p for p in folder.iterdir() if p.name.lower().endswith(ending) and p.name[0] != ".")
    return sorted(names, key=lambda path: path.name)


def text_files(folder: Path, kinds: Sequence[str] = ("parquet", "jsonl", "text")) -> list[Path]:
    """The readable files of a folder by name; a folder called *.parquet (Spark) counts as its own.

    Raises:
        TrainerError: A link among them leads nowhere, or there is none.
    """
    found = []
    for item in sorted(folder.iterdir()):
        if kind_of(item) not in kinds:
            continue
        if item.is_dir():
            found += text_files(item, kinds)
        elif not item.exists():
            raise TrainerError(
                "bad_input", f"{item} is a link to a file that does not exist", AGAIN
            )
        else:
            found.append(item)
    return found


def read_texts(paths: Sequence[Path], *, column: str = "text") -> Iterator[str]:
    """The texts of files, and of the validation shard of folders; nulls and blanks left out.

    The validation shard is every file named validation*, else the last by name.

    Raises:
        TrainerError: With file, place and remedy.
    """
    for path in paths:
        if path.is_dir():
            shards = text_files(path, ("parquet",))
            chosen = [p for p in shards if p.name.lower().startswith("validation")] or shards[-1:]
            if not chosen:
                raise TrainerError(
                    "bad_input", f"{path} holds no parquet file", "Name a file or another folder."
                )
        else:
            chosen = [path]
        for file in chosen:
            for text in read_file(file, column):
                if text.bad is not None:
                    raise text.bad.error()
                if text.data is None or not text.data.strip():
                    continue
                try:
                    yield text.data.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise not_utf8(text.place, error.start).error() from error


def not_utf8(place: str, byte: int) -> BadText:
    """The problem of a text that is not UTF-8."""
    return BadText(
        "invalid_utf8",
        f"{place}: the text is no UTF-8 (byte {byte})",
        "Convert the file (iconv -f LATIN1 -t UTF-8), or leave such texts out (`data build "
        "--skip-bad`).",
    )


def read_file(
    path: Path,
    column: str = "text",
    *,
    label: str = "",
    groups: range | None = None,
    limit: int = NO_LIMIT,
) -> Iterator[Text]:
    """The texts of one file; what cannot be read stands between them as `Text.bad`.

    Args:
        column: Column or JSON key of the text.
        label: Column or key of a label, if any.
        groups: Row groups of a parquet file; None: all.
        limit: Bytes; of a longer text or JSON line only the beginning is read.

    Raises:
        TrainerError: The file as a whole is not what its name says.
    """
    refuse_stand_in(path)
    kind = kind_of(path)
    if kind == "parquet":
        yield from _read_parquet(path, column, label, groups)
    elif kind == "jsonl":
        yield from _read_jsonl(path, column, label, limit)
    else:
        size = path.stat().st_size
        with path.open("rb") as file:
            data = file.read() if size <= limit else file.read(_HEAD)
        yield Text(_clean(data.removeprefix(BOM)), None, str(path), 0 if size <= limit else size)


def refuse_stand_in(path: Path) -> None:
    """Raises a TrainerError for a stand-in: an LFS pointer, a web page, a link to nowhere."""
    if path.is_symlink() and not path.exists():
        raise TrainerError("bad_input", f"{path} is a link to a file that does not exist", AGAIN)
    if not path.is_file():
        raise TrainerError(
            "bad_input", f"{path} is not a file", "Name a file or a folder of files."
        )
    if path.name.startswith("._"):
        raise TrainerError(
            "bad_input",
            f"{path} is a companion file that macOS wrote, not data",
            "Remove such files: find FOLDER -name '._*' -delete",
        )
    with path.open("rb") as file:
        head = file.read(512)
    what = ""
    if head.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the file itself"
    elif kind_of(path) != "text":
        if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
            what = "a web page, not the file itself"
        elif kind_of(path) == "parquet" and not head:
            what = "not a readable parquet file: it is empty"
        elif head and not head.strip(b"\0") and path.stat().st_size <= len(head):
            what = "nothing but zero bytes"
    if what:
        raise TrainerError("bad_input", f"{path} is {what}", AGAIN)


def _clean(data: bytes) -> bytes:
    """Without the runs of NUL that a power cut leaves at the ends of a text."""
    return data.strip(b"\0") if b"\0" in data else data


# Parquet


def open_parquet(path: Path, column: str, *, streamed: bool = False) -> Any:
    """The open file, known to have one column of that name that holds text.

    Args:
        streamed: Read a row group piece by piece, for files whose row groups are large.

    Raises:
        TrainerError: It is unreadable or has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_stand_in(path)
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20 if streamed else 0)
    except (pa.ArrowException, OSError) as error:
        raise TrainerError(
            "bad_input", f"{path} is not a readable parquet file: {first_line(error)}", AGAIN
        ) from error
    try:
        _check_column(path, file.schema_arrow, column)
    except TrainerError:
        file.close()
        raise
    return file


def _check_column(path: Path, schema: Any, column: str) -> None:
    import pyarrow as pa

    names = list(schema.names)
    if names.count(column) > 1:
        raise TrainerError(
            "bad_input",
            f"{path} has {names.count(column)} columns named {column!r}",
            "Rename one of them: which of them holds the text, the file does not say.",
        )
    texts = [field.name for field in schema if _is_text(field.type)]
    hint = (
        f"Name a column that holds text: {', '.join(map(repr, texts)) or 'there is none'} "
        "(recipe: data.text_column; spec: `text` of the source; eval: --column)."
    )
    if column not in names:
        raise TrainerError(
            "bad_input",
            f"{path} has no column {column!r}; it has {', '.join(map(repr, names))}",
            hint,
        )
    kind = schema.field(column).type
    if pa.types.is_null(kind):
        raise TrainerError("bad_input", f"{path}: column {column!r} holds nulls only", hint)
    if not _is_text(kind):
        raise TrainerError(
            "bad_input", f"{path}: column {column!r} is of type {kind}, not string", hint
        )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    checks = (
        "is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary",
        "is_binary_view",
    )  # fmt: skip
    return any(getattr(pa.types, check)(kind) for check in checks)


def plain_bytes(values: Any) -> Any:
    """A column of text of any encoding as large_binary: a text that is no UTF-8 harms no other."""
    return _decoded(values, "large_binary")


def _decoded(values: Any, kind: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    elif pa.types.is_run_end_encoded(values.type):
        values = pc.run_end_decode(values)
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    elif pa.types.is_binary_view(values.type):
        values = values.cast(pa.binary())
    return values.cast(getattr(pa, kind)())


def _check_label(path: Path, schema: Any, label: str) -> None:
    import pyarrow as pa

    hint = "Correct `domain_column` of the source: a column with one value a row."
    if list(schema.names).count(label) != 1:
        raise TrainerError("bad_input", f"{path} has no column {label!r}", hint)
    kind = schema.field(label).type
    if pa.types.is_nested(kind) and not pa.types.is_run_end_encoded(kind):
        raise TrainerError("bad_input", f"{path}: column {label!r} is of type {kind}", hint)


def _read_parquet(path: Path, column: str, label: str, groups: range | None) -> Iterator[Text]:
    import pyarrow as pa

    columns = [column, *([label] if label else [])]
    with open_parquet(path, column, streamed=True) as file:
        if label:
            _check_label(path, file.schema_arrow, label)
        for group in groups if groups is not None else range(file.num_row_groups):
            facts = file.metadata.row_group(group)
            mean = max(1, facts.total_byte_size // max(1, facts.num_rows))
            rows, row = max(1, min(_ROWS, _READ_BYTES // mean)), 0
            try:
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                    # By name: `a.b` also selects the field b of a column a.
                    names = batch.schema
                    values = plain_bytes(batch.column(names.get_field_index(column)))
                    labels = (
                        _decoded(batch.column(names.get_field_index(label)), "string")
                        if label
                        else None
                    )
                    for index in range(len(batch)):
                        place = f"{path}: row group {group}, row {row}"
                        data = values[index].as_py()
                        yield Text(
                            None if data is None else _clean(data),
                            labels[index].as_py() if labels is not None else None,
                            place,
                        )
                        row += 1
            except (pa.ArrowException, OSError, OverflowError) as error:
                lost = facts.num_rows - row
                message = (
                    f"{path}: row group {group}, column {column!r} cannot be read after row {row} "
                    f"({lost} rows lost): {first_line(error)}"
                )
                yield Text(None, None, str(path), 0, BadText("damaged", message, AGAIN, lost))


# JSON lines


def _read_jsonl(path: Path, key: str, label: str, limit: int) -> Iterator[Text]:
    number = 0
    try:
        with _open_lines(path) as file:
            for number, (line, size) in enumerate(_lines(file, _ESCAPES * limit), start=1):
                place = f"{path}: line {number}"
                if size > len(line):
                    yield Text(line, None, place, size)
                    continue
                if number == 1:
                    _refuse_foreign(path, line)
                    line = line.removeprefix(BOM)
                line = _clean(line.strip()).strip()
                if line:
                    yield _json_text(line, key, label, place)
    except TrainerError:
        raise
    except Exception as error:
        damaged = isinstance(error, OSError | EOFError | zlib.error)
        if not damaged and not type(error).__module__.startswith("zstandard"):
            raise
        message = f"{path} cannot be read after line {number}: {first_line(error)}"
        yield Text(None, None, str(path), 0, BadText("damaged", message, AGAIN))


def _refuse_foreign(path: Path, line: bytes) -> None:
    """Raises for a first line that shows another format than one JSON object a line."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TrainerError(
            "bad_input", f"{path} is UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8 IN > OUT"
        )
    if line.removeprefix(BOM).lstrip().startswith(b"["):
        raise TrainerError(
            "bad_input",
            f"{path} is one JSON list, not one JSON object a line",
            "Convert it: jq -c '.[]' IN > OUT",
        )


def _open_lines(path: Path) -> Any:
    packing = path.suffix.lower()
    if packing == ".gz":
        return gzip.open(path, "rb")
    if packing == ".zst":
        import zstandard

        engine = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        stream = engine.stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(stream)
    return path.open("rb")


def _lines(file: Any, limit: int) -> Iterator[tuple[bytes, int]]:
    """(line, its bytes); of lines of more than `limit` bytes the beginning."""
    limit = min(limit, sys.maxsize)
    while line := file.readline(limit):
        size = len(line)
        if size == limit and not line.endswith(b"\n"):
            while rest := file.readline(_READ_BYTES):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
            line = line[:_HEAD] if size > limit else line
        yield line, size


def _integer(digits: str) -> int | str:
    """Integers of any length: Python refuses to convert long ones."""
    return int(digits) if len(digits) < 4000 else digits


def _json_text(line: bytes, key: str, label: str, place: str) -> Text:
    def bad(reason: str, message: str, hint: str) -> Text:
        return Text(line, None, place, 0, BadText(reason, message, hint))

    mend = "Mend or remove the line, or leave such lines out (`data build --skip-bad`)."
    try:
        record = json.loads(line.decode("utf-8"), parse_int=_integer)
    except UnicodeDecodeError as error:
        return Text(line, None, place, 0, not_utf8(place, error.start))
    except RecursionError:
        return bad("bad_json", f"{place} is nested too deeply", mend)
    except ValueError as error:
        also = (
            " A comma ends the line: JSON lines do not end in a comma." if line[-1:] == b"," else ""
        )
        return bad("bad_json", f"{place} is no JSON: {error}", mend + also)
    if not isinstance(record, dict) or key not in record:
        found = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
        return bad(
            "no_text",
            f"{place} has no key {key!r}; it has {found}",
            "Name the key that holds the text (spec: `text` of the source; eval: --column).",
        )
    text = record[key]
    if text is not None and not isinstance(text, str):
        return bad("no_text", f"{place}: {key!r} is {type(text).__name__}, not a text", mend)
    found_label = record.get(label) if label else None
    # A lone surrogate (half of an emoji cut off) becomes U+FFFD, as every reader of UTF-8 has it.
    data = None if text is None else text.encode("utf-16", "surrogatepass")
    if data is not None:
        data = data.decode("utf-16", "replace").encode()
    return Text(data, None if found_label is None else str(found_label), place)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def raise_file_limit() -> None:
    """Lets this process open as many files as it may: corpora have thousands of shards."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""Inputs cut into parts, and the documents of one part, in order, with errors that name the place.

A part is a run of row groups of a parquet file, a text or jsonl file, or one shard of a streamed
`datasets` data set. The cut follows the input and `part_mb` alone.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from reference.data.spec import Source
from reference.errors import TrainerError
from reference.rows.documents import FILE_HINT, find_parquet_column

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
_ROWS = 64  # documents read at a time, fewer where they are large
_READ_BYTES = 16 << 20
_NO_LIMIT = 1 << 62
_HEAD = 4096  # bytes of what is too long to be read
_ESCAPES = 6  # bytes of JSON for one of text at most
_STATE_HINT = "Start the build again in an empty folder, or put the old file back."


@dataclass(frozen=True)
class Part:
    """What one task reads. `begin` and `end`: row groups, or the shard's number and count."""

    source: int
    file: str
    begin: int = 0
    end: int = 0
    bytes: int = 0
    modified_ns: int = 0
    etag: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def label(self) -> str:
        name = Path(self.file).name
        return f"{name}[{self.begin}:{self.end}]" if self.end else name


class RawDocument(NamedTuple):
    """Bytes as read (None: a null), the label, and where it stands for messages."""

    data: bytes | None
    domain: str
    place: str
    size: int = 0  # in bytes, where only the beginning was read because there is no use for it


def files_of(source: Source) -> list[Path]:
    """The files behind `source.path`, by name.

    Raises:
        TrainerError: There is none.
    """
    path = Path(source.path)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [item for item in path.iterdir() if item.name.endswith(SUFFIXES)]
    else:
        found = [item for item in path.parent.glob(path.name) if item.name.endswith(SUFFIXES)]
    found = [
        item
        for item in found
        if not any(fnmatch.fnmatch(item.name, pattern) for pattern in source.exclude)
    ]
    if not found:
        raise TrainerError(
            "bad_input",
            f"source {source.name!r}: no {', '.join(SUFFIXES)} file at {source.path}",
            "Name a file, a folder or a pattern such as data/web-*.parquet.",
        )
    return sorted(found)


def find_parts(
    source: Source, index: int, part_bytes: int, on_bad: Callable[[TrainerError], None]
) -> Iterator[Part]:
    """The parts of `source`, in order.

    Args:
        on_bad: Called with the error of a file that cannot be opened; it raises, or returns and
            the file is left out.
    """
    if source.dataset:
        yield from _stream_parts(source, index)
        return
    for path in files_of(source):
        facts = path.stat()
        part = Part(index, str(path), bytes=facts.st_size, modified_ns=facts.st_mtime_ns)
        if path.suffix != ".parquet":
            yield part
            continue
        try:
            with find_parquet_column(path, source.text, allow_binary=True) as file:
                sizes = [
                    file.metadata.row_group(group).total_byte_size
                    for group in range(file.num_row_groups)
                ]
        except TrainerError as error:
            on_bad(error)
            continue
        begin = total = 0
        for group, size in enumerate(sizes):
            total += size
            if total >= part_bytes or group == len(sizes) - 1:
                yield Part(index, part.file, begin, group + 1, part.bytes, part.modified_ns)
                begin, total = group + 1, 0


def read_part(source: Source, part: Part, limit: int = _NO_LIMIT) -> Iterator[RawDocument]:
    """The documents of `part`.

    Args:
        limit: Bytes; of a longer text or JSON line only the beginning is read.

    Raises:
        TrainerError: The input has changed since it was cut, or cannot be read; the message names
            file and place.
    """
    if source.dataset:
        yield from _read_stream(source, part)
        return
    path = Path(part.file)
    try:
        facts = path.stat()
    except OSError as error:
        raise TrainerError("bad_input", f"{path} is gone: {error.strerror}", _STATE_HINT) from error
    if (facts.st_size, facts.st_mtime_ns) != (part.bytes, part.modified_ns):
        raise TrainerError("bad_input", f"{path} has changed since the build began", _STATE_HINT)
    domain = source.domain or source.name
    if path.suffix == ".parquet":
        yield from _read_parquet(path, source, part, domain)
    elif path.suffix == ".txt":
        with path.open("rb") as text:
            whole = facts.st_size <= limit
            yield RawDocument(
                text.read() if whole else text.read(_HEAD),
                domain,
                str(path),
                0 if whole else facts.st_size,
            )
    else:
        yield from _read_jsonl(path, source, domain, limit)


def _read_parquet(path: Path, source: Source, part: Part, domain: str) -> Iterator[RawDocument]:
    columns = [source.text, *([source.domain_column] if source.domain_column else [])]
    with find_parquet_column(path, source.text, allow_binary=True, streamed=True) as file:
        if source.domain_column and source.domain_column not in file.schema_arrow.names:
            raise TrainerError(
                "bad_input",
                f"{path} has no column {source.domain_column!r}",
                "Correct `domain_column` of the source.",
            )
        row = 0
        groups = [file.metadata.row_group(group) for group in range(part.begin, part.end)]
        mean = max(1, max(group.total_byte_size // max(1, group.num_rows) for group in groups))
        rows = max(1, min(_ROWS, _READ_BYTES // mean))
        try:
            for batch in file.iter_batches(
                rows, row_groups=range(part.begin, part.end), columns=columns
            ):
                # As bytes: one text that is no UTF-8 must not take the others along.
                values = _plain(batch.column(0)).cast(pa.large_binary())
                labels = _plain(batch.column(1)).cast(pa.string()) if source.domain_column else None
                for index in range(len(batch)):
                    label = labels[index].as_py() if labels is not None else domain
                    place = f"{path}: row groups {part.begin} to {part.end - 1}, row {row}"
                    yield RawDocument(values[index].as_py(), label or domain, place)
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise TrainerError(
                "bad_input",
                f"{path}: row groups {part.begin} to {part.end - 1} cannot be read after row "
                f"{row}: {str(error).splitlines()[0]}",
                FILE_HINT,
            ) from error


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _open_lines(path: Path) -> io.BufferedIOBase | Any:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb")))
    return path.open("rb")


def _read_jsonl(path: Path, source: Source, domain: str, limit: int) -> Iterator[RawDocument]:
    number = 0
    try:
        with _open_lines(path) as file:
            for number, (line, size) in enumerate(_lines(file, _ESCAPES * limit), start=1):
                if size > len(line):
                    yield RawDocument(line, domain, f"{path}: line {number}", size)
                elif line.strip():
                    yield _json_document(line, source, domain, f"{path}: line {number}")
    except (OSError, EOFError) as error:
        raise TrainerError(
            "bad_input", f"{path} cannot be read after line {number}: {error}", FILE_HINT
        ) from error
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise TrainerError(
                "bad_input", f"{path} cannot be read after line {number}: {error}", FILE_HINT
            ) from error
        raise


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


def _json_document(line: bytes, source: Source, domain: str, place: str) -> RawDocument:
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return RawDocument(line, domain, place)  # counted as no UTF-8 where it is decoded
    except ValueError as error:
        raise TrainerError("bad_input", f"{place} is no JSON: {error}", FILE_HINT) from error
    if not isinstance(record, dict) or source.text not in record:
        found = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
        raise TrainerError(
            "bad_input",
            f"{place} has no key {source.text!r}; it has {found}",
            "Set `text` of the source to the key that holds the text.",
        )
    text = record[source.text]
    if text is not None and not isinstance(text, str):
        raise TrainerError("bad_input", f"{place}: {source.text!r} is no text", FILE_HINT)
    label = record.get(source.domain_column) if source.domain_column else None
    data = None if text is None else text.encode("utf-8", "surrogatepass")
    return RawDocument(data, str(label or domain), place)


def _load_stream(source: Source, revision: str) -> Any:
    from datasets import load_dataset

    return load_dataset(
        source.dataset,
        source.config or None,
        split=source.split,
        revision=revision or None,
        data_files=list(source.data_files) or None,
        streaming=True,
    )


def _stream_parts(source: Source, index: int) -> Iterator[Part]:
    revision = source.revision
    try:
        if "/" in source.dataset and not Path(source.dataset).exists():
            from huggingface_hub import HfApi

            # Pinned once: a build that goes on tomorrow reads what it began with.
            revision = HfApi().dataset_info(source.dataset, revision=revision or None).sha or ""
        shards = _load_stream(source, revision).num_shards
    except Exception as error:
        raise _stream_error(source, error) from error
    for shard in range(shards):
        etag = f"{revision}|{remote_state(source)}"
        yield Part(index, source.dataset, shard, shards, etag=etag)


def remote_state(source: Source) -> str:
    """Size and ETag of the URLs a source names; what changes when they do."""
    import fsspec

    found = []
    for url in source.data_files:
        if "://" in url:
            system, path = fsspec.core.url_to_fs(url)
            facts = system.info(path)
            found.append(f"{facts.get('ETag', '')} {facts.get('size', '')}")
    return "; ".join(found)


def _read_stream(source: Source, part: Part) -> Iterator[RawDocument]:
    place = f"{source.dataset} shard {part.begin} of {part.end}"
    revision, _, remote = part.etag.partition("|")
    row = 0
    try:
        if remote and remote_state(source) != remote:
            files = ", ".join(source.data_files)
            raise TrainerError(
                "bad_input", f"{files} has changed since the build began", _STATE_HINT
            )
        stream = _load_stream(source, revision).shard(num_shards=part.end, index=part.begin)
        for row, record in enumerate(stream):
            if source.text not in record:
                raise TrainerError(
                    "bad_input",
                    f"{place} has no column {source.text!r}; it has {', '.join(record)}",
                    "Set `text` of the source to the column that holds the text.",
                )
            text = record[source.text]
            label = record.get(source.domain_column) if source.domain_column else None
            data = None if text is None else str(text).encode("utf-8", "surrogatepass")
            yield RawDocument(
                data, str(label or source.domain or source.name), f"{place} row {row}"
            )
    except TrainerError:
        raise
    except Exception as error:
        raise _stream_error(source, error, f"{place} after row {row}") from error


def _stream_error(source: Source, error: Exception, place: str = "") -> TrainerError:
    if isinstance(error, ModuleNotFoundError):
        return TrainerError(
            "bad_input",
            f"source {source.name!r} needs the package {error.name!r}",
            "in the checkout: pip install '.[data]'",
        )
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return TrainerError(
        "bad_input",
        f"source {source.name!r}: {place or source.dataset} cannot be read: {first}",
        "Check name, config, split and network; what is finished is kept.",
    )


def read_examples(pattern: str, text: str, limit: int) -> list[str]:
    """Up to `limit` texts of the files at `pattern`, from all of them in turn."""
    source = Source(name="examples", path=pattern, text=text)
    readers = [read_part(source, part) for part in find_parts(source, 0, 1 << 62, _raise)]
    found: list[str] = []
    while readers and len(found) < limit:
        alive = []
        for reader in readers:
            document = next(reader, None)
            if document is None:
                continue
            alive.append(reader)
            if document.data:
                found.append(document.data.decode("utf-8", "replace"))
        readers = alive
    return found[:limit]


def _raise(error: TrainerError) -> None:
    raise error

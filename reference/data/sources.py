"""Inputs cut into parts, and the documents of one part, in order, with errors that name the place.

A part is a run of row groups of a parquet file, a text or jsonl file, or one shard of a streamed
`datasets` data set. The cut follows the input and `part_mb` alone.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reference.data.spec import Source, Spec
from reference.errors import TrainerError
from reference.rows.reader import (
    NO_LIMIT,
    SUFFIXES,
    BadText,
    kind_of,
    open_parquet,
    raise_file_limit,
    read_file,
    refuse_stand_in,
    text_files,
)

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
    bad: BadText | None = None


def files_of(source: Source) -> list[Path]:
    """The files behind `source.path`, by name.

    Raises:
        TrainerError: There is none.
    """
    path = Path(source.path)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = text_files(path)
    else:
        found = [item for item in path.parent.glob(path.name) if kind_of(item)]
    found = [
        item
        for item in found
        if not any(fnmatch.fnmatch(item.name, pattern) for pattern in source.exclude)
    ]
    if not found:
        raise TrainerError(
            "bad_input",
            f"source {source.name!r}: no {', '.join(SUFFIXES)} file at {source.path}",
            _where_else(path),
        )
    return sorted(found)


def refuse_inside(out: Path, spec: Spec) -> None:
    """Refuses to write a corpus where the build reads, whatever the names and links between.

    Raises:
        TrainerError: `out` is, or lies in, a folder that the spec names, or is the folder of a
            file that it names.
    """
    quality, rules = spec.quality, spec.decontaminate
    named = [
        *(source.path for source in spec.source),
        *quality.clean,
        *quality.noisy,
        *spec.domains.examples.values(),
        rules.core,
        rules.chat_eval,
        *rules.extra,
    ]
    place = Path(os.path.realpath(out))  # Path.resolve raises for a link to itself
    above = [folder for folder in (place, *place.parents) if folder.exists()]
    for text in filter(None, named):
        path = Path(text)
        if path.is_dir():
            items = [path, *path.iterdir()]
        else:  # a file, or a pattern
            items = [path.parent / "_", *path.parent.glob(path.name)]
        folders = [item for item in items if item.is_dir() and (item == path or kind_of(item))]
        files = [item for item in items if item != path and not item.is_dir()]
        besides = {Path(os.path.realpath(item)).parent for item in files}
        if any(a.samefile(folder) for folder in folders for a in above) or any(
            place.exists() and folder.exists() and place.samefile(folder) for folder in besides
        ):
            raise TrainerError(
                "bad_input",
                f"the corpus would be written to {out}, among the files of {text}, which it is "
                "made from",
                "Name a folder outside of the inputs with --out.",
            )


def _where_else(path: Path) -> str:
    """A remedy: the folders below that hold files, if there are any."""
    if path.is_dir():
        below = sorted(
            item.name
            for item in path.iterdir()
            if item.is_dir() and any(map(kind_of, item.iterdir()))
        )
        if below:
            return f"Its folders {', '.join(below[:5])} hold some: name one of them."
    return "Name a file, a folder or a pattern such as data/web-*.parquet."


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
        try:
            if kind_of(path) != "parquet":
                refuse_stand_in(path)
                yield part
                continue
            with open_parquet(path, source.text) as file:
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


def read_part(source: Source, part: Part, limit: int = NO_LIMIT) -> Iterator[RawDocument]:
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
    groups = range(part.begin, part.end) if kind_of(path) == "parquet" else None
    texts = read_file(path, source.text, label=source.domain_column, groups=groups, limit=limit)
    for text in texts:
        yield RawDocument(text.data, text.label or domain, text.place, text.size, text.bad)


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
    raise_file_limit()
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

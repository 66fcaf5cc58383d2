"""Parquet shards in, documents of tokens out.

A corpus is a folder of `*.parquet` files with a string column. Files named `validation*` are the
validation split; without any, the last file by name is (nanochat's rule). Files named `anneal*` may
be kept for the end of training (`reference.rows.anneal`).

Every document is tokenized once, before pretraining, into a memory-mapped cache: so the loader can
shuffle over the whole corpus instead of a buffer, and a resumed run reads the very same tokens. A
cache belongs to one run (`token_folder`): tokenization counts on the clock, so no run may find the
work done by an earlier one. It lies outside the run folder because it is rebuildable and as large
as the corpus; its digest is what the run keeps.

One shard in the cache:
    NAME.tokens   documents one after the other, each BOS first; little-endian uint16, or uint32
                  for vocabularies above 65,536
    NAME.offsets  documents + 1 little-endian int64, where each begins
    NAME.json     counts and digests, written last: a shard without it is not there
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reference.errors import TrainerError
from reference.files import write_whole
from reference.rows.reader import files_ending, first_line, open_parquet, plain_bytes
from reference.tokenizer.bpe import Tokenizer

Split = Literal["train", "validation", "anneal"]
FILE_HINT = "Download or build the file again, or remove it from the folder."
SHARDS_HINT = "The data folder needs parquet files with one document a row in a text column."


class Shards(NamedTuple):
    """The files of a corpus, each split in the order of names."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    anneal: tuple[Path, ...] = ()


class RowGroup(NamedTuple):
    """Documents of one row group; null and blank ones are left out and counted."""

    texts: list[str]
    skipped: int
    rows: list[int]  # of each text, within the row group


@dataclass(frozen=True)
class ShardTokens:
    """What the cache knows about one tokenized shard."""

    name: str
    source_bytes: int
    tokenizer: str
    column: str
    dtype: str
    documents: int
    skipped: int
    tokens: int
    text_bytes: int
    tokens_sha256: str
    offsets_sha256: str
    refused: tuple[str, ...] = ()  # where documents stand that the tokenizer could not split


def find_shards(folder: Path, *, anneal: bool = False) -> Shards:
    """Training and validation files of the corpus in `folder`.

    Args:
        anneal: Keep files named `anneal*` apart; otherwise they are training files.

    Raises:
        TrainerError: No parquet file, none left for training, or no anneal part where wanted.
    """
    if not folder.is_dir():
        raise TrainerError("bad_input", f"{folder} is not a folder", SHARDS_HINT)
    files = files_ending(folder, ".parquet")
    if not files:
        raise TrainerError("bad_input", f"no *.parquet file in {folder}", SHARDS_HINT)
    validation = tuple(path for path in files if path.name.startswith("validation"))
    validation = validation or (files[-1],)
    last = tuple(path for path in files if anneal and path.name.startswith("anneal"))
    if anneal and not last:
        raise TrainerError(
            "bad_input",
            f"data.anneal is set, but {folder} has no anneal*.parquet",
            "Build the corpus with an [anneal] section, or set data.anneal = 0.",
        )
    train = tuple(path for path in files if path not in (*validation, *last))
    if not train:
        raise TrainerError(
            "bad_input",
            f"{folder} has no training shard: {files[-1].name} is the validation split",
            "Add at least one more parquet file; the last one by name is held out.",
        )
    return Shards(train, validation, last)


def read_shard(path: Path, column: str = "text") -> Iterator[RowGroup]:
    """The documents of one parquet file, row group by row group.

    Raises:
        TrainerError: The file is unreadable, empty, or lacks a string column of that name; the
            message names file, row group and column.
    """
    with _open_shard(path, column) as file:
        groups = file.num_row_groups
    for index in range(groups):
        # Opened for each group: a sample holds a reader on each of thousands of shards.
        with open_parquet(path, column) as file:
            try:
                table = file.read_row_group(index, columns=[column])
                place = table.schema.get_field_index(column)
                values = [value for chunk in table.column(place).chunks for value in _texts(chunk)]
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise TrainerError(
                    "bad_input",
                    f"{path}: row group {index}, column {column!r} cannot be read: "
                    f"{first_line(error)}",
                    FILE_HINT,
                ) from error
        kept = {row: text for row, text in enumerate(values) if text and not text.isspace()}
        yield RowGroup(list(kept.values()), len(values) - len(kept), list(kept))


def _texts(chunk: pa.Array) -> list[str | None]:
    if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
        found: list[str | None] = chunk.to_pylist()
        return found
    return [None if v is None else v.decode("utf-8") for v in plain_bytes(chunk).to_pylist()]


def shard_rows(path: Path, column: str = "text") -> int:
    """Rows of a shard; raises what `read_shard` would raise before its first row group."""
    with _open_shard(path, column) as file:
        return int(file.metadata.num_rows)


def _open_shard(path: Path, column: str) -> pq.ParquetFile:
    file = open_parquet(path, column)
    if file.metadata.num_rows == 0:
        file.close()
        raise TrainerError("bad_input", f"{path} holds no documents (0 rows)", FILE_HINT)
    return file


def sample_texts(
    paths: Sequence[Path], column: str, *, max_chars: int, doc_cap: int
) -> Iterator[str]:
    """Texts to train a tokenizer on: row groups of all shards in turn, up to `max_chars` in all.

    Taking turns matters for corpora whose shards are sorted by source.

    Args:
        doc_cap: Characters taken from one document, so that a few books do not decide.
    """
    readers = [read_shard(path, column) for path in paths]
    left = max_chars
    while readers:
        alive = []
        for reader in readers:
            group = next(reader, None)
            if group is None:
                continue
            alive.append(reader)
            for text in group.texts:
                piece = text[: min(doc_cap, left)]
                left -= len(piece)
                yield piece
                if left <= 0:
                    return
        readers = alive


def token_folder(cache: Path, run_id: str) -> Path:
    """Where the token cache of a run lies; see the module's docstring for why a run's own."""
    return cache / "tokens" / run_id


def tokenize_shard(
    path: Path,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    column: str = "text",
    threads: int = 1,
    on_documents: Callable[[int], None] = lambda count: None,
) -> ShardTokens:
    """Tokenizes `path` into `folder`, unless an earlier call did; whole or not at all.

    Args:
        on_documents: Called after every row group with its number of documents. What it raises
            ends the work; nothing is left under a final name.
    """
    record = folder / f"{path.stem}.json"
    done = _read_record(record)
    if (
        done is not None
        and (done.tokenizer, done.column) == (tokenizer.digest, column)
        and done.source_bytes == path.stat().st_size
        and _sizes_match(folder, path.stem, done)
    ):
        on_documents(done.documents + done.skipped + len(done.refused))
        return done

    folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    bos = np.array([tokenizer.bos_id], dtype=dtype)
    lengths: list[int] = []
    refused: list[str] = []
    skipped = text_bytes = 0
    sha256 = hashlib.sha256()
    temporary = folder / f"{path.stem}.tokens.tmp"
    with temporary.open("wb") as file:
        for number, group in enumerate(read_shard(path, column)):
            pieces = []
            encoded = tokenizer.encode_documents(group.texts, threads)
            for row, text, ids in zip(group.rows, group.texts, encoded, strict=True):
                if ids is None:
                    refused.append(f"{path.name}, row group {number}, row {row}")
                    continue
                pieces += [bos, ids.astype(dtype)]
                lengths.append(len(ids) + 1)
                text_bytes += len(text.encode("utf-8", "replace"))
            if pieces:
                data = np.concatenate(pieces).tobytes()
                sha256.update(data)
                file.write(data)
            skipped += group.skipped
            on_documents(len(group.texts) + group.skipped)
        file.flush()
        os.fsync(file.fileno())
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype("<i8").tobytes()
    temporary.replace(folder / f"{path.stem}.tokens")
    write_whole(folder / f"{path.stem}.offsets", offsets)
    result = ShardTokens(
        name=path.stem,
        source_bytes=path.stat().st_size,
        tokenizer=tokenizer.digest,
        column=column,
        dtype=dtype.str,
        documents=len(lengths),
        skipped=skipped,
        tokens=sum(lengths),
        text_bytes=text_bytes,
        tokens_sha256=sha256.hexdigest(),
        offsets_sha256=hashlib.sha256(offsets).hexdigest(),
        refused=tuple(refused),
    )
    write_whole(record, json.dumps(asdict(result), indent=1).encode())
    return result


def _read_record(path: Path) -> ShardTokens | None:
    try:
        record = json.loads(path.read_text())
        return ShardTokens(**{**record, "refused": tuple(record.get("refused", ()))})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def _sizes_match(folder: Path, stem: str, record: ShardTokens) -> bool:
    expected = {
        "tokens": record.tokens * np.dtype(record.dtype).itemsize,
        "offsets": (record.documents + 1) * 8,
    }
    return all(
        (file := folder / f"{stem}.{suffix}").is_file() and file.stat().st_size == size
        for suffix, size in expected.items()
    )


def _mapped(path: Path, record: ShardTokens) -> np.ndarray:
    """The tokens of a shard, mapped without a file handle: a corpus may have thousands of shards.

    `numpy.memmap` keeps a handle open for as long as any slice of the map lives.
    """
    import torch  # here: `data build` imports this module in every worker and needs no torch

    dtype = np.dtype(record.dtype)
    same_size = torch.int16 if dtype.itemsize == 2 else torch.int32
    tokens = torch.from_file(str(path), shared=False, size=record.tokens, dtype=same_size)
    array = tokens.numpy().view(dtype)
    array.flags.writeable = False
    return array


class Documents:
    """Tokenized documents, memory-mapped; `documents[i]` is one, BOS first.

    Args:
        folder: A token cache.
        names: Its shards, in the order in which documents are numbered.

    Attributes:
        lengths: (N,) int64, tokens of each document, BOS included.
        digest: "sha256:…" over the shards' digests in order: the identity of this token stream.

    Raises:
        TrainerError: A shard is missing or does not fit its record, or there is no document.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        redo = f"Remove {folder} and run the tokenizer stage again."
        self._tokens: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        identity = hashlib.sha256()
        self.tokenizer_digest = ""
        for name in names:
            record = _read_record(folder / f"{name}.json")
            if record is None or not _sizes_match(folder, name, record):
                raise TrainerError(
                    "bad_input", f"token cache {folder}: shard {name!r} is missing or torn", redo
                )
            if self.tokenizer_digest not in ("", record.tokenizer):
                raise TrainerError(
                    "bad_input", f"token cache {folder} mixes tokenizers at shard {name!r}", redo
                )
            self.tokenizer_digest = record.tokenizer
            identity.update(f"{record.tokens_sha256} {record.offsets_sha256}\n".encode())
            if record.documents:
                self._tokens.append(_mapped(folder / f"{name}.tokens", record))
                self._offsets.append(np.fromfile(folder / f"{name}.offsets", dtype="<i8"))
        if not self._tokens:
            raise TrainerError(
                "bad_input",
                f"token cache {folder} holds no document in {', '.join(names) or 'no shard'}",
                SHARDS_HINT,
            )
        self._first = np.cumsum([0] + [len(offsets) - 1 for offsets in self._offsets])
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets])
        self.digest = f"sha256:{identity.hexdigest()}"

    @classmethod
    def open(cls, folder: Path, split: Split, tokenizer: Tokenizer | None = None) -> Documents:
        """The documents of one split, as the index of the cache lists it.

        Raises:
            TrainerError: No whole cache, or one made with another tokenizer.
        """
        index = folder / "index.json"
        try:
            names = json.loads(index.read_text())[split]
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise TrainerError(
                "bad_input", f"no token cache at {folder}", "Run the tokenizer stage first."
            ) from error
        documents = cls(folder, names)
        if tokenizer is not None and documents.tokenizer_digest != tokenizer.digest:
            raise TrainerError(
                "bad_input",
                f"token cache {folder} was made with tokenizer {documents.tokenizer_digest}, "
                f"the run uses {tokenizer.digest}",
                "Run the tokenizer stage again.",
            )
        return documents

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        begin, end = self._offsets[shard][index - self._first[shard] :][:2]
        return self._tokens[shard][begin:end]


def write_index(
    folder: Path, train: Sequence[str], validation: Sequence[str], anneal: Sequence[str] = ()
) -> None:
    """Closes a token cache: lists its shards by split."""
    index = {"train": list(train), "validation": list(validation), "anneal": list(anneal)}
    write_whole(folder / "index.json", json.dumps(index, indent=1).encode())

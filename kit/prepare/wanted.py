"""Which files a prepared folder is to hold, and which repository files they are made of."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from kit.conversations import Mapped
from kit.errors import KitError, PrerequisiteError
from kit.files import has_ending
from kit.prepare.conversion import QUESTION_SETS, Converted, write_conversations, write_questions
from kit.prepare.dataset_lock import NAME, LockedFile, LockedPart
from kit.prepare.sources import RemoteFile, Snapshot
from kit.prepare.text_files import text_bytes, write_text
from kit.text_mix import TextMix, TextSource

# Bytes of a file made, of one downloaded: JSON lines of compressed parquet. On the high side.
_JSON_PER_PARQUET = 4


@dataclass(frozen=True)
class Wanted:
    """A file of the prepared folder, and the repository files it is made of."""

    path: str
    snapshot: Snapshot
    files: tuple[RemoteFile, ...]
    make: Callable[[Sequence[Path], Path], Converted] | None = None  # None: the file as it is
    growth: float = _JSON_PER_PARQUET  # bytes of it, of one downloaded, where it is made
    kept: LockedFile | None = None  # it is there, and right by the lock

    @property
    def origin(self) -> tuple[tuple[str, str], ...]:
        return tuple((self.snapshot.repository, file.path) for file in self.files)


def unchanged(snapshot: Snapshot, locked: LockedPart) -> Snapshot:
    """`snapshot` with the digests of the lock, unless the source states others."""
    files = []
    for file in snapshot.files:
        known = locked.source(snapshot.repository, file.path)
        if known is not None:
            differs = file.sha256 is not None and known.sha256 not in (None, file.sha256)
            if differs or file.bytes != known.bytes:
                raise KitError(
                    f"{file.path} of {snapshot.repository} has changed at its source since it was "
                    f"locked (commit {snapshot.commit})",
                    hint=f"Another source may have the old one (--mirror). To take the new one, "
                    f"remove {NAME} and run `n4090-kit prepare` again.",
                    expected=f"{known.sha256 or 'digest unknown'}, {known.bytes} bytes",
                    found=f"{file.sha256 or 'digest unknown'}, {file.bytes} bytes",
                )
            file = replace(file, sha256=file.sha256 or known.sha256)
        files.append(file)
    return replace(snapshot, files=tuple(files))


def shard_files(snapshot: Snapshot, count: int) -> list[Wanted]:
    """The first `count` parquet files by name for training, and the last one for validation."""
    shards = (file for file in snapshot.files if has_ending(file.path, ".parquet"))
    every = sorted(shards, key=lambda file: file.path)
    if len(every) < count + 1:
        raise PrerequisiteError(
            f"dataset {snapshot.repository} has {len(every)} parquet files, but {count} for "
            "training and one for validation are asked for",
            hint="Lower data.shards in the recipe, or take fewer with --shards N.",
        )
    chosen = [*every[:count], every[-1]]
    names = [PurePosixPath(file.path).name for file in chosen]
    # Trainers take files named validation*, or else the last one by name, for validation. Where the
    # repository's own names would have them take another one, they are numbered.
    if (
        len(set(names)) < len(names)
        or sorted(names)[-1] != names[-1]
        or any(name.startswith("validation") for name in names[:-1])
    ):
        names = [f"{index:06d}-{name}" for index, name in enumerate(names)]
    return [
        Wanted(f"pretrain/{name}", snapshot, (file,))
        for name, file in zip(names, chosen, strict=True)
    ]


def text_files(
    mix: TextMix, snapshot: Callable[[str, str], Snapshot], shards: int, folder: Path
) -> list[Wanted]:
    """The shards of the recipe's repository, and one file for each other source of its text.

    Args:
        shards: Training shards of the recipe's repository.
        folder: The prepared folder: a source is thinned to fit the text that lies there already.
    """
    wanted = shard_files(snapshot(mix.main.repository, mix.main.revision), shards)
    if not mix.others:
        return wanted
    *train, last = wanted
    name = PurePosixPath(last.path).name
    if not name.startswith("validation"):  # by its name, as it may not be the last one any more
        last = replace(last, path=f"pretrain/validation-{name}")
    column, first = mix.main.column, {"train": (mix.main, [item.path for item in train])}
    others: list[Wanted] = []
    for number, source in enumerate(mix.others):
        path = f"pretrain/{_PREFIX[source.part]}-{number:02}-{source.short_name}.parquet"
        files = _chosen(source, snapshot(source.repository, source.revision), mix.main)
        held = first.get(source.part)
        measure = None if held is None else functools.partial(_measured, *held, folder, column)
        first.setdefault(source.part, (source, [path]))
        make = functools.partial(write_text, source, measure, column)
        held_by = snapshot(source.repository, source.revision)
        others.append(Wanted(path, held_by, files, make, growth=1.5))
    return [*train, last, *others]


_PREFIX = {"train": "more", "anneal": "anneal"}


def _measured(
    first: TextSource, paths: Sequence[str], folder: Path, column: str
) -> tuple[float, int]:
    return first.share, sum(text_bytes(folder / path, column) for path in paths)


def _chosen(source: TextSource, snapshot: Snapshot, main: TextSource) -> tuple[RemoteFile, ...]:
    """The files of a source: never the one that is held out for validation."""
    files = [f for f in _matching(snapshot, source.files) if has_ending(f.path, ".parquet")]
    if source.repository == main.repository:
        every = sorted(f.path for f in snapshot.files if has_ending(f.path, ".parquet"))
        files = [file for file in files if file.path != every[-1]]
    chosen = files[source.skip : source.skip + source.shards]
    if len(chosen) < source.shards:
        raise PrerequisiteError(
            f"dataset {source.repository} has {len(files)} files {source.files} to train on, but "
            f"{source.shards} after the first {source.skip} are asked for",
            hint="Lower shards or skip of that source in data.text.",
        )
    return tuple(chosen)


def conversation_files(
    entries: Sequence[Mapped], snapshot: Callable[[str, str], Snapshot]
) -> list[Wanted]:
    """One file of conversations for each entry, named as it says, else after the repository."""
    wanted: dict[str, Wanted] = {}
    for entry in entries:
        held = snapshot(entry.repository, entry.revision)
        stem = entry.name or PurePosixPath(entry.repository).name
        path, number = f"sft/{stem}.jsonl", 1
        while path in wanted:
            number += 1
            path = f"sft/{stem}-{number}.jsonl"
        make = functools.partial(write_conversations, entry)
        wanted[path] = Wanted(path, held, _matching(held, entry.files), make)
    return list(wanted.values())


def question_files(names: Sequence[str], snapshot: Callable[[str], Snapshot]) -> list[Wanted]:
    wanted = []
    for name in names:
        questions = QUESTION_SETS[name]
        held = snapshot(questions.repository)
        files = _matching(held, questions.pattern)
        make = functools.partial(write_questions, name)
        wanted.append(Wanted(f"chat_eval/{name}_test.jsonl", held, files, make))
    return wanted


def _matching(snapshot: Snapshot, pattern: str) -> tuple[RemoteFile, ...]:
    """Files whose path fits `pattern`, in any case, by name."""
    fits = (f for f in snapshot.files if fnmatch.fnmatchcase(f.path.lower(), pattern.lower()))
    files = sorted(fits, key=lambda file: file.path)
    if not files:
        near = [file.path for file in snapshot.files if has_ending(file.path, ".parquet")][:5]
        raise PrerequisiteError(
            f"dataset {snapshot.repository} has no file {pattern}",
            hint=f"It has {', '.join(near) or 'no parquet file'}.",
        )
    return tuple(files)


def to_fetch(files: Sequence[Wanted]) -> Iterator[tuple[RemoteFile, Snapshot, float]]:
    """Each repository file to fetch, once, and the bytes made of one of its bytes (0: none)."""
    seen = set()
    for item in files:
        for file in item.files if item.kept is None else ():
            key = (item.snapshot.repository, file.path)
            if key not in seen:
                seen.add(key)
                yield file, item.snapshot, item.growth if item.make is not None else 0.0

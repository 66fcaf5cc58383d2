"""dataset.lock.json: what lies in a prepared folder, from which commit, with which digests.

It is written before the first byte is fetched, so that an interrupted `prepare` goes on with the
same commits, and again when a part is whole. The data of a part that is not `complete` is not used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kit.errors import KitError, SchemaError
from kit.files import files_ending, write_json
from kit.schemas import problems
from kit.trust.digest import DigestCache, sha256_file

NAME = "dataset.lock.json"
PARTS = ("pretrain", "sft", "chat_eval")
_ENDINGS = (".parquet", ".jsonl")


@dataclass(frozen=True)
class LockedSource:
    """A file as the repository has it."""

    repository: str
    path: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class LockedFile:
    """A file of the prepared folder and what it was made of."""

    path: str
    bytes: int | None
    sha256: str | None
    rows: int | None
    sources: tuple[LockedSource, ...]
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LockedRepository:
    repository: str
    revision: str
    commit: str | None
    commit_reason: str | None
    licence: str | None
    licence_reason: str | None


@dataclass(frozen=True)
class LockedPart:
    complete: bool
    asked: dict[str, Any]
    repositories: tuple[LockedRepository, ...]
    files: tuple[LockedFile, ...]

    def paths(self) -> set[str]:
        return {file.path for file in self.files}

    def commit_of(self, repository: str) -> str | None:
        return next((r.commit for r in self.repositories if r.repository == repository), None)

    def source(self, repository: str, path: str) -> LockedSource | None:
        every = (source for file in self.files for source in file.sources)
        return next((s for s in every if (s.repository, s.path) == (repository, path)), None)


Lock = dict[str, LockedPart]


def read_lock(folder: Path) -> Lock:
    """The lock in `folder`; empty when there is none.

    Raises:
        SchemaError: It is damaged.
    """
    path = folder / NAME
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path} cannot be read: {error}", hint=_anew(folder)) from error
    found = problems(document, "dataset-lock")
    if found:
        raise SchemaError(
            f"{path} is damaged:\n" + "\n".join(f"  {problem}" for problem in found[:10]),
            hint=_anew(folder),
        )
    return {name: _part(part) for name, part in document["parts"].items()}


def write_lock(folder: Path, lock: Lock) -> None:
    parts = {name: asdict(lock[name]) for name in PARTS if name in lock}
    write_json(folder / NAME, {"schema_version": 1, "parts": parts})


def _part(part: dict[str, Any]) -> LockedPart:
    return LockedPart(
        complete=part["complete"],
        asked=part["asked"],
        repositories=tuple(LockedRepository(**entry) for entry in part["repositories"]),
        files=tuple(
            LockedFile(
                **{**entry, "sources": tuple(LockedSource(**source) for source in entry["sources"])}
            )
            for entry in part["files"]
        ),
    )


def _anew(folder: Path) -> str:
    return f"Remove {folder} and run `n4090-kit prepare` again; what was downloaded is kept apart."


def check_part(
    folder: Path,
    name: str,
    part: LockedPart,
    *,
    cache: DigestCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Files of a part that are missing; those there are compared with the lock.

    Raises:
        KitError: A file differs from the lock, or one lies there that the lock does not know.
    """
    known = part.paths()
    for path in files_ending(folder / name, *_ENDINGS):
        if f"{name}/{path.name}" not in known:
            raise KitError(
                f"{path} is not in {NAME}, but a run would read it",
                hint="Move it elsewhere; a folder of your own is named with --data DIR.",
            )
    missing = []
    for file in part.files:
        path = folder / file.path
        if not path.is_file():
            missing.append(file.path)
        elif file.sha256 is not None:
            found = sha256_file(path, cache=cache, progress=progress)
            if found != file.sha256:
                raise KitError(
                    f"{path} has changed since it was prepared",
                    hint="Remove that file and run `n4090-kit prepare` again.",
                    expected=file.sha256,
                    found=found,
                )
    return missing


def usable(folder: Path, name: str) -> bool:
    """Whether a part of a prepared folder is whole by its lock (files are not read)."""
    part = read_lock(folder).get(name)
    return part is not None and part.complete

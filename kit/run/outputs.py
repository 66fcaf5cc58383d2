"""What a stage left behind, by digest. A file that no result could state fails the stage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kit.errors import KitError
from kit.limits import (
    MAX_EVALUATION_BYTES,
    MAX_FILES_PER_STAGE,
    MAX_OUTPUT_BYTES_PER_STAGE,
    MAX_PATH,
    MAX_STATE_FILES_PER_STAGE,
)
from kit.result import chat_section, core_section
from kit.schemas import section_problems
from kit.trust.canonical import parse_strict
from kit.trust.digest import FileDigest, sha256_file, tree_manifest
from kit.typed import to_json

EVALUATIONS = {"core": "core.json", "chat_eval": "chat.json"}


def list_outputs(stage: str, folder: Path) -> list[FileDigest]:
    """The files of `stage` in `folder` that its result lists.

    Raises:
        KitError: There are none, too many or too large ones, a link, a name or an evaluation that
            no result can state.
    """
    if stage in EVALUATIONS:
        return [_evaluation(stage, folder, EVALUATIONS[stage])]
    try:
        _measure(folder)
        files = [file for file in tree_manifest(folder) if not file.path.startswith("state/")]
    except FileNotFoundError:
        files = []
    except OSError as error:
        raise KitError(f"a file cannot be read: {error.strerror}") from error
    if not files:
        raise KitError(f"stage {stage} succeeded but wrote no output")
    for file in files:
        if len(file.path) > MAX_PATH or not file.path.isascii():
            raise KitError(
                f"output path {file.path[:80]!r} is not ASCII or longer than {MAX_PATH} characters"
            )
    return files


def _measure(folder: Path) -> None:
    """Counts files and bytes before any of them is read."""
    state = listed = size = 0
    for entry in _files(folder):
        if Path(entry.path).relative_to(folder).parts[0] == "state":
            state += 1
        else:
            listed += 1
            size += entry.stat(follow_symlinks=False).st_size
        if listed > MAX_FILES_PER_STAGE:
            raise KitError(f"more than {MAX_FILES_PER_STAGE} files", hint=_FEWER)
        if state > MAX_STATE_FILES_PER_STAGE:
            raise KitError(f"more than {MAX_STATE_FILES_PER_STAGE:,} files in state/", hint=_FEWER)
        if size > MAX_OUTPUT_BYTES_PER_STAGE:
            raise KitError(
                f"the stage wrote more than {MAX_OUTPUT_BYTES_PER_STAGE // 2**30} GiB",
                hint=_FEWER,
            )


_FEWER = "Keep fewer or smaller checkpoints."


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    yield entry


def _evaluation(stage: str, folder: Path, name: str) -> FileDigest:
    """The evaluation file, when the result's section can be made from it."""
    path = folder / name
    try:
        size = path.lstat().st_size
        if size > MAX_EVALUATION_BYTES:
            raise KitError(f"{name} is larger than {MAX_EVALUATION_BYTES // 2**20} MiB")
        digest = sha256_file(path)
        document = parse_strict(path.read_bytes(), max_bytes=MAX_EVALUATION_BYTES, name=name)
    except FileNotFoundError as error:
        raise KitError(f"stage {stage} succeeded but did not write {name}") from error
    except OSError as error:
        raise KitError(f"{name} cannot be read: {error.strerror}") from error
    section = core_section if stage == "core" else chat_section
    try:
        stated = to_json(section({**document, "digest": digest}))
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise KitError(f"{name} is not an evaluation: {type(error).__name__}: {error}") from error
    key = "core" if stage == "core" else "chat"
    if found := section_problems(stated, "result", ("quality", key)):
        raise KitError(f"{name} cannot stand in a result: {found[0]}")
    return FileDigest(name, size, digest)

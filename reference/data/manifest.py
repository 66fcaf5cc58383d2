"""`corpus.json`: what a finished corpus is and how it came to be; the digests that name it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reference.errors import TrainerError

MANIFEST = "corpus.json"
FORMAT = 1
# What decides what a corpus holds.
_DECIDING = (
    "document_pipeline",
    "filters",
    "index",
    "learn",
    "linear",
    "minhash",
    "overlap",
    "shards",
    "sources",
    "words",
)


def read_manifest(folder: Path) -> dict[str, Any]:
    """corpus.json of a finished corpus.

    Raises:
        TrainerError: The folder holds none.
    """
    path = folder / MANIFEST if folder.is_dir() else folder
    try:
        manifest = dict(json.loads(path.read_text()))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        unfinished = (folder / ".build").is_dir()
        raise TrainerError(
            "bad_input",
            f"{folder} holds no finished corpus ({MANIFEST})",
            "Run `n4090-kit data build` again: it resumes where it stopped."
            if unfinished
            else "Name a folder that `n4090-kit data build` wrote.",
        ) from error
    return manifest


@contextlib.contextmanager
def whole_manifest(*folders: Path) -> Iterator[None]:
    """Names a manifest of `folders` that lacks a field, or holds another type, as damaged.

    Raises:
        TrainerError: It does.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TrainerError(
            "bad_input",
            f"{MANIFEST} of {' or '.join(map(str, folders))} is damaged "
            f"({type(error).__name__}: {error})",
            "Build the corpus again with `n4090-kit data build`.",
        ) from error


def corpus_digest(shards: Sequence[dict[str, Any]]) -> str:
    """The digest a run's log gives this folder: of the lines `sha256sum *.parquet` prints."""
    lines = sorted((shard["path"], shard["sha256"].removeprefix("sha256:")) for shard in shards)
    text = "".join(f"{digest}  {path}\n" for path, digest in lines)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def content_digest(shards: Sequence[dict[str, Any]]) -> str:
    """Of the texts alone: the same whatever release of pyarrow wrote the files."""
    lines = sorted(f"{shard['path']} {shard['content']}\n" for shard in shards)
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def code_digest() -> str:
    """Of the modules that decide what a corpus holds: a build goes on with no others."""
    found = hashlib.sha256()
    here = Path(__file__).parent
    for path in (*(here / f"{name}.py" for name in _DECIDING), here.parent / "rows/reader.py"):
        found.update(path.read_bytes())
    return f"sha256:{found.hexdigest()}"

"""The digest of a submission's files, and a memory of it for folders that have not changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from kit.board.layout import TEXT_LIMITS
from kit.errors import SchemaError
from kit.files import write_bytes
from kit.trust.digest import DIGEST_PATTERN, manifest_digest, tree_manifest

# The tree of a folder that holds what does not belong there.
NO_TREE = "sha256:" + "0" * 64


class TreeCache:
    """Digests of folders, by what `lstat` says of everything in them; kept in one JSON file.

    Thousands of folders are looked at in each pass, and next to none has changed. As with every
    cache of this kind, whoever may write to the files can defeat it: it is for the owner's own
    command, and `board rebuild --check` never uses it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[str]] = {}
        self._seen: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads(path.read_bytes())
            if isinstance(loaded, dict):
                self._known = loaded

    def get(self, folder: Path, state: str) -> str | None:
        entry = self._known.get(str(folder))
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == state:
            tree = str(entry[1])
            if DIGEST_PATTERN.fullmatch(tree):
                self._seen[str(folder)] = entry
                return tree
        return None

    def put(self, folder: Path, state: str, tree: str) -> None:
        self._seen[str(folder)] = [state, tree]

    def save(self) -> None:
        """Keeps what was asked for since this cache was opened, and forgets the rest."""
        write_bytes(self._path, json.dumps(self._seen).encode())


def tree_of(folder: Path, cache: TreeCache | None = None) -> str:
    """One digest of a submission's files.

    Raises:
        SchemaError: A file that does not belong there, a link, one that is too large.
    """
    if cache is not None:
        state = _state(folder)
        if known := cache.get(folder, state):
            return known
    manifest = tree_manifest(folder)
    for file in manifest:
        limit = TEXT_LIMITS.get(file.path)
        if limit is None:
            raise SchemaError(f"`{file.path[:200]}` has no place in a submission")
        if file.bytes > limit:
            raise SchemaError(f"`{file.path}` is too large", bytes=file.bytes, limit=limit)
    tree = manifest_digest(manifest)
    if cache is not None:
        cache.put(folder, state, tree)
    return tree


def _state(folder: Path) -> str:
    """What `lstat` says of everything below `folder`, as a digest."""
    lines: list[str] = []
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                facts = entry.stat(follow_symlinks=False)
                lines.append(
                    f"{entry.path}\0{facts.st_mode}:{facts.st_dev}:{facts.st_ino}:{facts.st_size}:"
                    f"{facts.st_mtime_ns}:{facts.st_ctime_ns}"
                )
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    text = "\n".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

"""SHA-256 digests of bytes, files and trees, written `sha256:<64 hex digits>`.

A tree's digest is the digest of the lines `<hex>  <path>` for its files in byte order of their
relative POSIX paths: what `sha256sum` prints, so anyone checks it with coreutils alone. Links are
refused, never followed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kit.errors import SchemaError
from kit.files import open_regular

_CHUNK_BYTES = 4 * 2**20
DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")

Progress = Callable[[int], None]


class FileDigest(NamedTuple):
    path: str  # relative, POSIX
    bytes: int
    digest: str


class DigestCache:
    """Digests of files by device, inode, size, mtime and ctime; kept in one small JSON file.

    The owner of a file can defeat it, so only the owner's own commands use it: `verify` hashes anew
    unless asked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads(path.read_bytes())
            if isinstance(loaded, dict):
                self._entries = {
                    key: value
                    for key, value in loaded.items()
                    if isinstance(value, str) and DIGEST_PATTERN.fullmatch(value)
                }

    @staticmethod
    def _key(facts: os.stat_result) -> str:
        return (
            f"{facts.st_dev}:{facts.st_ino}:{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ctime_ns}"
        )

    def get(self, facts: os.stat_result) -> str | None:
        return self._entries.get(self._key(facts))

    def put(self, facts: os.stat_result, digest: str) -> None:
        self._entries[self._key(facts)] = digest

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._entries, sort_keys=True))
        temporary.replace(self._path)


def sha256_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(
    path: Path, *, progress: Progress | None = None, cache: DigestCache | None = None
) -> str:
    """Digest of a regular file's bytes. `progress` gets the number of bytes read since its last
    call.

    Raises:
        OSError: It cannot be read.
        SchemaError: It is a link or no regular file, or it changed while being read.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        known = cache.get(before) if cache else None
        if known is not None:
            if progress:
                progress(before.st_size)
            return known
        digest = hashlib.sha256()
        buffer = bytearray(min(_CHUNK_BYTES, max(before.st_size, 1)))
        view = memoryview(buffer)
        read = 0
        while count := file.readinto(buffer):
            digest.update(view[:count])
            read += count
            if read > before.st_size:
                break  # a file that grows has no end
            if progress:
                progress(count)
        after = os.fstat(file.fileno())
    if read != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise SchemaError(f"`{path.name}` changed while it was read")
    found = "sha256:" + digest.hexdigest()
    if cache:
        cache.put(after, found)
    return found


def tree_files(
    root: Path, patterns: Iterable[str] = ("*",), *, skip: Collection[str] = ()
) -> Iterator[str]:
    """Relative POSIX paths of the files under `root` that match a pattern, in byte order.

    A pattern is matched against the whole relative path (`*` crosses folders) or, without a slash,
    against the name.

    Args:
        skip: Names of folders that are not opened.

    Raises:
        SchemaError: A link, a special file or a name that no line can carry lies in the tree.
    """
    wanted = tuple(patterns)
    found: list[str] = []
    folders = [root]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                relative = path.relative_to(root).as_posix()
                if entry.is_symlink():
                    raise SchemaError(f"`{relative}` is a symbolic link")
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in skip:
                        folders.append(path)
                    continue
                if not any(
                    fnmatch.fnmatchcase(relative if "/" in pattern else entry.name, pattern)
                    for pattern in wanted
                ):
                    continue
                if not entry.is_file(follow_symlinks=False):
                    raise SchemaError(f"`{relative}` is not a regular file")
                if "\n" in relative or "\\" in relative or not relative.isprintable():
                    raise SchemaError(f"file name {relative!r} is not allowed in a manifest")
                found.append(relative)
    yield from sorted(found, key=lambda name: name.encode("utf-8", "surrogateescape"))


def tree_manifest(
    root: Path, patterns: Iterable[str] = ("*",), *, skip: Collection[str] = ()
) -> list[FileDigest]:
    """Path, size and digest of every file under `root` that matches."""
    return [
        FileDigest(name, (root / name).stat().st_size, sha256_file(root / name))
        for name in tree_files(root, patterns, skip=skip)
    ]


def manifest_digest(files: Sequence[FileDigest]) -> str:
    """One digest for a manifest: that of its lines as `sha256sum` writes them."""
    ordered = sorted(files, key=lambda file: file.path.encode("utf-8", "surrogateescape"))
    lines = "".join(f"{file.digest.removeprefix('sha256:')}  {file.path}\n" for file in ordered)
    return sha256_bytes(lines.encode("utf-8", "surrogateescape"))


def tree_digest(root: Path, patterns: Iterable[str] = ("*",), *, skip: Collection[str] = ()) -> str:
    """The digest of the tree under `root`; that of no lines when nothing matches."""
    return manifest_digest(tree_manifest(root, patterns, skip=skip))

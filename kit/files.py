"""Files appear under their final name only when whole."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from kit.errors import SchemaError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What stands in the way of a file at the place that was named.
NOT_ALLOWED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
)

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h


def has_ending(path: str | os.PathLike[str], *endings: str) -> bool:
    """Whether the file name ends in one of `endings`, in any case: `.PARQUET` is `.parquet`."""
    return os.fspath(path).lower().endswith(endings)


def files_ending(folder: Path, *endings: str) -> list[Path]:
    """Files (and folders) of `folder` with one of `endings`, in any case, by name.

    Hidden ones are left out: macOS puts a `._a.parquet` beside each `a.parquet` it copies.
    """
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if has_ending(p, *endings) and p.name[0] != ".")
    return sorted(found, key=lambda path: path.name)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` beside `path`, forces it to disk and renames it into place."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path`; the file written there is forced to disk and renamed to `path`.

    If the body raises, that file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with a final newline, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def open_regular(path: Path) -> BufferedReader:
    """The regular file at `path`, open for reading; a link, device or pipe is refused at once.

    Raises:
        OSError: It cannot be opened.
        SchemaError: It is a symbolic link or not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if path.is_symlink():
            raise SchemaError(f"`{path.name}` is a symbolic link") from error
        if error.errno == errno.ENXIO:  # a socket, or a device without a driver
            raise SchemaError(f"`{path.name}` is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SchemaError(f"`{path.name}` is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, max_bytes: int) -> bytes:
    """What the regular file at `path` holds; never more than `max_bytes` of it are read.

    Raises:
        OSError: It cannot be read.
        SchemaError: It is not a regular file, is larger than `max_bytes`, or grows while it is
            read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise SchemaError(f"`{path.name}` is too large", bytes=size, limit=max_bytes)
        data = file.read(size + 1)
    if len(data) != size:
        raise SchemaError(f"`{path.name}` changed while it was read")
    return data


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_space(descriptor: int, offset: int, length: int) -> None:
    """Takes `length` bytes of disk from `offset` on for a file, whose size stays as it is.

    Raises:
        OSError: The disk is full, or its file system cannot do that.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    place = ctypes.c_int64(offset), ctypes.c_int64(length)
    if libc.fallocate(descriptor, _KEEP_SIZE, *place) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

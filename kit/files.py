"""Files appear under their final name only when whole."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from pathlib import Path
from typing import Any

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

_LIBC = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` beside `path`, forces it to disk and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with a final newline, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
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
    if not hasattr(_LIBC, "fallocate"):  # not Linux
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    place = ctypes.c_int64(offset), ctypes.c_int64(length)
    if _LIBC.fallocate(descriptor, _KEEP_SIZE, *place) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

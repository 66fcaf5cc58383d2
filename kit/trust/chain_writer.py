"""Appends to a hash-chained log so that a crash at any moment leaves a readable one (Linux, macOS).

One append is one `write`: after kill -9 the file ends with a whole line or a torn one. The next
writer moves a torn tail to `<name>.torn` and continues.

Other processes of the same user can write to the file. The writer therefore writes at its own
offset, cuts off what others append, and puts its file back when another file lies under its name.
What others overwrite in the middle shows in the chain.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any, Self

from kit.errors import PrerequisiteError, SchemaError
from kit.files import keep_space
from kit.trust.canonical import canonical_bytes
from kit.trust.chain import MAX_LINE_BYTES, Chain, scan_chain
from kit.trust.digest import sha256_bytes


class ChainWriter:
    """Appends records to the chain at `path`; continues the one that is there.

    Args:
        room: Bytes kept on the disk behind the last record, so that a disk which others fill can
            still be told of here. Half of it is certain; nothing is where the file system cannot.

    Attributes:
        head, count, bytes: Of what is written so far.
        torn_bytes: Set aside when opening.
        foreign_bytes: Written into the file by others and cut off again.

    Raises:
        PrerequisiteError: Another process writes this chain.
        SchemaError: The file is damaged before its tail.
    """

    def __init__(self, path: Path, kind: str, *, room: int = 0) -> None:
        self.path = path
        self.kind = kind
        self._room = room
        self._room_end = 0
        self.foreign_bytes = 0
        self.torn_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            self._lock()
            chain = self._recover()
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise
        self.head = chain.head
        self.count = chain.count
        self.bytes = chain.bytes

    def append(self, record: dict[str, Any]) -> dict[str, Any]:
        """Writes `record` with its `seq` and `prev`; returns it so.

        Raises:
            OSError: It could not be written (a full disk); the chain is as it was before.
            SchemaError: `record` has no canonical form or is longer than a line may be.
        """
        linked = {**record, "seq": self.count, "prev": self.head}
        content = canonical_bytes(linked)
        if len(content) >= MAX_LINE_BYTES:
            raise SchemaError(
                "a record is too long for a line of the log",
                expected=f"less than {MAX_LINE_BYTES} bytes",
                found=f"{len(content)} bytes",
            )
        self._cut_foreign()
        self._keep_room()
        line = content + b"\n"
        try:
            written = os.pwrite(self._fd, line, self.bytes)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            os.ftruncate(self._fd, self.bytes)
            raise
        self.bytes += len(line)
        self.count += 1
        self.head = sha256_bytes(content)
        return linked

    def sync(self) -> None:
        """Makes what is written survive a power cut."""
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd < 0:
            return
        self._cut_foreign()
        self._put_back()
        os.ftruncate(self._fd, self.bytes)  # gives the room back
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrerequisiteError(
                f"`{self.path.name}` is being written by another process",
                hint="wait for the other run to end, or stop it",
            ) from None

    def _recover(self) -> Chain:
        """Keeps the whole lines; what a crash left behind them goes to `<name>.torn`."""
        chain = scan_chain(self.path, self.kind, lambda record: None, max_problems=1)
        size = os.fstat(self._fd).st_size
        keep = chain.bytes
        if chain.problems:
            data = os.pread(self._fd, size, 0)
            lines = data.split(b"\n")
            first_bad = chain.problems[0].line - 1
            if any(_is_record(line) for line in lines[first_bad:]):
                raise SchemaError(
                    f"`{self.path.name}` is damaged: {chain.problems[0].message}",
                    hint="the log was changed after it was written; start a new run",
                    place=f"line {first_bad + 1}",
                )
            keep = sum(len(line) + 1 for line in lines[:first_bad])
        if size > keep:
            self.torn_bytes = size - keep
            aside = self.path.with_name(self.path.name + ".torn")
            with aside.open("ab") as file:
                file.write(os.pread(self._fd, size - keep, keep) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._fd, keep)
            os.fsync(self._fd)
            if chain.problems:
                chain = scan_chain(self.path, self.kind, lambda record: None)
        return chain

    def _cut_foreign(self) -> None:
        extra = os.fstat(self._fd).st_size - self.bytes
        if extra:
            self.foreign_bytes += abs(extra)
            if extra > 0:
                os.ftruncate(self._fd, self.bytes)
                self._room_end = 0  # cut off as well

    def _keep_room(self) -> None:
        if self.bytes + self._room // 2 <= self._room_end:
            return
        self._room_end = self.bytes + self._room
        with contextlib.suppress(OSError):  # full already, or a file system that cannot
            keep_space(self._fd, self.bytes, self._room)

    def _put_back(self) -> None:
        """Restores this chain under its name when the file there was removed or replaced."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self._fd)):
                return
        self.foreign_bytes += 1
        temporary = self.path.with_name(self.path.name + ".own")
        with temporary.open("wb") as file:
            offset = 0
            while block := os.pread(self._fd, 2**20, offset):
                file.write(block)
                offset += len(block)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False

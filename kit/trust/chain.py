"""A log whose lines hold on to each other: JSON lines with `seq` and `prev`.

`prev` is the digest of the previous line's bytes (without its newline); the first line's is the
digest of a string that names the kind of chain, so no log passes for another kind. One append is
one `write`: after kill -9 the file ends with a whole line or a torn one. The next writer moves a
torn tail to `<name>.torn` and goes on.

The writer trusts nobody else with its file: it writes at its own offset, cuts off what others
append, and puts its file back when someone else's lies under its name. What others overwrite in the
middle shows in the chain.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from kit.errors import PrerequisiteError, SchemaError
from kit.files import keep_space, open_regular
from kit.trust.canonical import canonical_bytes
from kit.trust.digest import sha256_bytes
from kit.trust.json_lines import parse_line, parse_lines

MAX_LINE_BYTES = 2**20
MAX_CHAIN_BYTES = 512 * 2**20
_BLOCK_BYTES = 2**15  # read at a time; less than a line may have, and what a cache holds parsed

Visit = Callable[[dict[str, Any]], None]
VisitBlock = Callable[[list[dict[str, Any]]], None]


class ChainProblem(NamedTuple):
    line: int  # counted from 1
    message: str


@dataclass
class Chain:
    """What lies in a chain file. `records` is empty when it was scanned with a visitor."""

    head: str
    count: int = 0
    bytes: int = 0  # of the whole lines
    torn: int = 0  # bytes after the last newline
    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[ChainProblem] = field(default_factory=list)


def chain_seed(kind: str) -> str:
    """`prev` of the first line of a chain of this kind."""
    return sha256_bytes(f"n4090-kit chain v1: {kind}\n".encode())


def scan_chain(
    path: Path,
    kind: str,
    visit: Visit,
    *,
    max_bytes: int = MAX_CHAIN_BYTES,
    max_problems: int = 20,
) -> Chain:
    """Reads the chain at `path`, hands each record to `visit`, and keeps none.

    Every line that breaks the chain is in `problems`; reading goes on behind it, up to
    `max_problems`.

    Raises:
        OSError: It cannot be read.
        SchemaError: It is larger than `max_bytes`.
    """

    def each(records: list[dict[str, Any]]) -> None:
        for record in records:
            visit(record)

    return scan_blocks(path, kind, each, max_bytes=max_bytes, max_problems=max_problems)


def scan_blocks(
    path: Path,
    kind: str,
    visit: VisitBlock,
    *,
    max_bytes: int = MAX_CHAIN_BYTES,
    max_problems: int = 20,
) -> Chain:
    """As `scan_chain`, but hands over some hundreds of records at a time, in order."""
    chain = Chain(head=chain_seed(kind))
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise SchemaError(f"`{path.name}` is too large", bytes=size, limit=max_bytes)
        rest, left = b"", size  # what is added while it is read is not followed
        while data := file.read(min(_BLOCK_BYTES, left)):
            left -= len(data)
            first_end = data.find(b"\n")
            if len(rest) + (len(data) if first_end < 0 else first_end) > MAX_LINE_BYTES:
                chain.torn = size - chain.bytes
                problem = f"no line end within {MAX_LINE_BYTES} bytes"
                chain.problems.append(ChainProblem(chain.count + 1, problem))
                return chain
            if first_end < 0:
                rest += data
                continue
            whole, newline, tail = data.rpartition(b"\n")
            records: list[dict[str, Any]] = []
            goes_on = _take_block(rest + whole + newline, chain, records, max_problems)
            visit(records)
            if not goes_on:
                return chain
            rest = tail
        chain.torn = len(rest)
    return chain


def _take_block(
    block: bytes, chain: Chain, records: list[dict[str, Any]], max_problems: int
) -> bool:
    """Links the lines of `block` to `chain`; False where reading ends."""
    lines = block[:-1].split(b"\n")
    parsed = parse_lines(block, lines)
    if parsed is not None:
        heads = ["sha256:" + sha256(content).hexdigest() for content in lines]
        if _all_linked(parsed, chain, heads):
            records += parsed
            chain.head, chain.count = heads[-1], chain.count + len(lines)
            chain.bytes += len(block)
            return True
    for index, content in enumerate(lines):
        problem, record = "", None
        try:
            record = parse_line(content) if parsed is None else parsed[index]
            problem = _link_problem(record, chain)
        except SchemaError as error:
            problem = error.message
        chain.bytes += len(content) + 1
        chain.count += 1
        chain.head = "sha256:" + sha256(content).hexdigest()
        if type(record) is dict:
            records.append(record)
        if problem:
            chain.problems.append(ChainProblem(chain.count, problem))
            if len(chain.problems) >= max_problems:
                return False
    return True


def _all_linked(parsed: list[Any], chain: Chain, heads: list[str]) -> bool:
    """Whether `_link_problem` has nothing against any line; `heads` are the lines' digests."""
    if set(map(type, parsed)) != {dict}:
        return False
    numbers = [record.get("seq") for record in parsed]
    return (
        set(map(type, numbers)) == {int}
        and numbers == list(range(chain.count, chain.count + len(parsed)))
        and [record.get("prev") for record in parsed] == [chain.head, *heads[:-1]]
    )


def _link_problem(record: Any, chain: Chain) -> str:
    if type(record) is not dict:
        return "no JSON object"
    if record.get("seq") != chain.count or type(record["seq"]) is not int:
        return f"seq is {record.get('seq')!r}, expected {chain.count}"
    if record.get("prev") != chain.head:
        return "prev is not the digest of the line before"
    return ""


def read_chain(path: Path, kind: str, *, max_bytes: int = MAX_CHAIN_BYTES) -> Chain:
    """The chain at `path` with its records."""
    records: list[dict[str, Any]] = []
    chain = scan_blocks(path, kind, records.extend, max_bytes=max_bytes)
    chain.records = records
    return chain


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
            raise SchemaError("record is too long for a log line", bytes=len(content))
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

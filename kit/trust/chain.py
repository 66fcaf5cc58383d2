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
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from kit.errors import PrerequisiteError, SchemaError
from kit.trust.canonical import canonical_bytes, parse_strict
from kit.trust.digest import sha256_bytes

MAX_LINE_BYTES = 2**20
MAX_CHAIN_BYTES = 512 * 2**20


def _plain_float(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError
    return value


def _no_constant(name: str) -> float:
    raise ValueError


# Raises for every number that only the slow reader can judge.
_DECODER: Any = json.JSONDecoder(parse_float=_plain_float, parse_constant=_no_constant)
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG = b"0" * 16
_LONG_INTEGER = re.compile(rb"[:\[,]-?\d{16}")
_scan: Callable[[str, int], tuple[Any, int]] = _DECODER.scan_once

Visit = Callable[[dict[str, Any]], None]


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
    chain = Chain(head=chain_seed(kind))
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise SchemaError(f"`{path.name}` is too large", bytes=size, limit=max_bytes)
        while line := file.readline(MAX_LINE_BYTES + 1):
            if not line.endswith(b"\n"):
                chain.torn = len(line)
                if len(line) > MAX_LINE_BYTES:
                    chain.torn = size - chain.bytes
                    problem = f"no line end within {MAX_LINE_BYTES} bytes"
                    chain.problems.append(ChainProblem(chain.count + 1, problem))
                break
            chain.bytes += len(line)
            content = line[:-1]
            record: Any = None
            try:
                record = _parse_line(content)
                problem = _link_problem(record, chain)
            except SchemaError as error:
                problem = error.message
            chain.count += 1
            chain.head = "sha256:" + sha256(content).hexdigest()
            if problem:
                chain.problems.append(ChainProblem(chain.count, problem))
                if len(chain.problems) >= max_problems:
                    break
            if isinstance(record, dict):
                visit(record)
    return chain


def _parse_line(content: bytes) -> Any:
    """What `parse_strict` gives, three times as fast for the lines that honest writers write.

    A line with no blank behind a quotation mark has as many `":` as it has keys, or more (inside
    strings); when the parsed value has as many keys, none was given twice.
    """
    if not (b'" ' in content or b"\\" in content or b"\t" in content or b"\r" in content):
        try:
            text = content.decode("utf-8")
            value, end = _scan(text, 0)
        except (ValueError, StopIteration, RecursionError):
            return parse_strict(content, name="line")
        if (
            end == len(text)
            and _keys(value) == content.count(b'":')
            # Sixteen digits in a row may be an integer past 2**53.
            and (_LONG not in content.translate(_DIGITS) or not _LONG_INTEGER.search(content))
        ):
            return value
    return parse_strict(content, name="line")


def _keys(value: Any) -> int:
    if type(value) is dict:
        count = len(value)
        for item in value.values():
            if type(item) is dict or type(item) is list:
                count += _keys(item)
        return count
    if type(value) is list:
        return sum(_keys(item) for item in value)
    return 0


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
    chain = scan_chain(path, kind, records.append, max_bytes=max_bytes)
    chain.records = records
    return chain


class ChainWriter:
    """Appends records to the chain at `path`; continues the one that is there.

    Attributes:
        head, count, bytes: Of what is written so far.
        torn_bytes: Set aside when opening.
        foreign_bytes: Written into the file by others and cut off again.

    Raises:
        PrerequisiteError: Another process writes this chain.
        SchemaError: The file is damaged before its tail.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
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

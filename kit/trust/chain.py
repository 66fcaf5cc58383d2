"""Hash-chained JSON lines: each record carries the SHA-256 of the line before it.

`prev` is the digest of the previous line's bytes (without its newline); the first line's `prev` is
the digest of a string that names the kind of chain, so no log passes for another kind. A line is
valid if and only if it is canonical JSON (`kit.trust.canonical.parse_canonical`).

`kit.trust.chain_writer` writes chains; reading them needs no operating system in particular.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from kit.errors import SchemaError
from kit.files import open_regular
from kit.trust.canonical import parse_canonical
from kit.trust.digest import sha256_bytes

MAX_LINE_BYTES = 2**20
MAX_CHAIN_BYTES = 512 * 2**20

Visit = Callable[[dict[str, Any]], None]


class ChainProblem(NamedTuple):
    line: int  # counted from 1
    message: str


@dataclass
class Chain:
    """The contents of a chain file.

    Attributes:
        head: Digest of the last whole line.
        count, bytes: Whole lines, and the bytes that they take.
        torn: Bytes after the last newline.
        records: Empty when the file was scanned with a visitor.
        problems: Lines that break the chain.
    """

    head: str
    count: int = 0
    bytes: int = 0
    torn: int = 0
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
    """Reads the chain at `path`, passes each record to `visit`, and keeps none.

    A line that breaks the chain is added to `problems`; reading continues after it, up to
    `max_problems`.

    Raises:
        OSError: The file cannot be read.
        SchemaError: The file is larger than `max_bytes`.
    """
    chain = Chain(head=chain_seed(kind))
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise SchemaError(f"`{path.name}` is too large", bytes=size, limit=max_bytes)
        left = size  # bytes that are appended during reading are not read
        while line := file.readline(min(MAX_LINE_BYTES + 1, left)):
            left -= len(line)
            if not line.endswith(b"\n"):
                chain.torn = size - chain.bytes
                if len(line) > MAX_LINE_BYTES:
                    problem = f"no line end within {MAX_LINE_BYTES} bytes"
                    chain.problems.append(ChainProblem(chain.count + 1, problem))
                break
            _link(line[:-1], chain, visit)
            if len(chain.problems) >= max_problems:
                break
    return chain


def _link(content: bytes, chain: Chain, visit: Visit) -> None:
    """Adds one line to `chain`, with its problem if it has one."""
    problem, record = "", None
    try:
        record = parse_canonical(content)
        problem = _link_problem(record, chain)
    except SchemaError as error:
        problem = error.message
    chain.bytes += len(content) + 1
    chain.count += 1
    chain.head = "sha256:" + sha256(content).hexdigest()
    if problem:
        chain.problems.append(ChainProblem(chain.count, problem))
    if type(record) is dict:
        visit(record)


def _link_problem(record: Any, chain: Chain) -> str:
    if type(record) is not dict:
        return "the line is not a JSON object"
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

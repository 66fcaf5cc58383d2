"""JSON lines read as strictly as `parse_strict` reads them, and as fast as Python's own reader.

The lines that honest writers write are recognised by a few searches over many lines at once; each
search is over all that could make two readers disagree. Whatever they cannot rule out goes to
`parse_strict`, line by line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from kit.trust.canonical import parse_strict


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
_ZEROS = re.compile(rb"0+")
_BEFORE_INTEGER = (b"", b"[", b",", b" ", b"-", b"\n")
_scan: Callable[[str, int], tuple[Any, int]] = _DECODER.scan_once


def parse_line(content: bytes) -> Any:
    """The value of one line, without its newline.

    Raises:
        SchemaError: As `parse_strict`.
    """
    if _is_plain(content):
        try:
            text = content.decode("utf-8")
            value, end = _scan(text, 0)
        except (ValueError, StopIteration, RecursionError):
            return parse_strict(content, name="line")
        if end == len(text) and _keys(value) == content.count(b'":') and not _has_long(content):
            return value
    return parse_strict(content, name="line")


def parse_lines(block: bytes, lines: Sequence[bytes]) -> list[Any] | None:
    """The values of `lines`; None where only `parse_line` can tell, of one at least.

    Args:
        block: The same lines, a newline behind each.
    """
    if not (block.isascii() and _is_plain(block)):
        return None
    text, start = block.decode("ascii"), 0
    values: list[Any] = []
    try:
        for line in lines:
            value, end = _scan(text, start)
            start += len(line)
            if end != start:  # it ends before its line does, or goes on in the next
                return None
            values.append(value)
            start += 1
    except (ValueError, StopIteration, RecursionError):
        return None
    # No line has more keys than `":`, so equal sums mean that each has as many.
    if _count_keys(block, values) != block.count(b'":') or _has_long(block):
        return None
    return values


def _is_plain(content: bytes) -> bool:
    """No blank behind a quotation mark and no escape, so `":` stands behind each key.

    There are as many `":` as keys, or more (inside strings); when the parsed value has as many
    keys, none was given twice.
    """
    return not (b'" ' in content or b"\\" in content or b"\t" in content or b"\r" in content)


def _has_long(content: bytes) -> bool:
    """Whether an integer may have sixteen digits: it may be past 2**53.

    Sixteen digits within a string (a digest has them now and then) or a fraction are none: in plain
    lines an integer stands behind `":`, `[`, a comma, a blank, a minus or nothing.
    """
    zeros = content.translate(_DIGITS)
    at = zeros.find(_LONG)
    while at >= 0:
        before = content[max(0, at - 2) : at]
        if before[-1:] in _BEFORE_INTEGER or before == b'":':
            return True
        run = _ZEROS.match(zeros, at)
        assert run is not None
        at = zeros.find(_LONG, run.end())
    return False


def _count_keys(block: bytes, values: list[Any]) -> int:
    if (
        block.count(b"{") == len(values)
        and b"[" not in block
        and block.startswith(b"{")
        and block.count(b"\n{") == len(values) - 1
    ):
        return sum(map(len, values))  # each line is one flat object
    return sum(map(_keys, values))


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

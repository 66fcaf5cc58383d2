"""Canonical JSON (RFC 8785) out, strict JSON in.

What is signed or chained is `canonical_bytes`; what is read from anyone is `parse_strict`. Python's
own reader takes duplicate keys (the last one wins), NaN, integers that other languages round, and
nesting that ends in a recursion error. Each of these lets two readers see two documents in one
file, so each is refused here, with its place.

Numbers are IEEE doubles, as RFC 8785 has it: digits that a double does not print back (2**53 + 1)
are refused; whole numbers from 2**53 on that do print back (the canonical form of 4.1e19 is twenty
digits) become floats.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from json.encoder import encode_basestring
from typing import Any

import rfc8785

from kit.errors import SchemaError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 64
SAFE_INTEGER = 2**53  # first integer a double may confuse with its neighbour

# What a plain pass cannot rule out: a long integer, a huge exponent, an escaped surrogate.
_SUSPICIOUS = re.compile(rb"(?<![.\d])\d{16}|[eE]\+?\d{3}|\\u[dD]")
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class _NotPlainError(Exception):
    """Not for the short way: the library has to judge it."""


class _Repeated(dict[str, Any]):
    """An object that had a key twice; `repeated` names it."""

    repeated: str


def canonical_bytes(value: Any) -> bytes:
    """The RFC 8785 form of `value`.

    Raises:
        SchemaError: A number, string or type that JSON cannot carry; says where.
    """
    rare = (_NotPlainError, TypeError, ValueError, rfc8785.CanonicalizationError, RecursionError)
    with contextlib.suppress(*rare):
        return _plain(value).encode()
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        for place, problem in _problems(value):
            raise SchemaError(f"no canonical JSON: {problem}", place=place) from error
        raise SchemaError(f"no canonical JSON: {error or 'nested too deeply'}") from error


def _plain(value: Any) -> str:
    """What `rfc8785.dumps` gives for what events are made of, in a third of its time.

    The supervisor does this for every step, on a core that the trainer wants back.

    Raises:
        _NotPlainError, TypeError, CanonicalizationError: There is something rarer in it.
    """
    kind = type(value)
    if kind is str:
        return encode_basestring(value)
    if kind is float:
        text = repr(value)
        # Both take the fewest digits that read back to the same double; ECMAScript has its own way
        # with exponents and zeros, and no NaN.
        if value == 0 or "e" in text or "n" in text:
            return rfc8785.dumps(value).decode()
        return text.removesuffix(".0")
    if kind is int and -SAFE_INTEGER < value < SAFE_INTEGER:
        return repr(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is dict:
        if not "".join(value).isascii():
            raise _NotPlainError  # the order is that of UTF-16
        members = [f"{encode_basestring(key)}:{_plain(value[key])}" for key in sorted(value)]
        return "{" + ",".join(members) + "}"
    if kind is list:
        return "[" + ",".join([_plain(item) for item in value]) + "]"
    raise _NotPlainError


def parse_strict(
    data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, name: str = "input"
) -> Any:
    """The value that `data` holds, when every JSON reader would agree on it.

    Args:
        name: What `data` is, for messages.

    Raises:
        SchemaError: Too large, too deep, not UTF-8, not JSON, a duplicate key, NaN or infinity, a
            number that a
            double cannot hold, a lone surrogate; says where.
    """
    if len(data) > max_bytes:
        raise SchemaError(f"{name} is too large", bytes=len(data), limit=max_bytes)
    if data.count(b"[") + data.count(b"{") > max_depth:
        _check_depth(data, max_depth, name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{name} is not UTF-8", place=f"byte {error.start}") from None

    repeated: list[_Repeated] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            keys = [key for key, _ in pairs]
            value = _Repeated(value)
            value.repeated = next(key for key in value if keys.count(key) > 1)
            repeated.append(value)
        return value

    constants: list[str] = []

    def constant(text: str) -> float:
        constants.append(text)
        return math.nan

    suspicious = _SUSPICIOUS.search(data) is not None
    try:
        value = json.loads(
            text,
            object_pairs_hook=build,
            parse_constant=constant,
            parse_int=_integer if suspicious else None,
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise SchemaError(f"{name} is not JSON: {error.msg}", place=place) from None
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{name} is not JSON that can be read: {error}") from None
    if suspicious or repeated or constants:
        for place, problem in _problems(value):
            raise SchemaError(f"{name}: {problem}", place=place)
    return value


def _integer(digits: str) -> int | float:
    if len(digits) < 16:
        return int(digits)
    if len(digits) > 22:  # a canonical double has at most 21 digits and a sign
        return math.inf
    value = int(digits)
    if abs(value) < SAFE_INTEGER:
        return value
    as_double = float(value)
    return as_double if rfc8785.dumps(as_double).decode() == digits else value


def _check_depth(data: bytes, max_depth: int, name: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(data):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
            if depth > max_depth:
                raise SchemaError(
                    f"{name} is nested too deeply", place=f"byte {match.start()}", limit=max_depth
                )
        elif token in (b"]", b"}"):
            depth -= 1


def _problems(root: Any) -> Iterator[tuple[str, str]]:
    """(place, problem) for every value under `root` that JSON readers may see differently."""
    stack: list[tuple[str, Any, int]] = [("$", root, 0)]
    while stack:
        place, value, depth = stack.pop()
        if depth > 10_000:
            yield place, "nested too deeply"
            return
        if isinstance(value, dict):
            if isinstance(value, _Repeated):
                yield f"{place}.{_shown(value.repeated)}", "key given twice"
            for key, item in value.items():
                if not isinstance(key, str):
                    yield place, f"key {key!r} is no string"
                elif _has_surrogate(key):
                    yield place, "lone surrogate in a key"
                stack.append((f"{place}.{_shown(str(key))}", item, depth + 1))
        elif isinstance(value, list | tuple):
            stack.extend((f"{place}[{i}]", item, depth + 1) for i, item in enumerate(value))
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, str):
            if _has_surrogate(value):
                yield place, "lone surrogate in a string"
        elif isinstance(value, int):
            if abs(value) >= SAFE_INTEGER:
                yield place, "integer that a double cannot hold exactly (2**53 or more)"
        elif isinstance(value, float):
            if not math.isfinite(value):
                yield place, "NaN, infinity or a number out of range"
        else:
            yield place, f"{type(value).__name__} has no JSON form"


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _shown(key: str) -> str:
    return key[:80].encode("ascii", "backslashreplace").decode()

"""Canonical JSON (RFC 8785) out, strict JSON in.

The kit signs and chains `canonical_bytes`. It reads a line of a log with `parse_canonical` and any
other JSON from outside with `parse_strict`. Python's own reader accepts duplicate keys (the last
one wins), NaN, integers that other languages round, and nesting that ends in a recursion error.
Each of these lets two readers see two documents in one file, so both functions reject them.

Numbers are IEEE doubles, as in RFC 8785: digits that a double does not print back (2**53 + 1) are
rejected. The canonical form of 4.1e19 is twenty digits; `parse_strict` reads such integers as
floats, `parse_canonical` as integers.
"""

from __future__ import annotations

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


class _Repeated(dict[str, Any]):
    """An object that had a key twice; `repeated` names it."""

    repeated: str


def canonical_bytes(value: Any) -> bytes:
    """The RFC 8785 form of `value`.

    >>> canonical_bytes({"b": 1.0, "a": "ä"}).decode()
    '{"a":"ä","b":1}'

    Raises:
        SchemaError: A number, string or type that JSON cannot carry; `place` says where.
    """
    try:
        return _encode(value).encode()
    except (_NoForm, UnicodeEncodeError, RecursionError, TypeError) as error:
        for place, problem in _problems(value):
            raise SchemaError(f"this has no canonical JSON: {problem}", place=place) from error
        raise SchemaError("this has no canonical JSON: it is nested too deeply") from error


class _NoForm(Exception):
    """A value that has no RFC 8785 form; `_problems` explains it."""


def _encode(value: Any) -> str:
    """The text of `value`. The supervisor and `verify` do this for every line of every log."""
    kind = type(value)
    if kind is str:
        return encode_basestring(value)
    if kind is float:
        return _encode_float(value)
    if kind is int:
        return repr(value) if -SAFE_INTEGER < value < SAFE_INTEGER else _encode_large(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if isinstance(value, dict):
        # RFC 8785 orders keys by UTF-16 code units, Python by code points.
        by = None if "".join(value).isascii() else _utf16
        return (
            "{"
            + ",".join(
                [f"{encode_basestring(key)}:{_encode(value[key])}" for key in sorted(value, key=by)]
            )
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ",".join([_encode(item) for item in value]) + "]"
    raise _NoForm


def _encode_float(value: float) -> str:
    """Python and ECMAScript take the same shortest digits, but write exponents differently."""
    text = repr(value)
    if "e" in text or "n" in text or value == 0:
        try:
            return rfc8785.dumps(value).decode()
        except rfc8785.CanonicalizationError:  # NaN, infinity
            raise _NoForm from None
    return text.removesuffix(".0")


def _encode_large(value: int) -> str:
    """An integer that is exactly a double: 12 * 10**18 is how 1.2e19 is written."""
    try:
        text = _encode_float(float(value))
    except OverflowError:
        raise _NoForm from None
    if text != repr(value):
        raise _NoForm
    return text


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def parse_canonical(data: bytes) -> Any:
    """The value of `data`, which must be in canonical form: a line of a log.

    This one comparison rejects duplicate keys, NaN, 1.0 for 1, numbers that a double cannot hold,
    lone surrogates, spaces and any other encoding: whatever two JSON readers could read
    differently does not come out as the same bytes again.

    Raises:
        SchemaError: `data` is not the canonical form of a value; says why.
    """
    try:
        value = json.loads(data)
        if canonical_bytes(value) == data:
            return value
    except (ValueError, RecursionError, SchemaError):
        pass
    parse_strict(data, name="line")  # raises for most, with the place
    raise SchemaError("line is not in canonical form (RFC 8785)")


def parse_strict(data: bytes, *, max_bytes: int = MAX_BYTES, name: str = "input") -> Any:
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
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(data, name)
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


def _check_depth(data: bytes, name: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(data):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise SchemaError(
                    f"{name} is nested too deeply", place=f"byte {match.start()}", limit=MAX_DEPTH
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
                    yield place, f"key {key!r} is not a string"
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
            if abs(value) >= SAFE_INTEGER and not _is_double(value):
                yield place, "integer that a double cannot hold exactly (2**53 or more)"
        elif isinstance(value, float):
            if not math.isfinite(value):
                yield place, "NaN, infinity or a number out of range"
        else:
            yield place, f"{type(value).__name__} has no JSON form"


def _is_double(value: int) -> bool:
    try:
        return _encode_large(value) != ""
    except _NoForm:
        return False


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _shown(key: str) -> str:
    return key[:80].encode("ascii", "backslashreplace").decode()

"""Canonical JSON and the strict reader, against RFC 8785's examples and hostile input."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import SchemaError
from kit.trust.canonical import canonical_bytes, parse_strict


def test_rfc_8785_example_comes_out_as_in_the_rfc() -> None:
    value = json.loads(
        r"""{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
        "literals": [null, true, false]}"""
    )
    assert canonical_bytes(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_keys_are_ordered_by_utf_16_units() -> None:
    form = canonical_bytes({"\u20ac": 1, "\r": 2, "\U0001f600": 3, "\ufb33": 4, "1": 5})
    assert list(json.loads(form)) == ["\r", "1", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "twice", "$.b.c"),
        (b'{"a": [1, NaN]}', "NaN", "$.a[1]"),
        (b'{"a": -Infinity}', "NaN", "$.a"),
        (b'{"a": 1e999}', "out of range", "$.a"),
        (b'{"a": 9007199254740993}', "2**53", "$.a"),
        (b'{"a": -123456789012345678901234567890}', "out of range", "$.a"),
        (b'{"a": "\\ud800x"}', "surrogate", "$.a"),
        (b'{"\\udfff": 1}', "surrogate", "$"),
        (b'{"a": 1', "not JSON", "line 1"),
        (b'{"a": 1} {"b": 2}', "not JSON", "line 1"),
        (b'{"a": 01}', "not JSON", "line 1"),
        (b"{'a': 1}", "not JSON", "line 1"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON", "line 1"),
        (b'{"a": "\xff"}', "UTF-8", "byte 7"),
        (b"", "not JSON", "line 1"),
        (b"[" * 65 + b"]" * 65, "deep", "byte 64"),
    ],
)
def test_what_two_readers_may_see_differently_is_refused_with_its_place(
    text: bytes, message: str, place: str
) -> None:
    with pytest.raises(SchemaError, match=message.replace("*", r"\*")) as caught:
        parse_strict(text)
    assert str(caught.value.facts["place"]).startswith(place)


def test_brackets_inside_strings_are_no_nesting() -> None:
    text = json.dumps({"a": "[" * 500 + '\\"{'}).encode()
    assert parse_strict(text) == json.loads(text)


def test_input_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(SchemaError, match="too large"):
        parse_strict(b" " * 101, max_bytes=100)


@pytest.mark.parametrize("text", [b"[" * 10**6, b'{"a":' * 10**5, b"9" * 10**6, b'"' * 10**6])
def test_a_megabyte_of_malice_is_refused_quickly(text: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(SchemaError):
        parse_strict(text)
    assert time.perf_counter() - start < 2


def test_large_floats_survive_their_canonical_form() -> None:
    value = {"flops": 4.1e19, "small": 1e-9, "edge": 2.0**53}
    assert parse_strict(canonical_bytes(value)) == value
    assert isinstance(parse_strict(canonical_bytes(value))["flops"], float)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 2**53 + 1, 10**400, "\ud800", {1: 2}, {"a": {1, 2}}, b"x"]
)
def test_values_without_a_canonical_form_are_refused_with_their_place(value: Any) -> None:
    with pytest.raises(SchemaError) as caught:
        canonical_bytes({"outer": [value]})
    assert str(caught.value.facts["place"]).startswith("$.outer[0]")


def test_a_value_too_deep_to_write_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(SchemaError, match="nested too deeply"):
        canonical_bytes(value)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=20,
)


@given(JSON_VALUES)
@settings(max_examples=200, deadline=None)
def test_canonical_form_is_read_back_as_the_same_value_and_form(value: Any) -> None:
    form = canonical_bytes(value)
    read = parse_strict(form)
    assert read == value
    assert canonical_bytes(read) == form


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.floats(0, 1).map(lambda value: round(value, 6))
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(ANYTHING)
@settings(max_examples=1000, deadline=None)
def test_the_form_is_the_one_of_the_library(value: Any) -> None:
    """The library rejects every integer from 2**53 on; here exact doubles are allowed."""
    try:
        expected = rfc8785.dumps(as_doubles(value))
    except (rfc8785.CanonicalizationError, OverflowError):
        with pytest.raises(SchemaError):
            canonical_bytes(value)
    else:
        assert canonical_bytes(value) == expected


def as_doubles(value: Any) -> Any:
    """`value` with large integers as the doubles that they are, where they are."""
    if isinstance(value, dict):
        return {key: as_doubles(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_doubles(item) for item in value]
    if (
        type(value) is int
        and abs(value) >= 2**53
        and repr(value).encode() == rfc8785.dumps(float(value))
    ):
        return float(value)
    return value


@pytest.mark.parametrize("value", [2**53, 10**20, 12 * 10**18, -(2**60) * 1000])
def test_an_integer_that_is_a_double_has_the_form_of_the_double(value: int) -> None:
    if repr(value).encode() != rfc8785.dumps(float(value)):
        with pytest.raises(SchemaError, match="integer"):
            canonical_bytes(value)
    else:
        assert canonical_bytes(value) == canonical_bytes(float(value)) == repr(value).encode()


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_never_a_traceback(data: bytes) -> None:
    try:
        value = parse_strict(data)
    except SchemaError:
        return
    assert parse_strict(canonical_bytes(value)) == value

"""Frozen dataclasses to and from JSON.

A field's type is the rule for its value: `int`, `float`, `str`, `bool`, `X | None`,
`tuple[X, ...]`, `dict[str, X]`, `Any`, a nested dataclass, or `Annotated[X, Rule(...)]` with
limits. A field with a default may be left out; with the default `ABSENT`, its value is kept apart
from null. A class with a field `more: dict[str, Any]` keeps the fields that it does not know there
(a `Rule` on it limits all entries of the object); every other class rejects them.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Hashable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from kit.errors import SchemaError

T = TypeVar("T")
MAX_INTEGER = 2**53 - 1  # the largest integer that every JSON reader keeps exact


@dataclass(frozen=True)
class Rule:
    """Limits of a value. All of them hold for the schema as well as for `from_json`.

    Attributes:
        minimum, maximum: Bounds of a number, inclusive.
        max_length: Characters of a string, or entries of a list or an object.
        min_items: Fewest entries of a list.
        pattern: A regular expression that a string must contain a match of.
        choices: The only values allowed.
        key_pattern: The same as `pattern`, for every key of an object.
    """

    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    min_items: int | None = None
    pattern: str | None = None
    choices: tuple[Any, ...] | None = None
    key_pattern: str | None = None


class _Absent:
    """The type of `ABSENT`; false, so that `value or None` reads either as None."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()


def one_of(*choices: Any) -> Rule:
    """The rule that a value is one of `choices`."""
    return Rule(choices=choices)


Count = Annotated[int, Rule(minimum=0, maximum=MAX_INTEGER)]
Seconds = Annotated[float, Rule(minimum=0)]
AtMostOne = Annotated[float, Rule(maximum=1)]
Share = Annotated[float, Rule(minimum=0, maximum=1)]
Text40 = Annotated[str, Rule(max_length=40)]
Text200 = Annotated[str, Rule(max_length=200)]
Text300 = Annotated[str, Rule(max_length=300)]
Digest = Annotated[str, Rule(pattern=r"^sha256:[0-9a-f]{64}$")]
UtcTime = Annotated[str, Rule(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z$")]

_Decode = Callable[[Any, str], Any]


def from_json(kind: type[T], value: Any, place: str = "$") -> T:
    """The instance of dataclass `kind` that the JSON object `value` describes.

    Args:
        place: The path of `value` in its document, for messages.

    Raises:
        SchemaError: A field is missing, unknown or of the wrong type; `place` names it.
    """
    return cast(T, _decoder(cast(Hashable, kind))(value, place))


def to_json(value: Any) -> Any:
    """`value` as JSON types; `more` is merged in.

    A field is left out where its value is `ABSENT`, or None and the default is None.
    """
    if is_dataclass(value) and not isinstance(value, type):
        document: dict[str, Any] = {}
        for name, key, left_out in _members(type(value)):
            item = getattr(value, name)
            if name == "more":
                document.update(item)
            elif item is not ABSENT and (item is not None or not left_out):
                document[key] = to_json(item)
        return document
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


@cache
def _members(kind: type) -> tuple[tuple[str, str, bool], ...]:
    """(name, JSON name, whether None is left out) of each field."""
    return tuple(
        (item.name, json_name(item.name), has_default(item) and item.default is not ABSENT)
        for item in fields(kind)
    )


def most_entries(hints: dict[str, Any]) -> int | None:
    """The limit that a class with `more` sets to the entries of its object."""
    _, rule = split_rule(hints["more"])
    return None if rule is None else rule.max_length


def json_name(name: str) -> str:
    """The JSON name of a field: `class_` is written `class`."""
    return name.removesuffix("_")


def has_default(item: Field[Any]) -> bool:
    """Whether a field has a default."""
    return item.default is not MISSING or item.default_factory is not MISSING


@cache
def _decoder(kind: Any) -> _Decode:
    """A function that builds `kind` from a JSON object; made once for each class."""
    hints = get_type_hints(kind, include_extras=True)
    members = [item for item in fields(kind) if item.name != "more"]
    plan = [
        (
            json_name(item.name),
            item.name,
            _decoder_of_type(hints[item.name]),
            not has_default(item),
        )
        for item in members
    ]
    known = frozenset(key for key, *_ in plan)
    keeps_more = "more" in hints
    most = most_entries(hints) if keeps_more else None
    build: Callable[..., Any] = kind

    def decode(value: Any, place: str) -> Any:
        if type(value) is not dict:
            raise _wrong(value, place, "an object")
        if most is not None and len(value) > most:
            raise SchemaError(f"`{place}` has too many entries", limit=most, place=place)
        arguments: dict[str, Any] = {}
        for key, name, convert, required in plan:
            if key in value:
                arguments[name] = convert(value[key], key)
            elif required:
                raise SchemaError(f"`{key}` is missing", place=place)
        if keeps_more:
            arguments["more"] = {key: value[key] for key in value if key not in known}
        elif not known.issuperset(value):
            unknown = next(key for key in value if key not in known)
            raise SchemaError(f"`{str(unknown)[:80]}` is not a field here", place=place)
        return build(**arguments)

    return decode


def _decoder_of_type(hint: Any) -> _Decode:
    base, rule = split_rule(hint)
    convert = _plain_decoder(base)
    return convert if rule is None else _bounded(convert, rule)


def _plain_decoder(base: Any) -> _Decode:
    origin = get_origin(base)
    if base is Any:
        return lambda value, place: value
    if origin in (Union, types.UnionType):
        inner, *rest = [part for part in get_args(base) if part is not types.NoneType]
        assert not rest, f"a union may only have one type besides None: {base}"
        convert = _decoder_of_type(inner)
        return lambda value, place: None if value is None else convert(value, place)
    if origin is tuple:
        each = _decoder_of_type(get_args(base)[0])
        return lambda value, place: tuple(
            each(item, place) for item in _instance(value, place, list, "a list")
        )
    if origin is dict:
        each = _decoder_of_type(get_args(base)[1])
        return lambda value, place: {
            key: each(item, place)
            for key, item in _instance(value, place, dict, "an object").items()
        }
    if is_dataclass(base):
        nested = cast(type, base)
        return lambda value, place: _decoder(nested)(value, place)
    return _scalar_decoder(base)


def _scalar_decoder(base: Any) -> _Decode:
    """Exact types: a bool is not an int here, and an int is allowed where a float is."""
    allowed: tuple[type, ...] = (int, float) if base is float else (base,)
    name = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}.get(
        base, "an object"
    )

    def convert(value: Any, place: str) -> Any:
        if type(value) not in allowed:
            raise _wrong(value, place, name)
        return value

    return convert


def _bounded(convert: _Decode, rule: Rule) -> _Decode:
    low = -math.inf if rule.minimum is None else rule.minimum
    high = math.inf if rule.maximum is None else rule.maximum
    numeric = rule.minimum is not None or rule.maximum is not None
    pattern = None if rule.pattern is None else re.compile(rule.pattern)
    keys = None if rule.key_pattern is None else re.compile(rule.key_pattern)

    def check(value: Any, place: str) -> Any:
        found = convert(value, place)
        if found is None:
            return None
        if numeric and not low <= found <= high:
            raise _wrong(value, place, f"from {low:g} to {high:g}")
        if rule.choices is not None and found not in rule.choices:
            raise _wrong(value, place, "one of " + ", ".join(map(str, rule.choices)))
        if rule.max_length is not None and len(found) > rule.max_length:
            raise SchemaError(f"`{place}` is too long", limit=rule.max_length, place=place)
        if rule.min_items is not None and len(found) < rule.min_items:
            raise SchemaError(f"`{place}` has too few entries", minimum=rule.min_items, place=place)
        if keys is not None and not all(keys.search(key) for key in found):
            raise _wrong(value, place, f"keys that match {rule.key_pattern}")
        if pattern is not None and not pattern.search(found):
            raise _wrong(value, place, f"text that matches {rule.pattern}")
        return found

    return check


def _instance(value: Any, place: str, kind: type[T], name: str) -> T:
    if type(value) is not kind:
        raise _wrong(value, place, name)
    return value


def _wrong(value: Any, place: str, expected: str) -> SchemaError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return SchemaError(f"`{place}` is {shown}; expected {expected}", place=place)


def split_rule(hint: Any) -> tuple[Any, Rule | None]:
    """A field's type and its limits, if it has any."""
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        return base, next((note for note in notes if isinstance(note, Rule)), None)
    return hint, None

"""Recipe fields as dataclass fields: default, sentence, unit and range stand in one place.

A section of a recipe is a frozen dataclass whose fields are made by `setting`. Its JSON Schema, the
table of fields and what `recipes show` prints are derived from it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

Ramp = tuple[tuple[float, float], ...]  # pairs of elapsed share and value, from share 0
_JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
_RANGE = {
    "low": "minimum",
    "high": "maximum",
    "above": "exclusiveMinimum",
    "below": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
_MAX_PAIRS = 16


def setting(
    default: Any,
    text: str,
    *,
    unit: str = "",
    choices: Sequence[str] = (),
    pattern: str = "",
    pairs: Mapping[str, Any] | None = None,
    **limits: float,
) -> Any:
    """A field of a recipe's section.

    Args:
        text: What it means, in a sentence or two.
        choices: The strings that are allowed, for a tuple in each place.
        pairs: Of a `Ramp`: JSON type and limits of the values.
        limits: `low`, `high` (allowed themselves), `above`, `below` (not), `multiple_of`.
    """
    unknown = set(limits) - set(_RANGE)
    if unknown:
        raise ValueError(f"unknown limits: {', '.join(sorted(unknown))}")
    metadata = {
        "text": text,
        "unit": unit,
        "choices": tuple(choices),
        "pattern": pattern,
        "pairs": pairs,
        "limits": limits,
    }
    return dataclasses.field(default=default, metadata=metadata)


def section_schema(text: str, *classes: type) -> dict[str, Any]:
    """The JSON Schema of a recipe's section, which the fields of `classes` make up.

    Args:
        text: What the section is for.
    """
    properties: dict[str, Any] = {}
    for made in classes:
        types = typing.get_type_hints(made)
        for field in dataclasses.fields(made):
            if field.metadata:
                properties[field.name] = _field_schema(types[field.name], field)
    return {
        "description": text,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "default": {},
    }


def defaults(*classes: type) -> dict[str, Any]:
    """Every field of `classes` with its default, as JSON holds it."""
    schema = section_schema("", *classes)
    return {name: rule["default"] for name, rule in schema["properties"].items()}


def _field_schema(kind: Any, field: dataclasses.Field[Any]) -> dict[str, Any]:
    data = field.metadata
    limits = {_RANGE[name]: value for name, value in data["limits"].items()}
    schema: dict[str, Any] = {"description": data["text"]}
    if data["unit"]:
        schema["unit"] = data["unit"]
    if kind in _JSON_TYPES:
        if data["choices"]:
            schema["enum"] = list(data["choices"])
        else:
            schema["type"] = _JSON_TYPES[kind]
        schema |= limits
        if data["pattern"]:
            schema["pattern"] = data["pattern"]
        return schema | {"default": field.default}
    schema["type"] = "array"
    if data["pairs"] is not None:
        value = {_RANGE.get(name, name): limit for name, limit in data["pairs"].items()}
        share = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
        schema["items"] = {
            "type": "array",
            "prefixItems": [share, value],
            "minItems": 2,
            "maxItems": 2,
        }
        schema["maxItems"] = _MAX_PAIRS
    elif data["choices"]:
        schema |= {"items": {"enum": list(data["choices"])}, "uniqueItems": True}
    else:
        item, *rest = typing.get_args(kind)
        schema["items"] = {"type": _JSON_TYPES[item]} | limits
        if rest and rest[-1] is not Ellipsis:
            schema |= {"minItems": 1 + len(rest), "maxItems": 1 + len(rest)}
    default: Any = field.default
    return schema | {"default": list(default)}

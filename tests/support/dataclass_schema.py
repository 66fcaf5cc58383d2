"""The JSON Schemas that follow from the kit's dataclasses: what `make schemas` writes.

A class's docstring describes the object, its section `Attributes:` the fields.
"""

from __future__ import annotations

import inspect
import re
import types
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from kit.board.row_form import Row
from kit.events import EVENTS, Line
from kit.result_form import Result
from kit.typed import Rule, has_default, json_name, most_entries, split_rule

JsonSchema = dict[str, Any]


def event_schema() -> JsonSchema:
    """schema/event.schema.json: the line, and the data of each event."""
    line = schema_of(Line)
    line["properties"]["ev"] = {"enum": list(EVENTS)}
    choices = [
        {"properties": {"ev": {"const": name}, "data": schema_of(kind)}}
        for name, kind in EVENTS.items()
    ]
    return _document("event", "Event", {**line, "oneOf": choices})


def row_schema() -> JsonSchema:
    """schema/leaderboard-row.schema.json."""
    return _document("leaderboard-row", "Leaderboard row", schema_of(Row))


def result_schema() -> JsonSchema:
    """schema/result.schema.json."""
    return _document("result", "Result", schema_of(Result))


def _document(name: str, title: str, schema: JsonSchema) -> JsonSchema:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://n4090-kit/schema/{name}.schema.json",
        "title": title,
        **schema,
    }


def schema_of(kind: type) -> JsonSchema:
    """The JSON Schema of dataclass `kind`, descriptions taken from its docstring."""
    hints = get_type_hints(kind, include_extras=True)
    summary, described = _docstring(kind)
    properties: JsonSchema = {}
    required = []
    for item in fields(kind):
        if item.name == "more":
            continue
        rule = _schema_of_type(hints[item.name])
        if item.name in described:
            rule = {"description": described[item.name], **rule}
        properties[json_name(item.name)] = rule
        if not has_default(item):
            required.append(json_name(item.name))
    schema: JsonSchema = {"type": "object"}
    if summary:
        schema = {"description": summary, **schema}
    if "more" not in hints:
        schema["additionalProperties"] = False
    elif (limit := most_entries(hints)) is not None:
        schema["maxProperties"] = limit
    return {**schema, "required": required, "properties": properties}


_NAMES: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean"}


def _schema_of_type(hint: Any) -> JsonSchema:
    base, rule = split_rule(hint)
    schema = _schema_of_plain(base)
    return schema if rule is None else {**schema, **_limits(base, rule)}


def _schema_of_plain(base: Any) -> JsonSchema:
    origin = get_origin(base)
    if base is Any:
        return {}
    if origin in (Union, types.UnionType):
        [inner] = [part for part in get_args(base) if part is not types.NoneType]
        schema = _schema_of_type(inner)
        # Not `anyOf`: a validator then names the wrong field instead of the whole object.
        nullable = {**schema, "type": [schema["type"], "null"]}
        if "enum" in schema:
            nullable["enum"] = [*schema["enum"], None]
        return nullable
    if origin is tuple:
        return {"type": "array", "items": _schema_of_type(get_args(base)[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of_type(get_args(base)[1])}
    if is_dataclass(base):
        return schema_of(cast(type, base))
    return {"type": _NAMES.get(base, "object")}


def _limits(base: Any, rule: Rule) -> JsonSchema:
    length = {tuple: "maxItems", dict: "maxProperties"}.get(get_origin(base), "maxLength")
    found = {
        "enum": None if rule.choices is None else list(rule.choices),
        "minimum": rule.minimum,
        "maximum": rule.maximum,
        length: rule.max_length,
        "minItems": rule.min_items,
        "pattern": rule.pattern,
        "propertyNames": None if rule.key_pattern is None else {"pattern": rule.key_pattern},
    }
    return {key: value for key, value in found.items() if value is not None}


@cache
def _docstring(kind: type) -> tuple[str, dict[str, str]]:
    """(first paragraph, {field: text}) of a docstring with an `Attributes:` section."""
    text = inspect.getdoc(kind) or ""
    head, _, tail = text.partition("Attributes:")
    described: dict[str, str] = {}
    names: list[str] = []
    for line in tail.splitlines():
        started = re.match(r"    ([a-z_][\w, ]*): (.*)", line)
        if started:
            names = [name.strip() for name in started[1].split(",")]
            described.update(dict.fromkeys(names, started[2].strip()))
        elif line.startswith("        "):
            for name in names:
                described[name] += " " + line.strip()
    summary = " ".join(head.strip().split("\n\n")[0].split())
    return ("" if text.startswith(f"{kind.__name__}(") else summary), described

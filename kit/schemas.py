"""The JSON Schemas that ship with the kit, and what is wrong with a document in plain words."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from kit.errors import PrerequisiteError

_SHIPPED = Path(__file__).parent / "schema"  # in the wheel
_CHECKOUT = Path(__file__).parent.parent / "schema"  # an editable install does not see the copy


NO_SUCH_FIELD = "no such field"
_ERRORS = 500  # of a document that are explained; the next ones follow from hostility
_SHOWN = 100  # unknown keys of one object that are named


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: where, what stands there, what is allowed."""

    path: str
    found: str
    allowed: str
    line: int | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        place = f"{self.path} (line {self.line})" if self.line else self.path
        if self.suggestion:
            return f"{place}: {self.found}; did you mean `{self.suggestion}`? {self.allowed}"
        return f"{place}: {self.found}; {self.allowed}"


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The schema `name` ("recipe", "result", …).

    Raises:
        PrerequisiteError: The installation has lost its schemas.
    """
    for folder in (_SHIPPED, _CHECKOUT):
        path = folder / f"{name}.schema.json"
        if path.is_file():
            schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return schema
    raise PrerequisiteError(
        f"schema {name}.schema.json is missing from this installation",
        hint="Reinstall n4090-kit.",
    )


def problems(document: Any, name: str) -> list[Problem]:
    """In what `document` differs from schema `name`, in document order; at most a few hundred."""
    return schema_problems(document, load_schema(name))


def section_problems(section: Any, name: str, path: tuple[str, ...]) -> list[Problem]:
    """As `problems`, for the part of a document at `path` in schema `name`."""
    whole = load_schema(name)
    rule: dict[str, Any] = whole
    for key in path:
        rule = rule["properties"][key]
    return schema_problems(section, {**rule, "$defs": whole.get("$defs", {})})


def schema_problems(document: Any, schema: dict[str, Any]) -> list[Problem]:
    """As `problems`, for a schema of the caller's own."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema)
    found: list[Problem] = []
    for error in islice(validator.iter_errors(document), _ERRORS):
        found.extend(_explain(error))
    return sorted(found, key=lambda problem: problem.path)


def with_defaults(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """`document` with every default of `schema` filled in, section by section."""
    resolved: dict[str, Any] = {}
    for key, rule in schema.get("properties", {}).items():
        if key not in document and "default" not in rule:
            continue
        value = document.get(key, rule.get("default"))
        if isinstance(value, dict) and "properties" in rule:
            value = with_defaults(value, rule)
        resolved[key] = value
    return resolved | {key: value for key, value in document.items() if key not in resolved}


def _explain(error: Any) -> list[Problem]:
    """A validator's error as problems; one for each unknown or missing key."""
    here = ".".join(str(part) for part in error.absolute_path)
    prefix = f"{here}." if here else ""
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = [key for key in error.instance if key not in known][:_SHOWN]
        return [
            Problem(
                f"{prefix}{key}",
                NO_SUCH_FIELD,
                f"known here: {', '.join(known)}",
                suggestion=next(iter(difflib.get_close_matches(key, known, n=1)), None),
            )
            for key in unknown
        ]
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return [
            Problem(f"{prefix}{key}", "missing", _allowed(error.schema["properties"].get(key, {})))
            for key in missing
        ]
    suggestion = None
    if error.validator == "enum" and isinstance(error.instance, str):
        choices = [str(value) for value in error.validator_value]
        suggestion = next(iter(difflib.get_close_matches(error.instance, choices, n=1)), None)
    value = json.dumps(error.instance, default=str)
    shown = value if len(value) <= 80 else value[:77] + "..."
    found = f"found {shown}"
    return [Problem(here or "(document)", found, _allowed(error.schema), suggestion=suggestion)]


def _allowed(rule: Any) -> str:
    """What a schema rule admits, in words."""
    if not isinstance(rule, dict):
        return "no value is allowed"
    parts = []
    if "const" in rule:
        parts.append(json.dumps(rule["const"]))
    if "enum" in rule:
        parts.append("one of " + ", ".join(json.dumps(value) for value in rule["enum"]))
    elif "type" in rule and "const" not in rule:
        kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
        parts.append(" or ".join(kinds))
    low, high = rule.get("minimum"), rule.get("maximum")
    if low is not None and high is not None:
        parts.append(f"from {low} to {high}")
    elif low is not None:
        parts.append(f"at least {low}")
    elif high is not None:
        parts.append(f"at most {high}")
    for key, words in (
        ("pattern", "matching"),
        ("minItems", "with at least"),
        ("maxLength", "up to"),
    ):
        if key in rule:
            parts.append(f"{words} {rule[key]}")
    if rule.get("uniqueItems"):
        parts.append("without repeats")
    return "allowed: " + (" ".join(parts) if parts else "see the schema")

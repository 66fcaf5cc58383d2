"""The table of all recipe fields that this trainer owns, as Markdown; `make schemas` writes it."""

from __future__ import annotations

import json
from typing import Any

from reference.config.trainer import TRAINER

HEAD = """# Fields of a recipe

The sections that the reference trainer owns, made by `make schemas`.
`n4090-kit recipes schema` prints these and the kit's own; `n4090-kit recipes show NAME` prints a
recipe with every field filled in.
"""


def field_table() -> str:
    """All sections with their fields: default, unit, what is allowed, and what it means."""
    parts = [HEAD]
    for section, schema in TRAINER.sections().items():
        parts.append(
            f"\n## `[{section}]`\n\n{schema['description']}\n\n"
            "| field | default | unit | allowed | what it is |\n|---|---|---|---|---|\n"
        )
        for name, rule in schema["properties"].items():
            cells = (
                f"`{name}`",
                f"`{json.dumps(rule['default'])}`",
                rule.get("unit", ""),
                _allowed(rule),
                rule["description"].replace("|", "\\|"),
            )
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


def _allowed(rule: dict[str, Any]) -> str:
    if "enum" in rule:
        return ", ".join(f"`{choice}`" for choice in rule["enum"])
    if rule["type"] == "array":
        items = rule["items"]
        if "prefixItems" in items:
            return f"pairs of share and {_allowed(items['prefixItems'][1])}"
        return f"list of {_allowed(items)}"
    limits = [
        f"{sign} {rule[name]}"
        for name, sign in (
            ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"),
            ("exclusiveMaximum", "<"), ("multipleOf", "multiple of"),
        )
        if name in rule
    ]  # fmt: skip
    return " ".join([str(rule["type"]), ", ".join(limits)]).strip()

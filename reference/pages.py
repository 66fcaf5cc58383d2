"""Pages from Jinja templates: every word from outside is escaped, a missing value is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def render(template: Path, filters: Mapping[str, Callable[..., str]], **view: Any) -> bytes:
    """The page that `template` makes of `view`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    text = template.read_text(encoding="utf-8")
    return environment.from_string(text).render(**view).encode()

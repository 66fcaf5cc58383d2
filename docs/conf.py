"""Sphinx: the site of n4090-kit. Pages are Markdown; `_generated/` is written from the code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import kit  # noqa: E402

project = "n4090-kit"
version = release = kit.__version__
copyright = "the n4090-kit contributors, MIT license"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = "n4090-kit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Two hyphens stay two hyphens in the help of commands.
smartquotes = False
# A copied line leaves out the prompt.
copybutton_prompt_text = "$ "
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# The types of annotations are not all documented here.
nitpicky = False
# Highlighting must not fail on sessions and shortened output.
highlight_language = "none"


def recipe_page(schema: dict[str, Any]) -> str:
    """The recipe's fields as Markdown tables, a section each, from the schema."""
    top, sections = [], []
    for name, field in schema["properties"].items():
        if field.get("type") == "object" and "properties" in field:
            rows = [_row(inner, value) for inner, value in field["properties"].items()]
            text = field.get("description", "")
            sections.append(f"## [{name}]\n\n{text}\n\n{_table(rows)}")
        else:
            top.append(_row(name, field))
    return "\n\n".join([_table(top), *sections]) + "\n"


def _table(rows: list[str]) -> str:
    return "\n".join(["| field | default | allowed | meaning |", "|---|---|---|---|", *rows])


def _row(name: str, field: dict[str, Any]) -> str:
    default = f"`{json.dumps(field['default'])}`" if "default" in field else "required"
    cells = [f"`{name}`", default, _allowed(field), field.get("description", "")]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _allowed(field: dict[str, Any]) -> str:
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    kind = field.get("type", "")
    kinds = [kind] if isinstance(kind, str) else kind
    text = " or ".join(kinds)
    low, high = field.get("minimum"), field.get("maximum")
    if "exclusiveMinimum" in field:
        text += f" above {field['exclusiveMinimum']}"
    if low is not None and high is not None:
        text += f" from {low} to {high}"
    elif low is not None:
        text += f" from {low}"
    elif high is not None:
        text += f" up to {high}"
    return text


def write_generated(*_: Any) -> None:
    """Writes what the pages include: the recipe's fields and the table of checks."""
    target = DOCS / "_generated"
    target.mkdir(exist_ok=True)
    schema = json.loads((ROOT / "schema" / "recipe.schema.json").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "kit.cli.main", "explain", "--markdown"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name, text in (("recipe.md", recipe_page(schema)), ("checks.md", done.stdout)):
        path = target / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Any) -> None:
    app.connect("builder-inited", write_generated)

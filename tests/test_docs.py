"""The site: builds without a warning, its links lead somewhere, and it names what there is."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import click
import pytest

from kit.cli.main import cli
from kit.recipe import named_recipes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    path: path.read_text() for path in sorted(DOCS.rglob("*.md")) if "_" not in path.parent.name
}


class Links(HTMLParser):
    """The targets and the anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.targets.add(value)
            elif value and name == "id":
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("sphinx", "furo", "myst_parser", "sphinx_click", "sphinx_copybutton"):
        pytest.importorskip(module, reason=f"{module} is not installed (docs)")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", f"{out}/trees"]
    done = subprocess.run(
        [*command, str(DOCS), str(out / "html")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_link_of_the_built_pages_leads_somewhere(site: Path) -> None:
    pages = {path: Links(path) for path in site.rglob("*.html")}
    assert len(pages) > len(PAGES)
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            place, anchor = urldefrag(target)
            if urlsplit(place).scheme:
                continue
            path = (page.parent / unquote(urlsplit(place).path)).resolve() if place else page
            if not path.is_file() or (
                anchor and path in pages and unquote(anchor) not in pages[path].anchors
            ):
                broken.append(f"{page.relative_to(site)}: {target}")
    assert not broken


def test_the_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            assert not re.search(r"(?:src|href)=\"(?:https?:)?//", tag), (page, tag)


def test_the_reference_has_every_command_field_and_check(site: Path) -> None:
    commands = (site / "reference" / "cli.html").read_text()
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        assert f'id="n4090-kit-{name}"' in commands, name
    fields = (site / "reference" / "recipe.html").read_text()
    schema = json.loads((ROOT / "schema" / "recipe.schema.json").read_text())
    for section, value in schema["properties"].items():
        for name in (section, *value.get("properties", {})):
            assert f">{name}<" in fields or f"[{name}]" in fields, name
    from kit.verify import CHECKS

    checks = (site / "trust.html").read_text()
    for check in CHECKS:
        assert f">{check.id}<" in checks, check.id


def test_commands_recipes_and_files_that_the_pages_name_exist() -> None:
    text = "\n".join(PAGES.values())
    named = set(re.findall(r"n4090-kit ([a-z]+)\b", text))
    assert {"run", "verify", "chat", "serve"} <= named <= set(cli.list_commands(None))  # type: ignore[arg-type]
    for name in named_recipes():
        assert f"`{name}`" in text, name
    for target in re.findall(
        r"(?<!\})`((?:kit|reference|submissions|docker|tests|schema)/[\w./-]*)`", text
    ):
        assert (ROOT / target).exists(), target


def test_command_lines_of_the_pages_have_the_options_they_need() -> None:
    lines = []
    for path in (ROOT / "README.md", *PAGES):
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
            block = block.replace("\\\n", " ")
            lines += re.findall(r"^(?:\.venv/bin/)?n4090-kit (.*)$", block, re.MULTILINE)
            lines += re.findall(r"^docker run .* n4090-kit (.*)$", block, re.MULTILINE)
    assert len(lines) > 30
    for line in lines:
        words = shlex.split(line, comments=True)
        command: click.Command = cli
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name = words.pop(0)
            found = command.get_command(click.Context(command), name)
            assert found is not None, line
            command = found
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        given = {word.split("=")[0] for word in words if word.startswith("-")}
        assert given <= options, (line, given - options)
        if "--help" not in given:
            for parameter in command.params:
                if isinstance(parameter, click.Option) and parameter.required:
                    assert given & set(parameter.opts), (line, parameter.opts)

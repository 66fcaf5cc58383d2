"""The examples in docstrings run, and the README's lines of Python are one of them."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("kit", "reference")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    ran = doctest.testmod(importlib.import_module(name))
    assert ran.attempted and not ran.failed


def test_the_public_modules_have_examples() -> None:
    page = (ROOT / "docs/reference/python.md").read_text()
    public = set(re.findall(r"automodule:: (kit\.recipe|kit\.run_log|kit\.result_form)", page))
    assert public <= set(MODULES) and public
    assert {"kit.verify", "kit.trust.canonical"} <= set(MODULES)


def test_the_readmes_lines_of_python_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out == "consistent\n"

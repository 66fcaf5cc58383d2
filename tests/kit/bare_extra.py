"""Runs `n4090-kit` as if only one extra were installed: `bare_extra.py EXTRA LINES`.

LINES is a JSON list of command lines; what they gave is printed as a JSON list.

Every other installed package is hidden from the import system, so that a test needs no environment
of its own for each extra.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tomllib
import traceback
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PROJECT = "n4090-kit"
ROOT = Path(__file__).parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def own_requirements() -> list[str]:
    """From pyproject.toml: the metadata of an editable install may be older."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    found = list(project["dependencies"])
    for extra, requirements in optional.items():
        for text in requirements:
            bare, _, marker = text.partition(";")
            also = f" and ({marker})" if marker else ""
            found.append(f"{bare.strip()}; extra == '{extra}'{also}")
    return found


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, str]]) -> Iterator[str]:
    """Names of the distributions that `name[extras]` brings, itself included."""
    try:
        requires = own_requirements() if name == PROJECT else distribution(name).requires or []
    except PackageNotFoundError:
        return
    yield normal(name)
    for extra in ("", *extras):
        if (normal(name), extra) in seen:
            continue
        seen.add((normal(name), extra))
        for text in requires:
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                yield from needed(one.name, frozenset(one.extras), seen)


def hide_others(extra: str) -> None:
    """Makes all that `pip install n4090-kit[extra]` would not bring impossible to import."""
    allowed = set(needed(PROJECT, frozenset({extra} - {""}), set()))
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if not allowed & {normal(owner) for owner in owners}
    }

    class Filter:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            if name.partition(".")[0] in hidden:
                return None
            return PathFinder.find_spec(name, path, target)

        @staticmethod
        def find_distributions(*context: Any) -> Iterator[Distribution]:
            for found in PathFinder.find_distributions(*context):
                if normal(found.metadata["Name"]) in allowed:
                    yield found

    sys.meta_path[:] = [Filter if finder is PathFinder else finder for finder in sys.meta_path]


def run_lines(lines: list[list[str]]) -> list[dict[str, Any]]:
    """Each command line of `lines` in this process: exit code and output."""
    from kit.cli.main import main

    outcomes = []
    for arguments in lines:
        sys.argv = [PROJECT, *arguments]
        text, code = io.StringIO(), 0
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                code = 99
                traceback.print_exc(file=text)
        outcomes.append({"code": code, "output": text.getvalue()})
    return outcomes


if __name__ == "__main__":
    _, chosen, *rest = sys.argv
    hide_others(chosen)
    print(json.dumps(run_lines(json.loads(rest[0]))))

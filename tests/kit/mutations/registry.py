"""What a mutation is, and the list of all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.verify import Options


@dataclass(frozen=True)
class Mutation:
    name: str
    base: str
    kind: str
    expected: frozenset[str]
    apply: Callable[..., Any]
    options: Callable[[Path], Options] = lambda folder: Options()


MUTATIONS: list[Mutation] = []


def mutation(
    name: str, expected: str, *, kind: str, base: str = "4090", options: Any = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(apply: Callable[..., Any]) -> Callable[..., Any]:
        extra = {"options": options} if options else {}
        MUTATIONS.append(Mutation(name, base, kind, frozenset(expected.split()), apply, **extra))
        return apply

    return keep


def typed(name: str, expected: str, *path: str | int, value: Any, base: str = "4090") -> None:
    """A value typed into the result, which is signed again."""

    @mutation(name, expected, kind="result", base=base)
    def apply(result: dict[str, Any]) -> None:
        place: Any = result
        for part in path[:-1]:
            place = place[part]
        last: Any = path[-1]
        place[last] = value(place[last]) if callable(value) else value


def edit_json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the result after it was signed."""
    path = folder / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result, indent=2))

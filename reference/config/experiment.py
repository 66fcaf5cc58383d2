"""How an idea under `reference/experiments` takes part in training without core importing it.

Each package there may define `EXPERIMENT`. Core finds the packages by name, so that one can be
added or removed without an edit elsewhere. Needs no torch: what does is named as "module:object".
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """One thing wrong with a recipe: where, what stands there, what is allowed."""

    path: str
    found: str
    allowed: str


PACKAGE = "reference.experiments"
Section = Mapping[str, Any]


@dataclass(frozen=True)
class NoFields:
    """An experiment without fields of its own."""


def no_problems(_model: Section, _pretrain: Section) -> Iterable[Problem]:
    return ()


@dataclass(frozen=True)
class Experiment:
    """One idea that no shipped recipe uses.

    Attributes:
        name: The package's name.
        fields: Dataclass of its fields in `[pretrain]`.
        asked: Whether a recipe's `[pretrain]` uses it.
        problems: Called with `[model]` and `[pretrain]`, all fields of the right type.
        rules: Returns subclasses of `reference.optim.rules.MatrixRule` by the name that
            `matrix_optimizer` takes for each.
        lever: "module:class" of a `reference.train.loop.Lever` that takes part in training.
        order: Levers act in this order before each step.
    """

    name: str
    fields: type
    asked: Callable[[Section], bool]
    problems: Callable[[Section, Section], Iterable[Problem]] = no_problems
    rules: Callable[[], Mapping[str, Any]] = dict
    lever: str = ""
    order: int = 0


@cache
def experiments() -> tuple[Experiment, ...]:
    """Every experiment that is installed, in the order in which their levers act."""
    try:
        package = import_module(PACKAGE)
    except ModuleNotFoundError:
        return ()
    found = []
    for module in pkgutil.iter_modules(package.__path__, PACKAGE + "."):
        experiment = getattr(import_module(module.name), "EXPERIMENT", None)
        if experiment is not None:
            found.append(experiment)
    return tuple(sorted(found, key=lambda experiment: (experiment.order, experiment.name)))


def load(place: str) -> Any:
    """The object at "module:object"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)

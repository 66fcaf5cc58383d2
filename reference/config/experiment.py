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

from reference.config.model import ModelConfig


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


class VramPlan(NamedTuple):
    """What the memory plan knows already.

    weights: bytes of the model. head: entries of the head. tokens: of a micro-batch. chunk: tokens
    whose logits exist at a time.
    """

    weights: int
    head: int
    tokens: int
    chunk: int


def same_model(config: ModelConfig, _section: Section, _share: float) -> ModelConfig:
    return config


def no_teacher(_config: ModelConfig, _section: Section, _share: float) -> None:
    return None


def never(_section: Section) -> Iterable[float]:
    return ()


def no_memory(_config: ModelConfig, _section: Section, _plan: VramPlan) -> Mapping[str, int]:
    return {}


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
        model_at: The model in training at an elapsed share of the run, given the finished one.
        taught_by: The model that also runs forward then, or None.
        changes_at: Shares of the run at which one of these two changes.
        vram_bytes: GPU memory by purpose, on top of the plan without this experiment.
        row_buffer: "module:class" that keeps training rows to be read again.
        rules: Returns subclasses of `reference.optim.rules.MatrixRule` by the name that
            `matrix_optimizer` takes for each.
        lever: "module:class" of a `reference.train.loop.Lever` that takes part in training.
        order: Levers act in this order before each step.
    """

    name: str
    fields: type
    asked: Callable[[Section], bool]
    problems: Callable[[Section, Section], Iterable[Problem]] = no_problems
    model_at: Callable[[ModelConfig, Section, float], ModelConfig] = same_model
    taught_by: Callable[[ModelConfig, Section, float], ModelConfig | None] = no_teacher
    changes_at: Callable[[Section], Iterable[float]] = never
    vram_bytes: Callable[[ModelConfig, Section, VramPlan], Mapping[str, int]] = no_memory
    rules: Callable[[], Mapping[str, Any]] = dict
    row_buffer: str = ""
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


def asked_for(section: Section) -> list[Experiment]:
    """The experiments that a recipe's `[pretrain]` uses."""
    return [experiment for experiment in experiments() if experiment.asked(section)]


def load(place: str) -> Any:
    """The object at "module:object"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)

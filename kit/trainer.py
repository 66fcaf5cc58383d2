"""The trainer that owns a recipe's other sections, and what the kit asks it.

The kit knows no field of `[model]` or `[pretrain]`. A recipe's `[trainer] config` names the trainer
that does: an installed package of the entry-point group `n4090_kit.recipes`, whose module has a
`TRAINER`, or an object in a file beside the recipe. Such a file only runs if the caller chose to
run the recipe.

A trainer is an object with these methods, all of which take the resolved recipe::

    sections() -> {section: JSON Schema}       fields, defaults, ranges and what they mean
    problems(recipe) -> [(path, found, allowed)]    of values that do not go together
    facts(recipe) -> dict                      see `Facts`; what is left out has its default
    flops_per_token(recipe, shares, vocab_size) -> [float] | None    training FLOPs of a token at
                                                    each elapsed share (0 to 1) of the run
    course(recipe) -> Course | None            what `verify` holds the log of a run to; None: what
                                               any trainer reports
    estimate(recipe) -> dict | None            see `n4090-kit recipes show --json`, `plan`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from kit.errors import PrerequisiteError, SchemaError
from kit.recipe_code import from_recipe

GROUP = "n4090_kit.recipes"
Document = Mapping[str, Any]


class Course(Protocol):
    """What the log of a run must show when the trainer does what the recipe says.

    None for a figure leaves it unchecked. Only an installed trainer is asked: `verify` runs no code
    from beside a result. FLOPs and parameters are also counted from the shapes of the published
    weights, without any trainer (V13, V21).
    """

    @property
    def model(self) -> Mapping[str, Any]:
        """Values that the model event's `config` must have."""

    @property
    def model_fields(self) -> Sequence[str]:
        """Those of them that the logs of every version of the trainer have."""

    @property
    def step_fields(self) -> Sequence[str]:
        """Fields that every step event must have, besides those that all trainers report."""

    def parameters(self, vocab_size: int) -> int | None:
        """Parameters of the model."""

    def forward_flops(self, vocab_size: int) -> float:
        """FLOPs that a forward pass of a token takes at the least."""

    def eight_bit_share(self, vocab_size: int) -> float:
        """Share of the training FLOPs that may take 8-bit factors, 0 to 1."""

    def batch_tokens(self, stage: str, progress: float) -> int | None:
        """Tokens of a step of `stage` at `progress` (0 to 1)."""

    def learning_rate(self, stage: str, step: int, progress: float) -> float | None:
        """The multiplier of all learning rates at a step, before any roll-back halved it."""

    def evaluated_steps(self, stage: str, last: int) -> Sequence[int]:
        """Steps before which `stage` measures its quality; `last` is the number of steps."""

    def usable_s(self, stage: str) -> tuple[float, float] | None:
        """Least and most seconds over which the progress of a stage by the clock rises to 1."""


class Trainer(Protocol):
    """See the module's text."""

    def sections(self) -> dict[str, dict[str, Any]]: ...

    def problems(self, recipe: Document) -> list[tuple[str, str, str]]: ...

    def facts(self, recipe: Document) -> Mapping[str, Any]: ...

    def flops_per_token(
        self, recipe: Document, shares: Sequence[float], vocab_size: int | None
    ) -> list[float] | None: ...

    def course(self, recipe: Document) -> Course | None: ...

    def estimate(self, recipe: Document) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class Facts:
    """What a trainer says of a recipe.

    Attributes:
        stage_s: Seconds that a stage takes by the recipe, for stages that go by the clock.
        steps: Steps of stages that go by steps.
        reads: Inputs that a stage reads besides those that every trainer's does.
        rollbacks: How often pretraining may go back to older weights.
        dtype: Type of the activations in evaluation.
        varies: Whether a token costs more FLOPs at one time of the run than at another.
        grows: Whether the model changes on the way, so that the loss may rise.
        mixed: Whether the training loss is of more than plain new text, so that it does not
            compare with the bits per byte of the validation text.
    """

    stage_s: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    reads: Mapping[str, list[str]] = field(default_factory=dict)
    rollbacks: int = 0
    dtype: str = "auto"
    varies: bool = False
    grows: bool = False
    mixed: bool = False


def find_trainer(name: str, folder: Path | None) -> Trainer | None:
    """The trainer of this name.

    Args:
        name: An installed trainer, or FILE.py:OBJECT.
        folder: The recipe's, whose code may run; None: no code beside a recipe is run.

    Returns:
        None for a file where none may run.

    Raises:
        PrerequisiteError: Nothing of that name is installed or in the file.
        SchemaError: The name leads out of the folder.
    """
    if ":" in name:
        return None if folder is None else from_recipe(name, folder, what="trainer")
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            found: Trainer | None = getattr(entry.load(), "TRAINER", None)
            if found is not None:
                return found
    installed = ", ".join(sorted(entry.name for entry in entry_points(group=GROUP))) or "none"
    raise PrerequisiteError(
        f"the recipe's trainer {name!r} is not installed",
        hint=f"Installed: {installed} (entry points {GROUP}).",
    )


def course_of(trainer: Trainer | None, recipe: Document) -> Course | None:
    """What the trainer holds the log of a run to; None where it is not known or does not say."""
    ask = getattr(trainer, "course", None)  # trainers of earlier kits have no such method
    found: Course | None = None if ask is None else ask(recipe)
    return found


def facts_of(trainer: Trainer | None, recipe: Document) -> Facts:
    """What the trainer says of a checked recipe.

    Raises:
        SchemaError: It does not understand the recipe.
    """
    if trainer is None:
        return Facts()
    try:
        return Facts(**trainer.facts(recipe))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SchemaError(f"the trainer cannot read its part of the recipe: {error!r}") from error

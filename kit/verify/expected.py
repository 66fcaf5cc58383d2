"""The model of a run: what its log must look like, from the resolved recipe alone.

The kit knows its own part of the recipe; what the trainer's sections mean for the log, it asks the
installed trainer (`kit.trainer.Course`). The checks V27 to V29 hold every event to both. A field
that is absent where this model expects one is a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from kit.recipe import Recipe
from kit.tracks import is_ranked
from kit.trainer import Course, course_of

REFERENCE_COMMAND = ["python", "-m", "reference"]
CORE_COMMAND = ["python", "-m", "kit.core_eval"]
REFERENCE_LOADER = "reference"
# What the closed division trains on: the corpus of the shipped reference recipes.
CLOSED_REPOSITORY = "karpathy/climbmix-400b-shuffle"


@dataclass(frozen=True)
class Expected:
    """What the log of a run of `recipe` must hold."""

    recipe: Recipe

    @property
    def reference(self) -> bool:
        """Whether the reference trainer makes the run, so that its whole log is known."""
        trainer = self.recipe.section("trainer")
        return bool(
            trainer["command"] == REFERENCE_COMMAND
            and trainer["loader"] == trainer["config"] == REFERENCE_LOADER
            and self.recipe.trainer is not None
        )

    @property
    def ranked(self) -> bool:
        return is_ranked(self.recipe.track)

    @property
    def closed(self) -> bool:
        return self.recipe.division == "closed"

    @property
    def closed_repository(self) -> str:
        return CLOSED_REPOSITORY

    def command(self, stage: str) -> list[str] | None:
        """The command of a stage as the log shows it; None where it holds places of a machine."""
        if stage == "core":
            return CORE_COMMAND
        command = list(self.recipe.section("trainer")["command"])
        return None if any("{" in str(part) for part in command) else command

    def reads(self, name: str) -> bool:
        """Whether a stage of the recipe reads input `name`."""
        readers = {
            "data": {"tokenizer", "pretrain"},
            "sft": {"sft"},
            "chat_eval": {"chat_eval"},
            "core": {"core"},
        }[name]
        added = self.recipe.facts.reads
        also = any(name in added.get(stage, ()) for stage in self.recipe.stages)
        return bool(also or readers & set(self.recipe.stages))

    @cached_property
    def course(self) -> Course | None:
        """What the recipe's trainer says that the log must show; None where it does not say."""
        return course_of(self.recipe.trainer, self.recipe.document)


def least_memory_bytes(count: int) -> int:
    """What training `count` parameters holds at the least: 16-bit weights and their gradients."""
    return 4 * count


def consecutive(numbers: Sequence[int]) -> bool:
    """Whether the numbers are 0, 1, 2, … without a hole."""
    return bool(numbers) and numbers[0] == 0 and all(b == a + 1 for a, b in pairwise(numbers))

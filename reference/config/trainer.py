"""What this trainer tells the kit about its part of a recipe; the kit knows none of it by itself.

`reference.TRAINER` is found through the entry point of group `n4090_kit.recipes`. Any trainer can
offer an object with the same methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reference.config.experiment import asked_for, experiments, no_teacher, same_model
from reference.config.fields import defaults, section_schema
from reference.config.model import ModelConfig
from reference.config.pretrain import ChatEval, Pretrain, Sft

if TYPE_CHECKING:
    from reference.config.course import ReferenceCourse

COMMAND = ["python", "-m", "reference"]
Recipe = Mapping[str, Any]


def section_classes() -> dict[str, tuple[str, tuple[type, ...]]]:
    """For each section of a recipe: what it is for, and the dataclasses with its fields."""
    added = tuple(experiment.fields for experiment in experiments())
    return {
        "model": ("Architecture of the model.", (ModelConfig,)),
        "pretrain": (Pretrain.__doc__ or "", (Pretrain, *added)),
        "sft": (Sft.__doc__ or "", (Sft,)),
        "chat_eval": (ChatEval.__doc__ or "", (ChatEval,)),
    }


def section_defaults(name: str) -> dict[str, Any]:
    """Every field of a section with its default."""
    return defaults(*section_classes()[name][1])


class ReferenceTrainer:
    """The reference trainer's part of a recipe."""

    name = "reference"

    def sections(self) -> dict[str, dict[str, Any]]:
        """The JSON Schema of each section, defaults included."""
        sections = {
            name: section_schema(text, *classes)
            for name, (text, classes) in section_classes().items()
        }
        added = [rule for experiment in experiments() for rule in experiment.rules()]
        sections["pretrain"]["properties"]["matrix_optimizer"]["enum"] += added
        return sections

    def problems(self, recipe: Recipe) -> list[tuple[str, str, str]]:
        """(path, found, allowed) of values that do not go together; types are right already."""
        if recipe["trainer"]["command"] != COMMAND:
            return []  # another program that reads the same sections in its own way
        from reference.config.problems import problems

        return [(p.path, p.found, p.allowed) for p in problems(recipe)]

    def facts(self, recipe: Recipe) -> dict[str, Any]:
        """What the kit's stages and checks ask of a recipe.

        Returns:
            `stage_s`: seconds that a stage takes by the recipe, for stages by the clock;
            `steps`: for stages by steps; `reads`: inputs that a stage reads besides its own;
            `rollbacks`: times that pretraining may go back; `dtype` of evaluation;
            `varies`: whether a token costs more FLOPs at one time of the run than at another;
            `grows`: whether the model changes on the way; `mixed`: whether the training loss is
            of more than plain new text.
        """
        from reference.model.cost import RunCost
        from reference.model.day import longest_pretraining_s

        pretrain, stages = recipe["pretrain"], ("pretrain", "sft")
        hours = {stage: recipe[stage].get("hours", 0) for stage in stages}
        cost = RunCost.from_recipe(self._model(recipe, None), pretrain)
        levers = asked_for(pretrain)
        return {
            "stage_s": {
                stage: longest_pretraining_s(recipe) if stage == "pretrain" else 3600.0 * value
                for stage, value in hours.items()
                if value
            },
            "steps": {
                stage: recipe[stage]["num_steps"]
                for stage in stages
                if recipe[stage]["num_steps"] and not hours[stage]
            },
            "reads": {"pretrain": ["sft"]} if pretrain["sft_share"] > 0 else {},
            "rollbacks": pretrain["rollbacks"],
            "dtype": recipe["model"]["dtype"],
            "varies": cost.varies,
            "grows": any(lever.model_at is not same_model for lever in levers),
            "mixed": pretrain["sft_share"] > 0
            or any(lever.row_buffer or lever.taught_by is not no_teacher for lever in levers),
        }

    def course(self, recipe: Recipe) -> ReferenceCourse | None:
        """What the log of a run of the recipe must show; None for another program."""
        from reference.config.course import ReferenceCourse

        return ReferenceCourse(recipe) if recipe["trainer"]["command"] == COMMAND else None

    def flops_per_token(
        self, recipe: Recipe, shares: Sequence[float], vocab_size: int | None
    ) -> list[float]:
        """Training FLOPs of a token at each share, every attention window counted as full.

        Args:
            vocab_size: Of the run's tokenizer; None: the recipe's.
        """
        from reference.model.cost import RunCost

        config = self._model(recipe, vocab_size)
        cost = RunCost.from_recipe(config, recipe["pretrain"])
        return [cost.at(share).nanochat for share in shares]

    def estimate(self, recipe: Recipe) -> dict[str, Any]:
        """Parameters, FLOPs, memory and hours that the recipe is planned to take."""
        from reference.model.cost import estimate

        return estimate(recipe)

    def _model(self, recipe: Recipe, vocab_size: int | None) -> ModelConfig:
        vocab_size = vocab_size or recipe["tokenizer"]["vocab_size"]
        return ModelConfig.from_recipe(recipe["model"], vocab_size)


TRAINER = ReferenceTrainer()

"""Self-distillation: an earlier state of the same run teaches the later one.

The student minimises (1 - w) CE + w T^2 KL(teacher || student), both softened by the temperature T
(Hinton et al. 2015, https://arxiv.org/abs/1503.02531); T^2 keeps the size of the gradients. Only
the gradient is that of the sum: what a step reports stays the plain cross-entropy, comparable with
every other run's.

The teacher's final states of a micro-batch are kept, its logits are made chunk by chunk beside the
student's: nothing of the size (tokens, V) is ever whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.config.model import ModelConfig
from reference.experiments.distill.plan import teacher_share
from reference.experiments.growth.plan import GrowthPlan
from reference.kernels.attention import Documents
from reference.model.gpt import GPT
from reference.model.loss import probabilities, scores_of
from reference.train.loop import TrainState
from reference.train.step import compile_blocks, is_compiled


class SoftTargets(NamedTuple):
    """What a teacher says of a micro-batch.

    hidden: (N, C) final states, scaled for the head. head: (V_padded, C) of the same type. share
    and temperature: w and T. Vocabulary and cap are the student's, too.
    """

    hidden: Tensor
    head: Tensor
    share: float
    temperature: float

    def mixed(
        self, gradient: Tensor, scores: Tensor, part: slice, vocab_size: int, softcap: float
    ) -> Tensor:
        """The gradient by the student's capped logits of the tokens `part`, soft targets mixed in.

        Args:
            gradient: (n, V_padded) of the cross-entropy, softmax minus one-hot; overwritten.
            scores: (n, V_padded), what `reference.model.loss.scores_of` made of the student's
                states.
        """
        T = self.temperature
        theirs = scores_of(self.hidden[part], self.head, softcap)
        difference = probabilities(scores, vocab_size, softcap, T)
        difference -= probabilities(theirs, vocab_size, softcap, T)
        return gradient.mul_(1.0 - self.share).add_(difference, alpha=self.share * T)


class Teacher:
    """A frozen copy of a model, at the weights it had when it was taken.

    Args:
        taken: The share of the run whose weights these are.
        growth: Which model of the run's growth it is.
    """

    def __init__(
        self, model: GPT, section: Mapping[str, Any], *, taken: float, growth: int = 0
    ) -> None:
        self.model = model.requires_grad_(False)
        self.taken, self.growth = taken, growth
        self._share: float = section["distill_weight"]
        self._temperature: float = section["distill_temperature"]

    @classmethod
    def copy_of(
        cls, model: GPT, section: Mapping[str, Any], *, taken: float, growth: int = 0
    ) -> Teacher:
        """A teacher of `model`'s present weights."""
        copy = GPT.empty(model.config).place(model.device, model.dtype)
        copy.load_state_dict(model.state_dict())
        copy.tied = model.tied
        return cls(copy, section, taken=taken, growth=growth)

    @torch.no_grad()
    def targets(self, tokens: Tensor, documents: Documents | None) -> SoftTargets:
        """What it says of tokens (B, T) int64."""
        hidden = self.model.hidden(tokens, documents=documents).flatten(0, 1)
        head, scale = self.model.head
        if scale != 1.0:
            hidden = hidden * scale
        return SoftTargets(hidden, head.to(hidden.dtype), self._share, self._temperature)

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "growth": self.growth,
            "tied": self.model.tied,
            "model": self.model.state_dict(),
        }


class SelfDistillation:
    """Takes a teacher when the recipe's `distill_from` and `distill_refresh` say, and keeps it."""

    def __init__(self, config: ModelConfig, section: Mapping[str, Any]) -> None:
        self._section = section
        self._plan = GrowthPlan.from_recipe(config, section)
        self.teacher: Teacher | None = None

    def first_config(self, config: ModelConfig) -> ModelConfig:
        return config

    def reach(self, state: TrainState, progress: float) -> list[str]:
        """Lets the teacher due at `progress` take part in the gradients of `state`'s model."""
        share = teacher_share(self._section, progress)
        if share is None or progress >= 1.0:
            return []
        known = self.teacher
        if known is None or known.taken != share:
            growth = self._plan.at(progress)
            self.teacher = Teacher.copy_of(state.model, self._section, taken=share, growth=growth)
            if is_compiled(state.model):
                compile_blocks(self.teacher.model)
        assert self.teacher is not None and state.decisions is not None
        self.teacher.model.set_backends(*state.decisions["attention"])
        state.model.teacher = self.teacher
        if self.teacher is known:
            return []
        return ["the weights of this moment are the teacher from here on"]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.teacher is None else {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: TrainState, saved: Mapping[str, Any]) -> None:
        self.teacher = state.model.teacher = None
        kept = saved.get("teacher")
        if kept is None:
            return
        model = GPT.empty(self._plan.configs[kept["growth"]]).place(state.device)
        model.load_state_dict(kept["model"])
        model.tied = kept["tied"]
        self.teacher = Teacher(model, self._section, taken=kept["taken"], growth=kept["growth"])
        if is_compiled(state.model):
            compile_blocks(model)

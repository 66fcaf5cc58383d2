"""What the log of a run of a recipe must show; `verify` asks it (see `kit.trainer.Course`).

Everything here is the trainer's own arithmetic, the same functions that the training uses, and
needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reference.config.model import ModelConfig
from reference.model.cost import count_flops, count_parameters
from reference.model.day import longest_pretraining_s
from reference.optim.schedule import ScheduleConfig, schedule_at, sft_schedule
from reference.train.curriculum import Curriculum, sft_batch_tokens
from reference.train.horizon import LARGEST_RESERVE, RESERVE_S, RESERVE_SHARE


@dataclass(frozen=True)
class ReferenceCourse:
    """The course of a run of `recipe`, a resolved recipe of the reference trainer."""

    recipe: Mapping[str, Any]

    model_fields = (
        *("n_layer", "n_embd", "n_head", "n_kv_head"),
        *("seq_len", "window_pattern", "short_window"),
    )
    step_fields = ("lr", "micro_batches", "progress", "step_tokens", "dt_s")

    @property
    def model(self) -> Mapping[str, Any]:
        section: Mapping[str, Any] = self.recipe["model"]
        return section

    def parameters(self, vocab_size: int) -> int:
        return count_parameters(self._config(vocab_size)).total

    def forward_flops(self, vocab_size: int) -> float:
        return 2.0 * count_parameters(self._config(vocab_size)).matrix

    def eight_bit_share(self, vocab_size: int) -> float:
        pretrain = self.recipe["pretrain"]
        if pretrain["matmul"] == "bf16":
            return 0.0
        whole = count_flops(self._config(vocab_size)).nanochat
        passes = len(set(pretrain["matmul_passes"]))  # forward, and one for each gradient
        return min(1.0, passes * self.forward_flops(vocab_size) / whole)

    def batch_tokens(self, stage: str, progress: float) -> int:
        if stage == "sft":
            return sft_batch_tokens(self.recipe["sft"], self.recipe["model"]["seq_len"])
        return self._curriculum.at(progress).batch_tokens

    def learning_rate(self, stage: str, step: int, progress: float) -> float:
        rate = schedule_at(progress, step, self._schedules[stage]).lr
        if stage == "sft":
            return rate
        return rate * self._curriculum.lr_scale(self._curriculum.at(progress))

    def evaluated_steps(self, stage: str, last: int) -> Sequence[int]:
        every = self.recipe[stage]["eval_every"]
        between = range(every, last, every) if every else ()
        return sorted({0, *between, last})

    def usable_s(self, stage: str) -> tuple[float, float] | None:
        # Recipes of earlier results lack the newer fields.
        section = self.recipe.get(stage, {})
        seconds = section.get("hours", 0) * 3600
        if not seconds:
            return None
        if section.get("fill_budget"):  # as much as the card's own speed leaves
            return (1 - LARGEST_RESERVE) * 0.5 * seconds, longest_pretraining_s(self.recipe)
        largest = LARGEST_RESERVE * seconds
        return seconds - largest, seconds - min(largest, RESERVE_SHARE * seconds + RESERVE_S)

    def _config(self, vocab_size: int) -> ModelConfig:
        return ModelConfig.from_recipe(self.recipe["model"], vocab_size)

    @cached_property
    def _curriculum(self) -> Curriculum:
        config = self._config(self.recipe["tokenizer"]["vocab_size"])
        return Curriculum.from_recipe(config, self.recipe["pretrain"])

    @cached_property
    def _schedules(self) -> dict[str, ScheduleConfig]:
        return {
            "pretrain": ScheduleConfig.from_recipe(self.recipe["pretrain"]),
            "sft": sft_schedule(self.recipe["sft"]),
        }

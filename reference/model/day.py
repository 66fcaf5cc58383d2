"""How the hours of a run divide among its stages: the one computation of plan, recipe and trainer.

Pretraining gets what the others leave (`pretrain.fill_budget`). What the others need follows from
the card's speed: CORE and the chat evaluation are a fixed amount of work, fine-tuning a fixed time.
`n4090-kit plan` calls `plan_day` with a predicted speed, the trainer `leave_s` with the speed that
it measures, so a fast card trains on more and a slow card on less, and neither misses the deadline.
Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOKENIZER_SHARE = 0.2 / 24  # of the budget: learning the merges and encoding the first shards
# CORE costs as much as training on so many tokens: kit/core_eval/COST.md, 905 s for d20 at half of
# an RTX 4090's bf16 peak, where training makes 28,600 tokens/s.
CORE_TRAINING_TOKENS = 26e6
EIGHT_BIT_SPEEDUP = 2.0  # at most, of pretraining alone: all other stages multiply in bf16
CORE_ITEMS, CORE_TASKS = 91_037, 22
MARGIN_SHARE, MARGIN_S = 0.005, 60.0  # of the budget: loading models, writing checkpoints
COMPILE_S = 300.0  # compiling and timing kernels before the first step on a GPU
SFT_OVERHEAD = 1.1  # of its steps' time: evaluation and checkpoints
EVALUATION_COST = 1 / 3  # of a training token: forward alone
RESERVE_EVALS = 3.0  # last evaluations' worth of time that pretraining keeps back
TRAINED_TOKENS_PER_SHARD = 35e6  # ClimbMix
SHARD_RESERVE = 1.25  # shards for a card so much faster than planned, without a second epoch

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Day:
    """The planned division of a run's budget.

    Args:
        hours: By stage, and `margin`; they add up to the budget where pretraining fills it.
        tokens: Trained on in pretraining, after its evaluations, compiling and reserve.
        sft_tokens: Trained on in fine-tuning.
    """

    hours: dict[str, float]
    tokens: float
    sft_tokens: float

    @property
    def shards(self) -> int:
        """Shards of ClimbMix that a card somewhat faster than planned does not exhaust."""
        return max(1, -(-int(SHARD_RESERVE * self.tokens) // int(TRAINED_TOKENS_PER_SHARD)))


def plan_day(recipe: Recipe, tokens_per_s: float) -> Day:
    """The day of a resolved recipe on a card that trains `tokens_per_s`.

    A recipe whose pretraining goes by `hours` alone keeps them, and the rest is `margin`.
    """
    pretrain = recipe["pretrain"]
    budget_s = float(recipe.get("budget_s") or 3600 * pretrain.get("hours", 0))
    seconds = {"tokenizer": TOKENIZER_SHARE * budget_s, "pretrain": 0.0}
    seconds |= later_stages_s(recipe, tokens_per_s, tokens_per_s)
    if pretrain.get("fill_budget"):
        seconds["margin"] = margin_s(budget_s)
        seconds["pretrain"] = budget_s - sum(seconds.values())
    else:
        seconds["pretrain"] = 3600.0 * pretrain.get("hours", 0)
        seconds["margin"] = budget_s - sum(seconds.values())
    return Day(
        {stage: value / 3600 for stage, value in seconds.items()},
        trained_tokens(pretrain, seconds["pretrain"], tokens_per_s, str(recipe.get("device"))),
        seconds.get("sft", 0.0) * plain_speed(recipe, tokens_per_s) / SFT_OVERHEAD,
    )


def plain_speed(recipe: Recipe, tokens_per_s: float) -> float:
    """Tokens a second at the least where all products are bf16, as in CORE and fine-tuning."""
    eight_bit = recipe["pretrain"].get("matmul", "bf16") != "bf16"
    return tokens_per_s / (EIGHT_BIT_SPEEDUP if eight_bit else 1.0)


def later_stages_s(recipe: Recipe, tokens_per_s: float, planned_per_s: float) -> dict[str, float]:
    """Seconds of the stages after pretraining, by stage, on a card that trains `tokens_per_s`.

    Args:
        planned_per_s: The speed at which the recipe's `chat_eval.hours` were planned. A faster card
            needs less of them; a slower card asks fewer questions instead of taking longer.
    """
    stages = recipe.get("stages", ("core", "sft", "chat_eval"))
    found: dict[str, float] = {}
    plain_per_s = plain_speed(recipe, tokens_per_s)
    if "core" in stages:
        cap = recipe.get("core", {}).get("max_per_task", -1)
        share = 1.0 if cap < 0 else min(1.0, cap * CORE_TASKS / CORE_ITEMS)
        found["core"] = share * CORE_TRAINING_TOKENS / plain_per_s
    if "sft" in stages:
        sft = recipe.get("sft", {})
        steps_s = sft.get("num_steps", 0) * sft.get("total_batch_size", 0) / plain_per_s
        found["sft"] = 3600.0 * sft.get("hours", 0) or SFT_OVERHEAD * steps_s
    if "chat_eval" in stages:
        faster = min(1.0, planned_per_s / tokens_per_s)
        found["chat_eval"] = 3600.0 * recipe.get("chat_eval", {}).get("hours", 0) * faster
    return found


def margin_s(budget_s: float) -> float:
    """Seconds of a budget that no stage plans to use."""
    return min(0.1 * budget_s, MARGIN_SHARE * budget_s + MARGIN_S)


def leave_s(recipe: Recipe, tokens_per_s: float, planned_per_s: float) -> float:
    """Seconds before the deadline at which pretraining has to be over."""
    later = later_stages_s(recipe, tokens_per_s, planned_per_s)
    return sum(later.values()) + margin_s(float(recipe["budget_s"]))


def longest_pretraining_s(recipe: Recipe) -> float:
    """Seconds that pretraining takes at the most, on the fastest card: what stops it."""
    budget_s, pretrain = float(recipe["budget_s"]), recipe["pretrain"]
    if not pretrain.get("fill_budget"):
        return 3600.0 * float(pretrain.get("hours", 0))
    sft_s = 3600.0 * recipe.get("sft", {}).get("hours", 0)
    return budget_s - sft_s - margin_s(budget_s)


def trained_tokens(
    pretrain: Mapping[str, Any], seconds: float, tokens_per_s: float, device: str = "cuda"
) -> float:
    """Tokens trained on in `seconds` of pretraining, its evaluations and compiling taken off."""
    last_s = pretrain.get("eval_tokens", 0) * EVALUATION_COST / tokens_per_s
    compile_s = 0.0 if device == "cpu" else COMPILE_S
    usable_s = seconds - min(0.5 * seconds, compile_s + (1 + RESERVE_EVALS) * last_s)
    every = pretrain.get("eval_every", 0) * pretrain.get("total_batch_size", 0)
    between = pretrain.get("eval_tokens_between") or pretrain.get("eval_tokens", 0)
    evaluated = between / every if every else 0.0  # tokens for each one that is trained on
    return usable_s * tokens_per_s / (1 + evaluated * EVALUATION_COST)

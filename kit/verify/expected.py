"""The model of a run: what its log must look like, from the resolved recipe alone.

Written once, without the trainer's code, so that a change of the trainer cannot move the judge. The
checks V27 to V29 hold every event to it. A field that is absent where this model expects one is a
finding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from kit.recipe import Recipe

REFERENCE_COMMAND = ["python", "-m", "reference"]
CORE_COMMAND = ["python", "-m", "kit.core_eval"]
REFERENCE_LOADER = "reference"
# What the closed division trains on: the corpus of the shipped reference recipes.
CLOSED_REPOSITORY = "karpathy/climbmix-400b-shuffle"

# The reference trainer's own constants, which its log shows.
_VOCABULARY_MULTIPLE = 64
_VALUE_GATE_CHANNELS = 12
_SMEAR_GATE_CHANNELS = 24
_SFT_WARMUP_SHARE = 0.05
_RESERVE_SHARE, _RESERVE_S, _LARGEST_RESERVE = 0.01, 10.0, 0.5
_INVERSE_TIME = 9.0

Document = Mapping[str, Any]


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
        return self.recipe.track == "rtx4090-24h"

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

    # --- pretraining --------------------------------------------------------------------------

    @property
    def _pretrain(self) -> dict[str, Any]:
        return self.recipe.section("pretrain")

    @property
    def by_time(self) -> bool:
        return bool(self._pretrain["hours"] > 0)

    def batch_tokens(self, stage: str, progress: float) -> int:
        """Tokens of a step of `stage` at `progress`."""
        if stage == "sft":
            section = self.recipe.section("sft")
            row = section["device_batch_size"] * self.recipe.section("model")["seq_len"]
            return int(max(1, section["total_batch_size"] // row) * row)
        ramp: Sequence[Sequence[float]] = self._pretrain["batch_ramp"] or []
        reached = [value for share, value in ramp if share <= progress]
        return int(reached[-1] if reached else self._pretrain["total_batch_size"])

    def learning_rate(self, stage: str, step: int, progress: float) -> float:
        """The multiplier of all learning rates at a step, before any roll-back halved it."""
        section = self.recipe.section(stage)
        warmup = section.get("warmup_steps", 0)
        if stage == "sft":
            warmup = math.ceil(_SFT_WARMUP_SHARE * section["num_steps"])
        ratio, final = section["warmdown_ratio"], section["final_lr_frac"]
        down = max(0.0, (progress - (1 - ratio)) / ratio) if ratio > 0 else 0.0
        up = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
        decay = section.get("decay", "linear") if stage == "pretrain" else "linear"
        rate = min(up, final + (1 - final) * _falling(decay, down, section))
        if stage == "sft":
            return float(rate)
        share = self.batch_tokens(stage, progress) / self._pretrain["total_batch_size"]
        return float(rate * math.sqrt(share))

    @cached_property
    def usable_s(self) -> tuple[float, float]:
        """Least and most seconds over which the progress of a run by time rises from 0 to 1."""
        seconds = self._pretrain["hours"] * 3600
        return _LARGEST_RESERVE * seconds, seconds - min(
            _LARGEST_RESERVE * seconds, _RESERVE_SHARE * seconds + _RESERVE_S
        )

    def evaluated_steps(self, stage: str, last: int) -> list[int]:
        """Steps before which the stage measures its quality, `last` being the number of steps."""
        every = self.recipe.section(stage)["eval_every"]
        between = range(every, last, every) if every else ()
        return sorted({0, *between, last})

    def learning_rate_is_known(self) -> bool:
        """Whether no roll-back can have changed the learning rates."""
        return not self._pretrain["rollbacks"]


def parameters(config: Document) -> int:
    """Parameters of a reference model, the padding of its tables included."""
    width, layers = config["n_embd"], config["n_layer"]
    vocabulary = -(-config["vocab_size"] // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    keys = config["n_kv_head"] * (width // config["n_head"])
    every = config.get("value_embedding_every", 2)
    gated = 0
    if config.get("value_embeddings", True):
        gated = sum(layer % every == (layers - 1) % every for layer in range(layers))
    swiglu = config.get("ffn") == "swiglu"
    inner = config.get("ffn_width") or (-(-8 * width // 192) * 64 if swiglu else 4 * width)
    block = 2 * width * width + 2 * width * keys + (3 if swiglu else 2) * width * inner
    tables = 1 if config.get("tied_until", 0) >= 1 else 2
    scalars = layers * (1 + bool(config.get("x0_mix", True)))
    scalars += (_SMEAR_GATE_CHANNELS + 1) * bool(config.get("smear", True))
    scalars += bool(config.get("backout", True))
    return int(
        tables * vocabulary * width
        + gated * (vocabulary * keys + _VALUE_GATE_CHANNELS * config["n_kv_head"])
        + layers * block
        + scalars
    )


def block_flops(config: Document) -> float:
    """Training FLOPs of one token in the matrices of the blocks: without head and attention."""
    width, layers = config["n_embd"], config["n_layer"]
    keys = width * config["n_kv_head"] // config["n_head"]
    swiglu = config.get("ffn") == "swiglu"
    inner = config.get("ffn_width") or (-(-8 * width // 192) * 64 if swiglu else 4 * width)
    ffn = (3 if swiglu else 2) * width * inner
    return float(6 * layers * (2 * width * width + 2 * width * keys + ffn))


def eight_bit_gain(config: Document, passes: Sequence[str], whole: float) -> float:
    """How much faster a model's training can be with 8-bit factors at twice the rate.

    Only products of the blocks' matrices take them; head and attention stay in 16 bits.

    Args:
        passes: Products that do: of forward, input_grad, weight_grad.
        whole: Training FLOPs of one token.
    """
    share = block_flops(config) / whole * len(set(passes)) / 3
    return 1 / (1 - min(1.0, share) / 2)


def least_memory_bytes(count: int) -> int:
    """What training `count` parameters holds at the least: 16-bit weights and their gradients."""
    return 4 * count


def _falling(decay: str, share: float, section: Document) -> float:
    """From 1 at share 0 of the warm-down to 0 at its end."""
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    if decay == "sqrt":
        return 1 - math.sqrt(share)
    if decay == "square":
        return (1 - share) ** 2
    if decay == "power":
        return float((1 - share) ** section["decay_exponent"])
    if decay == "inverse_time":
        last = 1 / (1 + _INVERSE_TIME)
        return (1 / (1 + _INVERSE_TIME * share) - last) / (1 - last)
    return 1 - share


def consecutive(numbers: Sequence[int]) -> bool:
    """Whether the numbers are 0, 1, 2, … without a hole."""
    return bool(numbers) and numbers[0] == 0 and all(b == a + 1 for a, b in pairwise(numbers))

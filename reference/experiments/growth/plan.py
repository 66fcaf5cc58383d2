"""Which models a run trains in turn, known from the recipe alone. Needs no torch.

Progressive growth begins with fewer layers (`growth_layers`) or a narrower model (`growth_width`)
and ends with the recipe's own. Both are tables over the elapsed share of the run, as the ramps of
`reference.train.curriculum` are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from reference.config.model import ModelConfig


@dataclass(frozen=True)
class GrowthPlan:
    """The models of a run, smallest first, and the share from which on each is trained."""

    begins: tuple[float, ...]
    configs: tuple[ModelConfig, ...]

    @classmethod
    def from_recipe(cls, config: ModelConfig, section: Mapping[str, Any]) -> GrowthPlan:
        """The plan of a recipe's `[pretrain]`; `config` is its finished model."""
        layers = section.get("growth_layers") or [[0.0, config.n_layer]]
        widths = section.get("growth_width") or [[0.0, config.n_embd]]
        begins = sorted({float(share) for table in (layers, widths) for share, _ in table})
        configs = tuple(
            sized(config, int(_in_force(layers, share)), int(_in_force(widths, share)))
            for share in begins
        )
        return cls(tuple(begins), configs)

    def at(self, progress: float) -> int:
        """The index of the model that is trained at `progress` (0 to 1)."""
        return sum(begin <= progress for begin in self.begins) - 1


def _in_force(table: list[list[float]], progress: float) -> float:
    return [value for share, value in table if share <= progress][-1]


def sized(config: ModelConfig, n_layer: int, n_embd: int) -> ModelConfig:
    """`config` with other sizes: heads keep their width, so there are fewer of them."""
    part = (n_embd, config.n_embd)
    return replace(
        config,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=_scaled(config.n_head, *part),
        n_kv_head=_scaled(config.n_kv_head, *part),
        ffn_width=_scaled(config.ffn_width, *part),
    )


def _scaled(value: int, part: int, whole: int) -> int:
    if value * part % whole:
        raise ValueError(f"a width of {part} does not divide {value} evenly, as {whole} does")
    return value * part // whole


def model_at(config: ModelConfig, section: Mapping[str, Any], share: float) -> ModelConfig:
    """The model in training at an elapsed share of the run."""
    plan = GrowthPlan.from_recipe(config, section)
    return plan.configs[plan.at(share)]


def changes_at(section: Mapping[str, Any]) -> list[float]:
    """The shares at which the model grows."""
    tables = (section.get("growth_layers"), section.get("growth_width"))
    return sorted({float(share) for table in tables for share, _ in table or []})

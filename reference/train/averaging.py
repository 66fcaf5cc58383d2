"""Averages of a run's own weights: a second model read out of one training run.

Late in a run the weights move around a point that is better than where they stand, more so when
the learning rate is still high. Two averages, both in fp32 beside the weights:

    ema   w_avg <- b w_avg + (1 - b) w after each step, with b = 1 - 1 / (share * steps so far):
          a horizon that grows with the run, so that it needs no tuning for its length
    tail  the plain mean over the last share of the run, as checkpoint averaging takes it

The average does not always help, so a run measures both and ends in the better one, by bits per
byte of the validation rows alone (`choose`).

References:
    Izmailov et al. 2018, Averaging Weights Leads to Wider Optima (tail averages).
    Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, section 3
    (averages whose horizon is a share of the run).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["none", "ema", "tail"]


class WeightAverage:
    """The average of `model`'s parameters; holds no memory until it begins.

    Args:
        share: ema: its horizon as a share of the steps so far; tail: the part of the run, at its
            end, that is averaged.
    """

    def __init__(self, model: nn.Module, kind: Kind, share: float) -> None:
        self.kind, self.share = kind, share
        self.count = 0  # weights that entered
        self._parameters = dict(model.named_parameters())
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int, progress: float) -> None:
        """Takes in the weights after step `step` (from 0), reached at `progress` (0 to 1)."""
        if self.kind == "none" or (self.kind == "tail" and progress < 1.0 - self.share):
            return
        self.count += 1
        if self.kind == "tail":
            weight = 1.0 / self.count
        else:
            weight = min(1.0, 1.0 / max(self.share * (step + 1), 1.0))
        for name, parameter in self._parameters.items():
            current = parameter.detach().float()
            kept = self._average.get(name)
            if kept is None or self.count == 1:
                self._average[name] = current.clone()
            else:
                kept.lerp_(current, weight)

    @property
    def exists(self) -> bool:
        return bool(self._average)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's weights and the average; a second call restores both exactly."""
        for name, value in self._average.items():
            parameter = self._parameters[name]
            self._average[name] = parameter.detach().float().clone()
            parameter.copy_(value)

    def choose(self, measure: Callable[[str], float]) -> bool:
        """Leaves the model with the better of its weights and their average.

        Args:
            measure: "weights" or "average" -> validation loss of the model as it is. A loss that
                is not finite is never the better one; of two equal ones, the weights stay.

        Returns:
            Whether the average was taken.
        """
        weights = measure("weights")
        self.swap()
        average = measure("average")
        if math.isfinite(average) and not average >= weights:
            return True
        self.swap()
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        self._average = {
            name: value.to(self._parameters[name].device)
            for name, value in state["average"].items()
        }

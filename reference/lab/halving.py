"""Asynchronous successive halving over the ladder: what to start next. Decides; does nothing.

Whenever a slot is free: an arm that is among the best 1/eta of those that finished its scale moves
up, from the top of the ladder down; otherwise a new arm starts at the smallest scale. Nobody waits
for a whole scale to finish, so slots never stand idle; an early promotion may be one too many. The
baseline takes no part in the contest: it runs wherever an arm goes, and before it, so that stop
rules have something to hold to.

References:
    Li et al. 2018, A System for Massively Parallel Hyperparameter Tuning,
    https://arxiv.org/abs/1810.05934
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reference.lab.study import BASELINE, Halving


class Slot(NamedTuple):
    """One trial of the study: names of arm and scale, and the seed."""

    arm: str
    scale: str
    seed: int


@dataclass(frozen=True)
class Promotion:
    """Why an arm goes on to `scale`."""

    arm: str
    scale: str
    rank: int
    of: int
    loss: float

    def __str__(self) -> str:
        return (
            f"{self.arm} advances to {self.scale}: rank {self.rank} of {self.of} finished so far "
            f"(mean ln bpb {self.loss:.4f})"
        )


class Ladder:
    """The contest.

    Args:
        losses: Of each finished trial: ln val_bpb, or infinity for one that diverged, was stopped
            by a rule, or failed for good. The caller keeps adding to it.
        controls: Arms that go to the top whatever their rank, unless they broke.
        seeds: Of all scales, or of each by name.
        up_to: Arm -> the largest scale that it may reach, where that is not the top.
    """

    def __init__(
        self,
        arms: Sequence[str],
        scales: Sequence[str],
        seeds: Sequence[int] | Mapping[str, Sequence[int]],
        halving: Halving,
        losses: Mapping[Slot, float],
        controls: Collection[str] = (),
        up_to: Mapping[str, str] | None = None,
    ) -> None:
        self._arms = [arm for arm in arms if arm != BASELINE]
        self._scales, self._up_to = list(scales), dict(up_to or {})
        self._seeds = {
            scale: list(seeds[scale] if isinstance(seeds, Mapping) else seeds) for scale in scales
        }
        self._halving, self._losses, self._controls = halving, losses, controls
        self._members: dict[str, list[str]] = {scale: [] for scale in scales}
        self._started: set[Slot] = set()
        self.promotions: list[Promotion] = []

    def next(self) -> Slot | None:
        """The next trial to start; None where everything that may start has."""
        while True:
            for scale in reversed(self._scales):
                slot = self._open_slot(scale)
                if slot is not None:
                    self._started.add(slot)
                    return slot
            if not (self._promote() or self._enter()):
                return self._baseline_slot()

    def put_back(self, slot: Slot) -> None:
        """The trial has to be started again."""
        self._started.discard(slot)

    def members(self, scale: str) -> list[str]:
        """The changes that reached `scale`."""
        return list(self._members[scale])

    def _open_slot(self, scale: str) -> Slot | None:
        if not self._members[scale]:
            return None
        for arm in (BASELINE, *self._members[scale]):
            for seed in self._seeds[scale]:
                slot = Slot(arm, scale, seed)
                if slot not in self._started and slot not in self._losses:
                    return slot
        return None

    def _baseline_slot(self) -> Slot | None:
        """The baseline at scales that no arm reached: its curve spans the whole ladder.

        None where every arm broke: no multiplier will be read off the curve.
        """
        if not any(math.isfinite(x) for slot, x in self._losses.items() if slot.arm != BASELINE):
            return None
        for scale in self._scales:
            for seed in self._seeds[scale]:
                slot = Slot(BASELINE, scale, seed)
                if slot not in self._started and slot not in self._losses:
                    self._started.add(slot)
                    return slot
        return None

    def _enter(self) -> bool:
        first = self._members[self._scales[0]]
        if len(first) == len(self._arms):
            return False
        first.append(self._arms[len(first)])
        return True

    def _promote(self) -> bool:
        pairs = list(zip(self._scales, self._scales[1:], strict=False))
        for index in range(len(pairs) - 1, -1, -1):
            lower, upper = pairs[index]
            finished = self._finished(lower)
            quota = self._quota(index, len(finished))
            for rank, (loss, arm) in enumerate(finished, start=1):
                goes_on = rank <= quota or arm in self._controls
                if self._up_to.get(arm) == lower:
                    continue
                if goes_on and math.isfinite(loss) and arm not in self._members[upper]:
                    self._members[upper].append(arm)
                    self.promotions.append(Promotion(arm, upper, rank, len(finished), loss))
                    return True
        return False

    def _finished(self, scale: str) -> list[tuple[float, str]]:
        """Arms all of whose trials at `scale` ended, the best first."""
        means = []
        for arm in self._members[scale]:
            losses = [self._losses.get(Slot(arm, scale, seed)) for seed in self._seeds[scale]]
            if None not in losses:
                means.append((sum(loss for loss in losses if loss is not None) / len(losses), arm))
        return sorted(means)

    def _quota(self, index: int, finished: int) -> int:
        quota = math.floor(finished / self._halving.eta)
        if self._closed(index) and finished == len(self._members[self._scales[index]]):
            quota = max(math.ceil(finished / self._halving.eta), self._halving.keep_at_least)
        return quota

    def _closed(self, index: int) -> bool:
        """Whether nobody will join scale `index` any more."""
        if index == 0:
            return len(self._members[self._scales[0]]) == len(self._arms)
        below = self._scales[index - 1]
        finished = self._finished(below)
        if not self._closed(index - 1) or len(finished) < len(self._members[below]):
            return False
        going = [
            arm
            for loss, arm in finished[: self._quota(index - 1, len(finished))]
            if math.isfinite(loss) and self._up_to.get(arm) != below
        ]
        return set(going) <= set(self._members[self._scales[index]])

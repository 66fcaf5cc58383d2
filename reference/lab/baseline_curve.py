"""The baseline's curve over the whole ladder, and compute multipliers read off it.

bpb(C) = E + A C^-p is fitted to the baseline's mean at every rung. A change that gains g in ln bpb
at compute C has the multiplier C' / C, where C' is the compute at which the fitted baseline has the
change's bits per byte. Two rungs leave the floor E at 0, one takes the published power. Intervals
come from drawing the rung means and the gain from their own errors and fitting again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reference.lab.statistics import Gain, Multiplier

# d ln bpb / d ln C of nanochat's models, 1e18 to 1e19 FLOPs (dev/LOG.md, 2026-01-27); for a study
# of one scale, and said so.
PUBLISHED_SLOPE, PUBLISHED_ERROR = 0.050, 0.010
DRAWS = 400
LARGEST = 50.0  # of |ln multiplier|, so that it stays a finite number
_FLOORS = np.linspace(0.0, 0.98, 50)  # shares of the lowest bpb that are tried as E


class Curve(NamedTuple):
    """bpb = floor + exp(log_a - power ln C); `published`: the power is not this study's."""

    floor: float
    log_a: float
    power: float
    published: bool = False

    def bpb(self, flops: float) -> float:
        return self.floor + math.exp(self.log_a - self.power * math.log(flops))

    def slope(self, flops: float) -> float:
        """-d ln bpb / d ln C at `flops`."""
        return self.power * (1 - self.floor / self.bpb(flops))

    def log_multiplier(self, flops: float, gain: float) -> float:
        """ln of the compute multiplier of a change that gains `gain` in ln bpb at `flops`."""
        above = self.bpb(flops) * math.exp(-gain) - self.floor
        if self.power <= 0 or above <= 0:
            return LARGEST
        wanted = (self.log_a - math.log(above)) / self.power
        return min(max(wanted - math.log(flops), -LARGEST), LARGEST)


class Rung(NamedTuple):
    """The baseline at one scale: training FLOPs, mean ln bpb, and the mean's standard error."""

    flops: float
    mean: float
    error: float


def fit_curve(rungs: Sequence[Rung], *, published: float = PUBLISHED_SLOPE) -> Curve:
    """The curve through the finite rungs; at least one is needed."""
    known = [rung for rung in rungs if math.isfinite(rung.mean)]
    x = np.array([math.log(rung.flops) for rung in known])
    y = np.array([rung.mean for rung in known])
    if len(known) == 1:
        return Curve(0.0, float(y[0] + published * x[0]), published, True)
    errors = np.array([rung.error for rung in known])
    weight = 1 / errors**2 if (errors > 0).all() else np.ones(len(known))
    bpb = np.exp(y)
    floors = (_FLOORS if len(known) > 2 else _FLOORS[:1]) * bpb.min()
    z = np.log(bpb - floors[:, None])  # (floors, rungs); each row a line over x
    share = weight * (1 - floors[:, None] / bpb) ** 2  # dy = (1 - E / bpb) dz
    total = share.sum(1, keepdims=True)
    x0, z0 = (share * x).sum(1, keepdims=True) / total, (share * z).sum(1, keepdims=True) / total
    slope = (share * (x - x0) * (z - z0)).sum(1) / (share * (x - x0) ** 2).sum(1)
    misfit = (share * (z - z0 - slope[:, None] * (x - x0)) ** 2).sum(1)
    best = int(misfit.argmin())
    log_a = float(z0[best, 0] - slope[best] * x0[best, 0])
    return Curve(float(floors[best]), log_a, float(-slope[best]))


def multiplier(gain: Gain, rungs: Sequence[Rung], flops: float) -> Multiplier | None:
    """The compute multiplier of `gain` at `flops`.

    None where the baseline does not surely learn with compute, or nothing is known of the noise.
    """
    if gain.freedom < 1 or not any(math.isfinite(rung.mean) for rung in rungs):
        return None
    rng = np.random.default_rng(0)
    curve = fit_curve(rungs)
    drawn = []
    for noise in rng.standard_normal((DRAWS, len(rungs) + 1)):
        moved = [
            rung._replace(mean=rung.mean + rung.error * z)
            for rung, z in zip(rungs, noise, strict=False)
        ]
        drawn.append(fit_curve(moved, published=PUBLISHED_SLOPE + PUBLISHED_ERROR * noise[-1]))
    if np.quantile([fit.power for fit in drawn], 0.025) <= 0:
        return None
    effects = gain.gain + gain.error * rng.standard_t(gain.freedom, DRAWS)
    logs = [fit.log_multiplier(flops, effect) for fit, effect in zip(drawn, effects, strict=True)]
    low, high = np.quantile(logs, (0.025, 0.975))
    center = curve.log_multiplier(flops, gain.gain)
    return Multiplier(*(math.exp(value) for value in (center, low, high)))

"""What one run of a plan will reach, and how likely it reaches the target: a simulation.

A forecast from one law at one speed hides most of what is unknown. Here each draw takes

- a speed of the card, between the lowest and the highest published for it;
- one bootstrap sample of the scaling laws;
- a value for each lever that the recipe uses (`levers.toml`), as a multiplier of compute;
- the spread of single runs around the law: seeds, and differences between sources.

Draws are independent, so errors that two sources share are not modelled.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reference.lab.cards import Card
from reference.lab.plan import Candidate, Laws
from reference.lab.published_runs import Point
from reference.lab.scaling import CORE_SPREAD, Interval, equivalent_flops, interval

DRAWS = 2000
SEED = 0
TWO_SIDED_95 = 1.96
SOURCES = 0.25  # variance between sources (code, tokenizer, evaluation), in units of the seeds'


@dataclass(frozen=True)
class Lever:
    """A switch of a recipe that changes what a FLOP is worth.

    Args:
        when: Dotted recipe field → value that switches it on; "*" stands for any value but the
            field's absence, 0, false or an empty list.
        low, high: 95 % interval of the multiplier of effective compute.
        bet: The evidence is from another size, corpus or trainer.
    """

    name: str
    when: Mapping[str, Any]
    low: float
    high: float
    bet: bool
    evidence: str

    @property
    def middle(self) -> float:
        return math.sqrt(self.low * self.high)

    def is_on(self, recipe: Mapping[str, Any]) -> bool:
        """Whether the recipe (as written or resolved) has every field of `when`."""
        for dotted, wanted in self.when.items():
            section, _, field = dotted.partition(".")
            value = recipe.get(section, {}).get(field)
            if not (bool(value) if wanted == "*" else value == wanted):
                return False
        return True


def known_levers() -> tuple[Lever, ...]:
    """The levers of levers.toml."""
    text = Path(__file__).with_name("levers.toml").read_text()
    return tuple(Lever(**row) for row in tomllib.loads(text)["lever"])


@dataclass(frozen=True)
class Odds:
    """The result of a simulation; intervals hold 95 % of the draws.

    Args:
        tokens: Trained on in pretraining.
        effective_flops: Of an optimal shape at nanochat's head that would reach the same loss.
        core: Of one run, evaluated once.
        p_target: Share of draws with CORE at or above the target.
        steps: (what, median effective FLOPs after it), from the bare law to the last lever.
    """

    tokens: Interval
    effective_flops: Interval
    median_core: float
    core: Interval
    p_target: float
    steps: tuple[tuple[str, float], ...]


def simulate(
    candidate: Candidate,
    card: Card,
    laws: Laws,
    levers: Sequence[Lever],
    *,
    target: float,
    draws: int = DRAWS,
) -> Odds | None:
    """The odds of a candidate on a card; None where CORE cannot be forecast at all."""
    pairs = [pair for pair in laws.samples if pair[1] and laws.family in pair[0].factors]
    if candidate.core is None or not pairs:
        return None
    rng = np.random.default_rng(SEED)
    speed = _speeds(rng, card, draws)
    compute = np.empty(draws)
    lines = []
    for i, which in enumerate(rng.integers(0, len(pairs), size=draws)):
        law, line = pairs[which]
        tokens, flops = candidate.tokens * speed[i], candidate.flops * speed[i]
        point = Point("", laws.family, "", candidate.parameters, tokens, flops)
        compute[i] = equivalent_flops(point, law)
        lines.append(line)
    steps = [("this shape, these hours", float(np.median(compute)))]
    for lever in levers:
        compute = compute * _log_normal(rng, lever.low, lever.high, draws)
        steps.append((lever.name, float(np.median(compute))))
    spread = CORE_SPREAD * math.sqrt(1.0 + SOURCES)
    exact = [line.core(float(flops)) for line, flops in zip(lines, compute, strict=True) if line]
    core = np.array(exact) + rng.normal(0.0, spread, size=draws)
    return Odds(
        tokens=interval((candidate.tokens * speed).tolist()),
        effective_flops=interval(compute.tolist()),
        median_core=float(np.median(core)),
        core=interval(core.tolist()),
        p_target=float(np.mean(core >= target)),
        steps=tuple(steps),
    )


def _speeds(rng: np.random.Generator, card: Card, draws: int) -> np.ndarray:
    """Factors of the card's expected speed: median 1, the published extremes at 95 %."""
    low, high = (math.log(value) / TWO_SIDED_95 for value in card.speed_range)
    z = rng.standard_normal(draws)
    factors: np.ndarray = np.exp(np.where(z < 0, -z * low, z * high))
    return factors


def _log_normal(rng: np.random.Generator, low: float, high: float, draws: int) -> np.ndarray:
    sd = math.log(high / low) / (2 * TWO_SIDED_95)
    factors: np.ndarray = np.exp(rng.normal(math.log(low * high) / 2, sd, size=draws))
    return factors

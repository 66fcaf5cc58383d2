"""Scaling laws: loss as a function of size and tokens, the optimum of a budget, CORE of a budget.

The parametric law is Chinchilla's, L(N, D) = s (E + A / N^a + B / D^b), with one factor s a family
of runs (corpus, code). Beside the losses, it is held to the sizes that the sources found best at
their budgets: nearly all published runs lie close to the optimum, so their losses alone leave the
split between A and B open. The robust loss is Huber's, so that one odd run does not steer the fit;
intervals come from drawing the points anew (bootstrap).

References:
    Hoffmann et al. 2022, Training Compute-Optimal Large Language Models,
    https://arxiv.org/abs/2203.15556 (approaches 2 and 3)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.optimize import brentq, least_squares

from reference.errors import TrainerError
from reference.lab.published_runs import Point

LOSS_SPREAD = 0.005  # relative: other seeds, tokenizers and code of one family
OPTIMUM_SPREAD = 0.10  # relative: how sharply a sweep locates the best size
SAME_BUDGET = 0.05  # budgets closer than this, relatively, are one iso-FLOP group
CORE_SPREAD = 0.0062  # between seeds of one configuration: 20 runs of nanochat's pull request 807
CORE_PIVOT_FLOPS = 1.5e19  # where `CoreLaw.at_pivot` is read
T = TypeVar("T")
BOUNDS = ((0.0, -5.0, 0.1, -5.0, 0.1), (0.72, 20.0, 1.0, 25.0, 1.0))  # E, ln A, a, ln B, b


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = factors[family] * (E + A / N^alpha + B / D^beta), in bits per byte."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    factors: dict[str, float]

    def loss(self, parameters: float, tokens: float, family: str) -> float:
        return self.factors[family] * (
            self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta
        )

    def best_parameters(self, product: float) -> float:
        """The N with the lowest loss where N * D = `product`."""
        total = self.alpha + self.beta
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return float(scale * product ** (self.beta / total))

    def best_loss(self, product: float, family: str) -> float:
        """The loss at that N."""
        parameters = self.best_parameters(product)
        return self.loss(parameters, product / parameters, family)

    def equivalent_product(self, parameters: float, tokens: float) -> float:
        """The N * D at which an optimal shape reaches what (`parameters`, `tokens`) does."""
        family = next(iter(self.factors))
        wanted = self.loss(parameters, tokens, family)
        actual = math.log(parameters * tokens)
        if self.best_loss(math.exp(actual), family) >= wanted:
            return parameters * tokens
        found = brentq(
            lambda x: self.best_loss(math.exp(x), family) - wanted, actual - 60.0, actual
        )
        return math.exp(found)


def fit_loss(points: Sequence[Point]) -> LossLaw:
    """The parametric law of `points`; raises `TrainerError` for too few or too like ones."""
    usable = [point for point in points if point.val_bpb is not None]
    if len(usable) < 6 or len({round(math.log(p.parameters), 2) for p in usable}) < 3:
        raise TrainerError(
            "bad_input",
            f"{len(usable)} runs with bits per byte are too few for a scaling law",
            "Six of at least three sizes are needed; leave out --no-published.",
        )
    starts = (
        (0.3, 3.5, 0.25, 5.0, 0.3),
        (0.5, 5.0, 0.35, 6.0, 0.35),
        (0.1, 1.5, 0.15, 2.0, 0.15),
    )
    return min((_fit_from(usable, start) for start in starts), key=lambda pair: pair[0])[1]


def bootstrap(
    points: Sequence[Point], fit: Callable[[Sequence[Point]], T], *, repeats: int, seed: int = 0
) -> list[T]:
    """`fit` of `repeats` samples of the points, drawn with replacement within each family.

    A sample that cannot be fitted is drawn again, at most ten times as many in all.
    """
    rng = np.random.default_rng(seed)
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(point.family, []).append(point)
    fits: list[T] = []
    for _ in range(10 * repeats):
        if len(fits) == repeats:
            break
        drawn = [
            group[i]
            for group in families.values()
            for i in rng.integers(0, len(group), size=len(group))
        ]
        try:
            fits.append(fit(drawn))
        except TrainerError:
            continue
    return fits


def refit_from(law: LossLaw, points: Sequence[Point]) -> LossLaw:
    """The law of a bootstrap sample, searched from the law of all points."""
    if len({p.label for p in points if p.val_bpb is not None}) < 5:
        raise TrainerError("bad_input", "too few different runs in the sample")
    start = (law.E, math.log(law.A), law.alpha, math.log(law.B), law.beta)
    usable = [point for point in points if point.val_bpb is not None]
    return _fit_from(usable, start, law.factors)[1]


def _fit_from(
    points: Sequence[Point], start: Sequence[float], factors: dict[str, float] | None = None
) -> tuple[float, LossLaw]:
    families = sorted({point.family for point in points}, key=lambda name: name != "climbmix")
    index = np.array([families.index(point.family) for point in points])
    N = np.array([point.parameters for point in points])
    D = np.array([point.tokens for point in points])
    observed = np.log([point.val_bpb or math.nan for point in points])
    best = np.array([point.optimum for point in points])
    best_N, product = np.log(N[best]), np.log(N[best] * D[best])

    def residuals(x: np.ndarray) -> np.ndarray:
        E, log_A, a, log_B, b = x[:5]
        log_factors = np.concatenate(([0.0], x[5:]))
        loss = E + np.exp(log_A - a * np.log(N)) + np.exp(log_B - b * np.log(D))
        gaps = (np.log(loss) + log_factors[index] - observed) / LOSS_SPREAD
        optimum = (math.log(a) + log_A - math.log(b) - log_B + b * product) / (a + b)
        return np.concatenate((gaps, (optimum - best_N) / OPTIMUM_SPREAD))

    extra = [math.log((factors or {}).get(name, 1.0)) for name in families[1:]]
    low = np.array([*BOUNDS[0], *[-1.5] * len(extra)])
    high = np.array([*BOUNDS[1], *[1.5] * len(extra)])
    x0 = np.clip(np.array([*start, *extra]), low + 1e-6, high - 1e-6)
    done = least_squares(
        residuals,
        x0,
        bounds=(low, high),
        loss="huber",
        x_scale=np.maximum(np.abs(x0), 0.05),
        ftol=1e-6,
        xtol=1e-6,
    )
    E, log_A, a, log_B, b = (float(value) for value in done.x[:5])
    scale = dict(zip(families, np.exp(np.concatenate(([0.0], done.x[5:]))).tolist(), strict=True))
    return float(done.cost), LossLaw(E, math.exp(log_A), a, math.exp(log_B), b, scale)


@dataclass(frozen=True)
class OptimumLaw:
    """ln N* = intercept + exponent * ln C; `flops_per_pair` is C / (N D)."""

    intercept: float
    exponent: float
    flops_per_pair: float

    def parameters(self, flops: float) -> float:
        return math.exp(self.intercept + self.exponent * math.log(flops))

    def ratio(self, flops: float) -> float:
        """Tokens per parameter at the optimum."""
        N = self.parameters(flops)
        return flops / (self.flops_per_pair * N * N)


def fit_optimum(points: Sequence[Point]) -> OptimumLaw:
    """The iso-FLOP law of the points that are optima, or whose budgets have three sizes."""
    rows = [(p.flops, p.parameters, p.tokens) for p in points if p.optimum]
    rows += isoflop_optima(points)
    budgets = {round(math.log(row[0]), 1) for row in rows}
    if len(budgets) < 2:
        raise TrainerError(
            "bad_input",
            "an iso-FLOP law needs the best size at two budgets",
            "Train three sizes at each of two budgets, or leave out --no-published.",
        )
    C, N, D = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    line = _robust_line(np.log(C), np.log(N), OPTIMUM_SPREAD)
    return OptimumLaw(line[0], line[1], float(np.exp(np.mean(np.log(C / (N * D))))))


def isoflop_optima(points: Sequence[Point]) -> list[tuple[float, float, float]]:
    """(FLOPs, N*, D*) of every budget at which three or more sizes of one family were trained.

    A parabola through loss against ln N gives the best size; one that opens downward, or whose
    vertex lies outside what was tried, says nothing and is left out.
    """
    optima = []
    rest = sorted(
        (p for p in points if p.val_bpb is not None and not p.optimum), key=lambda p: p.flops
    )
    while rest:
        first = rest[0]
        group = [
            p
            for p in rest
            if p.family == first.family and p.flops <= first.flops * (1 + SAME_BUDGET)
        ]
        rest = [p for p in rest if p not in group]
        sizes = np.log([p.parameters for p in group])
        if len(set(np.round(sizes, 3))) < 3:
            continue
        curve, slope, _ = np.polyfit(sizes, [p.val_bpb or math.nan for p in group], 2)
        vertex = -slope / (2 * curve) if curve > 0 else math.inf
        if sizes.min() <= vertex <= sizes.max():
            C = float(np.mean([p.flops for p in group]))
            pair = float(np.mean([p.flops / (p.parameters * p.tokens) for p in group]))
            N = math.exp(vertex)
            optima.append((C, N, C / (pair * N)))
    return optima


@dataclass(frozen=True)
class CoreLaw:
    """CORE = at_pivot + per_decade * log10(C / 1.5e19), C the compute of an optimal shape."""

    at_pivot: float
    per_decade: float

    def core(self, flops: float) -> float:
        return self.at_pivot + self.per_decade * math.log10(flops / CORE_PIVOT_FLOPS)

    def flops(self, core: float) -> float:
        """The compute at which an optimal shape reaches `core`."""
        return float(CORE_PIVOT_FLOPS * 10 ** ((core - self.at_pivot) / self.per_decade))


def fit_core(points: Sequence[Point], law: LossLaw) -> CoreLaw:
    """The line of CORE over equivalent compute, runs of many seeds weighing more."""
    usable = [point for point in points if point.core is not None and point.core_line]
    if len({p.label for p in usable}) < 3:
        raise TrainerError("bad_input", "CORE needs three different runs")
    x = np.array([math.log10(equivalent_flops(p, law) / CORE_PIVOT_FLOPS) for p in usable])
    y = np.array([point.core for point in usable])
    runs = np.array([point.core_runs for point in usable])
    # Seeds average out; what differs between sources (code, tokenizer, evaluation) does not.
    spread = CORE_SPREAD * np.sqrt(1 / runs + 0.25)
    intercept, slope = _robust_line(x, y, spread)
    return CoreLaw(intercept, slope)


def equivalent_flops(point: Point, law: LossLaw) -> float:
    """The compute at which an optimal shape would have reached this point's loss."""
    product = point.parameters * point.tokens
    return point.flops * law.equivalent_product(point.parameters, point.tokens) / product


def _robust_line(x: np.ndarray, y: np.ndarray, spread: float | np.ndarray) -> tuple[float, float]:
    """Intercept and slope by Huber's loss in units of `spread`."""
    start = np.polyfit(x, y, 1)[::-1]
    done = least_squares(lambda c: (c[0] + c[1] * x - y) / spread, start, loss="huber")
    return float(done.x[0]), float(done.x[1])


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The central `level` share of `values`."""
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(values), (tail, 1 - tail))
    return Interval(float(low), float(high))

"""From a study's outcomes to what it says: verdicts, proxies, warnings, all as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from reference.lab.ablate import Progress
from reference.lab.baseline_curve import Rung, fit_curve, multiplier
from reference.lab.halving import Slot
from reference.lab.proxies import Proxy, rate_proxies, recommend
from reference.lab.statistics import (
    Gain,
    Multiplier,
    Verdict,
    gains,
    judge,
)
from reference.lab.study import BASELINE, Arm, Study
from reference.lab.trial import COMPLETE, DIVERGED, FAILED, STOPPED, Outcome

WEEK_S = 7 * 24 * 3600
# Where lower bits per byte did not mean a better model, and who found out.
MISLEADING = (
    (
        "tokenizer.*",
        "CORE moved by .010 to .018 with the tokenizer at equal bpb (nanochat efaf864)",
    ),
    ("data.*", "another corpus also shifts what the validation text rewards: compare CORE"),
    ("model.*ngram*", "a table of n-grams lowered bpb but not CORE (nanochat pull request 854)"),
    ("model.*bigram*", "a table of n-grams lowered bpb but not CORE (nanochat pull request 854)"),
    ("*.dtype", "8-bit and 16-bit products cost CORE more than bpb shows (nanochat LOG 02-02)"),
    ("*precision*", "8-bit and 16-bit products cost CORE more than bpb shows (nanochat LOG 02-02)"),
    ("*matmul*", "8-bit and 16-bit products cost CORE more than bpb shows (nanochat LOG 02-02)"),
)


@dataclass(frozen=True)
class Row:
    """One change in the ranking."""

    arm: str
    why: str
    expect: str | None
    verdict: Verdict
    speed: float | None  # tokens/s over the baseline's, at the same scale
    warnings: tuple[str, ...]

    @property
    def time_multiplier(self) -> float | None:
        """The compute multiplier with the change's own speed counted in."""
        times = self.verdict.multiplier
        return times.value * self.speed if times and self.speed else None


@dataclass(frozen=True)
class Findings:
    rows: tuple[Row, ...]
    proxies: tuple[Proxy, ...]
    recommended: Proxy | None
    proxy_reason: str
    slopes: Mapping[str, float]  # -d ln bpb / d ln C of the baseline's curve at each scale
    experiments_per_week: Mapping[str, float]
    trials: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "changes": [
                {
                    **asdict(row.verdict),
                    "gain": row.verdict.gain._asdict() if row.verdict.gain else None,
                    "multiplier": row.verdict.multiplier._asdict()
                    if row.verdict.multiplier
                    else None,
                    "time_multiplier": row.time_multiplier,
                    "speed": row.speed,
                    "why": row.why,
                    "expect": row.expect,
                    "warnings": list(row.warnings),
                }
                for row in self.rows
            ],
            "proxies": [asdict(proxy) for proxy in self.proxies],
            "recommended_proxy": self.recommended.name if self.recommended else None,
            "proxy_reason": self.proxy_reason,
            "slopes": dict(self.slopes),
            "experiments_per_week": dict(self.experiments_per_week),
            "trials": dict(self.trials),
        }


def find(study: Study, progress: Progress, flops: Mapping[str, float], jobs: int) -> Findings:
    """What the finished trials say.

    Args:
        flops: Of a baseline trial at each scale, by nanochat's count.
        jobs: Trials that ran at a time, for experiments per week.
    """
    outcomes = progress.outcomes
    names = [scale.name for scale in study.scales]
    rungs = baseline_rungs(study, outcomes, flops)
    curve = fit_curve(rungs) if any(math.isfinite(rung.mean) for rung in rungs) else None
    found: dict[str, tuple[str, Gain, Multiplier | None]] = {}
    broken: dict[str, tuple[str, str]] = {}
    for scale in names:
        losses = {
            (slot.arm, slot.seed): outcome.loss
            for slot, outcome in outcomes.items()
            if slot.scale == scale
        }
        for arm, gain in gains(losses, BASELINE).items():
            # A larger scale counts once it has as many seeds as it is to have, or no fewer.
            wanted = len(study.seeds_at(scale))
            if arm not in found or gain.seeds >= min(wanted, found[arm][1].seeds):
                found[arm] = (scale, gain, multiplier(gain, rungs, flops[scale]))
        for change in study.arms[1:]:
            reason = _breakage(change.name, scale, study.seeds_at(scale), outcomes)
            if reason:
                broken[change.name] = (scale, reason)
                found.pop(change.name, None)
    rows = [
        _row(next(a for a in study.arms if a.name == verdict.arm), verdict, outcomes)
        for verdict in judge(found, broken, alpha=study.alpha)
    ]
    proxies = rate_proxies(study, outcomes, flops)
    recommended, reason = recommend(proxies, study.reliability)
    return Findings(
        rows=tuple(rows),
        proxies=tuple(proxies),
        recommended=recommended,
        proxy_reason=reason,
        slopes={name: curve.slope(flops[name]) for name in names} if curve else {},
        experiments_per_week={
            name: jobs * WEEK_S / seconds
            for name in names
            if (seconds := _mean_wall(outcomes, name))
        },
        trials={
            status: sum(outcome.status == status for outcome in outcomes.values())
            for status in (COMPLETE, STOPPED, DIVERGED, FAILED)
        },
    )


def baseline_rungs(
    study: Study, outcomes: Mapping[Slot, Outcome], flops: Mapping[str, float]
) -> list[Rung]:
    """The baseline at each scale, smallest first; `mean` is NaN where no trial has finished."""
    rungs = []
    for scale in study.scales:
        values = [
            outcome.loss
            for slot, outcome in outcomes.items()
            if slot.arm == BASELINE and slot.scale == scale.name and math.isfinite(outcome.loss)
        ]
        mean = float(np.mean(values)) if values else math.nan
        error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
        rungs.append(Rung(flops[scale.name], mean, error))
    return rungs


def _breakage(
    arm: str, scale: str, seeds: Sequence[int], outcomes: Mapping[Slot, Outcome]
) -> str | None:
    """Why an arm counts as worse without a test: any seed diverged or was stopped by the rule."""
    mine = {seed: outcomes.get(Slot(arm, scale, seed)) for seed in seeds}
    bad = {
        seed: outcome
        for seed, outcome in mine.items()
        if outcome and outcome.status in (DIVERGED, STOPPED)
    }
    if not bad:
        return None
    first = next(iter(bad.values()))
    return f"{len(bad)} of {len(seeds)} seeds {first.status}: {first.reason}"


def _row(arm: Arm, verdict: Verdict, outcomes: Mapping[Slot, Outcome]) -> Row:
    def speed(name: str) -> float | None:
        values = [
            outcome.tokens_per_s
            for slot, outcome in outcomes.items()
            if slot.arm == name and slot.scale == verdict.scale and outcome.tokens_per_s
        ]
        return float(np.median(values)) if values else None

    mine, base = speed(arm.name), speed(BASELINE)
    paths = [*arm.paths, *(["data.folder"] if arm.data else [])]
    warnings = {
        text for path in paths for pattern, text in MISLEADING if fnmatchcase(path, pattern)
    }
    return Row(
        arm=arm.name,
        why=arm.why,
        expect=arm.expect,
        verdict=verdict,
        speed=mine / base if mine and base else None,
        warnings=tuple(sorted(warnings)),
    )


def _mean_wall(outcomes: Mapping[Slot, Outcome], scale: str) -> float | None:
    walls = [
        outcome.wall_s
        for slot, outcome in outcomes.items()
        if slot.scale == scale and outcome.status == COMPLETE
    ]
    return float(np.mean(walls)) if walls else None

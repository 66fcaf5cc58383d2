"""Whether a run, finished or an hour into its day, is where its registration said it would be.

Nothing here stops a run. Speed is compared from the first minutes on; the loss of an unfinished run
is compared with the law of finished ones, which a run at its full learning rate lies above by a
few percent, so that this comparison is weak until the warm-down has brought the rate down.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from reference.lab.registration import SPEED_ERROR
from reference.lab.run_facts import Facts, eval_points
from reference.lab.scaling import CORE_SPREAD, LossLaw

SKIPPED_STEPS = 10
SMALLEST_SPEED_SD = SPEED_ERROR / 1.96
# ln(val_bpb / law) of a run on its course: 0 at its end, where the law's own sources differ by
# 0.5 % and its interval adds as much. At the full rate it is assumed to be 3 %, give or take 2.
END_SD = 0.008
DEFINITION_SD = 0.02  # -1.7 and +3.4 % were seen between the two definitions, on small models
FULL_RATE_GAP, FULL_RATE_SD = 0.03, 0.02
UNLIKELY = 0.05


@dataclass(frozen=True)
class Compared:
    """One figure of the run beside its prediction.

    Args:
        odds: How often a run that is on its course lies at least as far off; None: not comparable.
    """

    figure: str
    measured: float
    predicted: float
    odds: float | None
    note: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(facts: Facts, registration: Mapping[str, Any]) -> list[Compared]:
    """The run's figures against a registration, as far as the run has come."""
    predicted = {row["figure"]: row for row in registration["expected"]}
    found: list[Compared] = []
    speed = measured_speed(facts.steps)
    if speed is not None:
        expected = predicted["tokens_per_s"]["predicted"]
        z = math.log(speed / expected) / SMALLEST_SPEED_SD
        tokens = registration["tokens"] * speed / expected
        note = f"at this speed the run will train on {tokens / 1e9:.2f} B tokens"
        found.append(Compared("tokens_per_s", speed, expected, two_sided(z), note))
    # The law is of nanochat's bits per byte, which a run measures at its end.
    by_nanochat = replace(facts, evals=facts.run.evals("val_bpb_nanochat"))
    points = [row for row in eval_points(by_nanochat) if row["tokens"] > 0]
    own = [row for row in eval_points(facts) if row["tokens"] > 0]
    if points:
        found.append(_loss(points[-1], facts, registration, "by nanochat's definition"))
    elif own:
        note = "by this trainer's definition, which nanochat's differs from by a few percent"
        found.append(_loss(own[-1], facts, registration, note, DEFINITION_SD))
    core = (facts.run.result.get("quality") or {}).get("core") or {}
    whole = core and not core.get("partial") and core.get("bundle") == "core"
    if whole and "core" in predicted:
        row = predicted["core"]
        low, high = row["interval"]
        sd = math.hypot((high - low) / 3.92, CORE_SPREAD)
        z = (core["value"] - row["predicted"]) / sd
        found.append(Compared("core", core["value"], row["predicted"], two_sided(z), ""))
    return found


def _loss(
    row: Mapping[str, Any],
    facts: Facts,
    registration: Mapping[str, Any],
    definition: str,
    more_sd: float = 0.0,
) -> Compared:
    """The last evaluation against the law at the tokens that were trained until then."""
    law = registration["law"]
    constants = {name: law[name] for name in ("E", "A", "alpha", "B", "beta", "factors")}
    expected = LossLaw(**constants).loss(registration["parameters"], row["tokens"], law["family"])
    before = [step for step in facts.steps if step["step"] < row["step"]]
    rate = float(before[-1].get("lr", 1.0)) if before else 1.0
    gap = FULL_RATE_GAP * rate
    sd = math.hypot(END_SD + (FULL_RATE_SD - END_SD) * rate, more_sd)
    z = (math.log(row["value"] / expected) - gap) / sd
    note = f"at {row['tokens'] / 1e9:.2f} B tokens and {rate:.0%} of the peak rate, {definition}"
    return Compared("val_bpb", row["value"], expected * math.exp(gap), two_sided(z), note)


def measured_speed(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens a second: the median over steps, the first ones left out; None for too few steps."""
    timed = [
        step["step_tokens"] / step["dt_s"]
        for step in steps[SKIPPED_STEPS:]
        if step.get("dt_s") and step.get("step_tokens")
    ]
    return statistics.median(timed) if timed else None


def two_sided(z: float) -> float:
    """The probability of a normal value at least as far from 0 as `z`."""
    return math.erfc(abs(z) / math.sqrt(2))


def verdict(row: Compared) -> str:
    """The comparison in words."""
    if row.odds is None:
        return "not comparable"
    if row.odds >= UNLIKELY:
        return f"on course ({row.odds:.0%} of runs on course lie as far off)"
    side = "above" if row.measured > row.predicted else "below"
    return f"OFF COURSE: {side} what {row.odds:.1%} of runs on course would show"

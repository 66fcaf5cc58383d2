"""V13 and V14: the work that was done fits the time and the clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from kit.events import Event, Model, Step
from kit.hardware.gpu_class import GpuKind, kind
from kit.tracks import is_ranked
from kit.verify.checks.log import attempts
from kit.verify.evidence import Evidence, Irrelevant, safe_path
from kit.verify.finding import Check, Finding, conclude, fail, ok, warn
from kit.verify.thresholds import (
    BURST_S,
    CPU_PEAK_SLACK,
    DISTINCT_INTERVALS,
    EIGHT_BIT_FACTOR,
    MEASURED_PEAK_SLACK,
    MIN_STEPS_FOR_JITTER,
    ROOF_MIN_STEPS,
    SPEC_PEAK_SLACK,
    STEP_TIME_SHARE,
    STEP_TIME_SLACK_S,
)
from kit.verify.weights import BrokenWeights, read_weights

# How far the trainer's own count of FLOPs may be from the plain one: gates, padding, causality.
_FLOPS_TOLERANCE = 0.06
_VOCABULARY_PADDING = 128  # rows that a token table may have beyond the vocabulary


def roof(evidence: Evidence) -> Iterator[Finding]:
    """The FLOPs fit into the time at the hardware's peak."""
    steps = evidence.log.steps("pretrain")
    per_token = evidence.result.training.flops_per_token
    if len(steps) < 2 or not per_token:
        raise Irrelevant("the trainer reported no steps or no FLOPs")
    counted = flops_per_token(evidence, [1.0])
    if counted is not None:
        if abs(per_token - counted[0]) > _FLOPS_TOLERANCE * counted[0]:
            yield fail(
                "FLOPs per token are not those of the model",
                "training.flops_per_token",
                expected=f"{counted[0]:.4g}",
                found=f"{per_token:.4g}",
            )
        per_token = max(per_token, counted[0])
        if evidence.recipe.facts.varies:
            yield from _claimed_work(evidence)
    least = _flops_of_published_weights(evidence)
    if least is not None and per_token < (1 - _FLOPS_TOLERANCE) * least:
        say = fail if evidence.reference_trainer else warn
        yield say(
            "fewer FLOPs per token than a pass over the published matrices takes",
            "training.flops_per_token",
            expected=f"at least {least:.4g}",
            found=f"{per_token:.4g}",
        )
        per_token = least
    # Each start of the stage by itself, or downtime would dilute what was claimed.
    rate = work_rate(evidence, per_token)
    if rate is None:
        raise Irrelevant("no start of the stage made enough steps")
    peak, what = peak_flops(evidence)
    if peak is None:
        if not is_ranked(evidence.track):
            raise Irrelevant(f"no peak to compare with: {what}")
        yield fail(f"no peak to compare with: {what}", "hardware")
        return
    if rate > peak:
        yield fail(
            "more work than the hardware can do in the time",
            "training",
            expected=f"at most {peak / 1e12:,.3f} TFLOP/s ({what})",
            found=f"{rate / 1e12:,.3f} TFLOP/s",
        )
        return
    yield ok(f"{rate / 1e12:,.3f} of {peak / 1e12:,.3f} TFLOP/s ({what})")


def work_rate(evidence: Evidence, per_token: float) -> float | None:
    """FLOP/s of the fastest start of the pretraining; None where none made enough steps.

    Args:
        per_token: FLOPs of a token, where every step's tokens cost the same. Where the recipe's
            model grows, they are counted step by step: small models make more tokens a second.
    """
    varies = evidence.reference_trainer and evidence.recipe.facts.varies
    rates = []
    for run in attempts(evidence.log.of("pretrain", Step)):
        at_s = [step.t_ns / 1e9 for step in run]
        if not varies:
            tokens = [float(step.data.tokens) for step in run]
            rate, cost = rate_of(at_s, tokens, evidence.reference_trainer), per_token
        else:
            rate, cost = rate_of(at_s, work_of(evidence, run), True), 1.0
        if rate is not None:
            rates.append(rate * cost)
    return max(rates) if rates else None


def work_of(evidence: Evidence, steps: list[Event[Step]]) -> list[float]:
    """FLOPs done by the end of each of these steps, by the trainer's count for that time."""
    shares = [1.0 if step.data.progress is None else step.data.progress for step in steps]
    costs = flops_per_token(evidence, shares)
    assert costs is not None
    total, tokens, found = 0.0, 0, []
    for step, cost in zip((step.data for step in steps), costs, strict=True):
        total += (step.tokens - tokens) * cost
        tokens = step.tokens
        found.append(total)
    return found


def _claimed_work(evidence: Evidence) -> Iterator[Finding]:
    """The trainer's own sum over steps is that of the models that the recipe names."""
    steps = evidence.log.steps("pretrain")
    counted = work_of(evidence, steps)[-1]
    claimed = steps[-1].data.flops
    if claimed is None or abs(claimed - counted) > _FLOPS_TOLERANCE * counted:
        yield fail(
            "the run's FLOPs are not those of the models it trained",
            f"pretrain step {steps[-1].data.step}",
            expected=f"{counted:.4g}",
            found=claimed,
        )


def rate_of(at_s: list[float], done: list[float], each_waited_for: bool) -> float | None:
    """How much was done in a second in one start of the stage, from its first step to its last.

    Args:
        at_s: When each step was reported.
        done: What was done by then, in tokens or FLOPs.
        each_waited_for: The trainer reports a step when the device has done it. Then the median
            step counts, which no sleep, evaluation or invented pause makes slower; other trainers
            may report in bursts, and for them only the whole counts.

    Returns:
        None for fewer than five steps or no time at all: reports that came in one burst.
    """
    elapsed_s = at_s[-1] - at_s[0]
    if len(at_s) < ROOF_MIN_STEPS or elapsed_s <= 0:
        return None
    mean = (done[-1] - done[0]) / elapsed_s
    if not each_waited_for:
        return float(mean)
    pairs = [
        (later - earlier, end_s - begin_s)
        for (earlier, later), (begin_s, end_s) in zip(pairwise(done), pairwise(at_s), strict=True)
    ]
    if statistics.median(seconds for _, seconds in pairs) <= BURST_S:
        return float(mean)
    # By step, as batches may grow during a run.
    return float(max(mean, statistics.median(t / s if s > 0 else math.inf for t, s in pairs)))


def flops_per_token(evidence: Evidence, shares: list[float]) -> list[float] | None:
    """Training FLOPs of a token at each elapsed share of the run, by the recipe's trainer.

    Returns:
        None if the trainer is not known here or counts none.
    """
    recipe = evidence.recipe
    if recipe.trainer is None or evidence.course is None or not evidence.log.of("pretrain", Model):
        return None
    return recipe.trainer.flops_per_token(recipe.document, shares, evidence.vocabulary)


def _flops_of_published_weights(evidence: Evidence) -> float | None:
    """Least training FLOPs of a token by the shapes of the checkpoint; None where it is absent."""
    vocabulary, artifact = evidence.vocabulary, evidence.log.artifacts.get("pretrain")
    if artifact is None or vocabulary is None:
        return None
    relative = f"{artifact.folder}/model.safetensors"
    if not safe_path(relative) or not evidence.inside(relative):
        return None  # V21 says so
    path = evidence.folder / relative
    if not path.is_file():
        return None
    try:
        return matrix_flops(read_weights(path).shapes.values(), vocabulary)
    except BrokenWeights:
        return None  # V21 says so


def matrix_flops(shapes: Iterable[tuple[int, ...]], vocab_size: int) -> float:
    """Training FLOPs of a token for a pass over every matrix, counted from shapes alone.

    Six for each entry of a matrix. A matrix with a row for each token of the vocabulary is a table
    that is read by index; one of them is multiplied as well, as the head.
    """
    matrices = [shape for shape in shapes if len(shape) == 2]
    padded = range(vocab_size, vocab_size + _VOCABULARY_PADDING)
    tables = [rows * columns for rows, columns in matrices if rows in padded]
    others = sum(rows * columns for rows, columns in matrices if rows not in padded)
    return float(6 * (others + max(tables, default=0)))


def known_gpu(evidence: Evidence) -> GpuKind | None:
    """The kind of card that the fingerprint names, where the kit knows it."""
    before = evidence.result.hardware.before or {}
    return kind((before.get("class") or {}).get("name", ""))


def peak_flops(evidence: Evidence) -> tuple[float | None, str]:
    """The most FLOP/s this machine can do, and why."""
    measured = [
        part["probes"]
        for part in (evidence.result.hardware.before, evidence.result.hardware.after)
        if part is not None
    ]
    if evidence.uses_gpu:
        eight_bit = _eight_bit_gain(evidence, measured)
        rates = [probe["gpu"]["bf16_tflops"] for probe in measured if probe["gpu"]]
        rates = [rate for rate in rates if rate]
        known = known_gpu(evidence)
        peaks = []
        if rates:
            peaks.append((max(rates) * MEASURED_PEAK_SLACK, "measured matmul"))
        if known:
            peaks.append((known.spec_bf16_tflops * SPEC_PEAK_SLACK, f"{known.name} specification"))
        if not peaks:
            return None, "the GPU was not measured and its class is not known"
        tflops, what = min(peaks)
        return tflops * eight_bit * 1e12, what + (", 8-bit" if eight_bit > 1 else "")
    rates = [probe["cpu"]["matmul_gflops"] for probe in measured if probe["cpu"]]
    rates = [rate for rate in rates if rate]
    if not rates:
        return None, "the CPU was not measured"
    return max(rates) * CPU_PEAK_SLACK * 1e9, f"{CPU_PEAK_SLACK:g} times the measured matmul"


def _eight_bit_gain(evidence: Evidence, measured: list[dict[str, Any]]) -> float:
    """How far 8-bit products lift the roof: by the share of the work that can take them.

    Another trainer's share is not known; a word in its recipe lifts the roof only as far as the
    card was measured to be faster in 8 bits.
    """
    if not evidence.reference_trainer:
        text = str(evidence.recipe.document.get("trainer")).lower()
        gains = [
            max(probe["gpu"].get(name) or 0 for name in ("fp8_tflops", "int8_tops"))
            / probe["gpu"]["bf16_tflops"]
            for probe in measured
            if probe["gpu"] and probe["gpu"].get("bf16_tflops")
        ]
        if not gains or not any(word in text for word in ("fp8", "int8", "float8")):
            return 1.0
        return float(min(EIGHT_BIT_FACTOR, max(1.0, *gains)))
    # Products with 8-bit factors at twice the rate; the other work stays in 16 bits.
    vocabulary = evidence.vocabulary
    share = evidence.course.eight_bit_share(vocabulary) if evidence.course and vocabulary else 0.0
    return 1 / (1 - share / 2)


def pace(evidence: Evidence) -> Iterator[Finding]:
    """The trainer's step times fit the supervisor's clock, and vary as real ones do."""
    judged = 0
    for stage in ("pretrain", "sft"):
        steps = evidence.log.of(stage, Step)
        judged += len(steps)
        for run in attempts(steps):
            yield from _pace_of(run, stage)
    if not judged:
        raise Irrelevant("no steps were reported")
    yield conclude(f"step times of {judged:,} steps fit the clock", unless="skip")


def _pace_of(steps: list[Event[Step]], stage: str) -> Iterator[Finding]:
    durations = [event.data.dt_s for event in steps]
    claimed_s = math.fsum(value for value in durations[1:] if value is not None)
    elapsed_s = (steps[-1].t_ns - steps[0].t_ns) / 1e9
    allowed_s = elapsed_s * (1 + STEP_TIME_SHARE) + STEP_TIME_SLACK_S
    if claimed_s > allowed_s:
        yield fail(
            f"{stage} steps claim more time than passed",
            "dt_s",
            expected=f"at most {allowed_s:,.2f} s",
            found=f"{claimed_s:,.2f} s",
        )
    if any(value is not None and value < 0 for value in durations):
        yield fail(f"{stage} has a step of negative duration", "dt_s")
    if len(steps) < MIN_STEPS_FOR_JITTER:
        return
    # Microseconds: no scheduler hits the same one again and again.
    intervals = [(b.t_ns - a.t_ns) // 1000 for a, b in pairwise(steps)]
    # Bursts (a trainer that reports in batches) repeat only the shortest intervals.
    evenly = len(set(intervals)) < DISTINCT_INTERVALS * len(intervals)
    if evenly and sorted(intervals)[len(intervals) // 2] > 1000:
        yield fail(
            f"{stage} steps are spaced more evenly than a real machine's",
            "events.jsonl",
            expected=f"at least {DISTINCT_INTERVALS:.0%} different intervals",
            found=f"{len(set(intervals))} different in {len(intervals)}",
        )
    known = [value for value in durations if value is not None and value > 0.001]
    if len(known) >= MIN_STEPS_FOR_JITTER and len(set(known)) < 0.1 * len(known):
        say = fail if len(set(known)) == 1 else warn
        yield say(
            f"{stage} step times repeat to the microsecond",
            "dt_s",
            expected="natural jitter",
            found=f"{len(set(known))} different in {len(known)}",
        )


CHECKS = (
    Check(
        "V13",
        "Roof",
        "Impossible times: more FLOPs than the card can do, typed-in model costs, a second GPU.",
        "training, hardware.*.probes, the model event's configuration",
        roof,
    ),
    Check(
        "V14",
        "Pace",
        "Synthetic logs, and trainers that lie about their step times.",
        "dt_s and t_ns of step events",
        pace,
    ),
)

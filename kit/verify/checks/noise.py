"""V30: losses and answers are distributed as those of a model that learns from text.

Each band states how often it refuses an honest run. Nothing here is an exact law: a forger who has
read it can draw from it. What it takes is invention that has to fit everything else as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from itertools import pairwise

from kit.events import Eval, Event, Model, Note, Step
from kit.tracks import is_ranked
from kit.verify.evidence import Absent, Evidence, Irrelevant, Refused
from kit.verify.finding import Check, Finding, conclude, fail, warn
from kit.verify.thresholds import (
    BYTES_PER_TOKEN,
    BYTES_PER_TOKEN_SHARE,
    CORE_CEILING,
    LEARNED_NATS,
    LINKS_APART,
    LOSS_FLOOR,
    LOSS_NOISE,
    NOISE_MIN_STEPS,
    ORDER_MIN_ITEMS,
    ORDER_SIGMAS,
)

_TAIL = 0.9  # of the steps; what follows is the end of the curve
_SKIPPED = 0.2  # of the steps: at the start the curve itself bends


def noise(evidence: Evidence) -> Iterator[Finding]:
    """Losses fall and scatter as text does, fit the bits per byte; answers have no order."""
    steps = evidence.log.steps("pretrain")
    expected = evidence.expected
    if not steps or not expected.reference:
        raise Irrelevant("only the reference trainer's losses have a known distribution")
    for part in (_scatter, _learning, _units, _answers):
        yield from part(evidence, steps)
    found = scatter(steps)
    said = "too few steps for their scatter" if found is None else f"loss noise {found:.2f}"
    yield conclude(f"{said}, in units of loss / sqrt(batch)")


def scatter(steps: list[Event[Step]]) -> float | None:
    """Standard deviation of a loss around its neighbours, times sqrt(tokens) over the loss.

    Measured 1.4 to 2.3 for made and for real text at batches of 2,048 tokens. None where there are
    too few steps.
    """
    steps = steps[int(_SKIPPED * len(steps)) :]
    if len(steps) < NOISE_MIN_STEPS:
        return None
    residuals = []
    for before, at, after in zip(steps, steps[1:], steps[2:], strict=False):
        around = (before.data.loss + after.data.loss) / 2
        tokens = float(at.data.step_tokens or 0)
        if around > 0 and tokens > 0:
            residuals.append((at.data.loss - around) / around * math.sqrt(tokens))
    if len(residuals) < NOISE_MIN_STEPS - 2:
        return None
    # A few batches of another kind, or a model that grows, move a mean of squares, not the median.
    middle = statistics.median(abs(value) for value in residuals)
    return middle / 0.6745 / math.sqrt(1.5)


def _scatter(evidence: Evidence, steps: list[Event[Step]]) -> Iterator[Finding]:
    found = scatter(steps)
    low, high = LOSS_NOISE
    if found is not None and not low <= found <= high:
        yield fail(
            "losses scatter otherwise than batches of text do",
            "pretrain: loss",
            expected=f"{low} to {high} times loss / sqrt(tokens of a step)",
            found=f"{found:.3f}",
        )
    losses = [event.data.loss for event in steps]
    repeated = max((_streak(losses)), default=0)
    if repeated > 2:
        yield fail(f"{repeated + 1} steps in a row have one and the same loss", "pretrain: loss")


def _streak(losses: list[float]) -> list[int]:
    """Lengths of the stretches over which the loss does not change."""
    lengths, current = [0], 0
    for before, after in pairwise(losses):
        current = current + 1 if before == after else 0
        lengths.append(current)
    return lengths


def _learning(evidence: Evidence, steps: list[Event[Step]]) -> Iterator[Finding]:
    """The loss ends below its start, by more than scatter, and above what text allows."""
    tail = [event.data.loss for event in steps[int(_TAIL * len(steps)) :]]
    last, first = statistics.fmean(tail), steps[0].data.loss
    if evidence.log.stages["pretrain"].complete and len(steps) >= NOISE_MIN_STEPS:
        if first - last < LEARNED_NATS:
            yield fail(
                "the loss did not fall",
                "pretrain: loss",
                expected=f"below {first - LEARNED_NATS:.3f}",
                found=f"{last:.3f}",
            )
        body = [event.data.loss for event in steps[int(_SKIPPED * len(steps)) :]]
        third = max(1, len(body) // 3)
        begun, ended = statistics.fmean(body[:third]), statistics.fmean(body[-third:])
        if not evidence.recipe.facts.grows and ended > begun * 1.1:
            yield fail(
                "the loss rose over most of the run",
                "pretrain: loss",
                expected=f"below {begun * 1.1:.3f}",
                found=f"{ended:.3f}",
            )
    lowest = min(event.data.loss for event in steps)
    if lowest < LOSS_FLOOR:
        yield fail(
            "a loss that no text has",
            "pretrain: loss",
            expected=f"at least {LOSS_FLOOR}",
            found=lowest,
        )


def _units(evidence: Evidence, steps: list[Event[Step]]) -> Iterator[Finding]:
    """Nats a token and bits a byte measure one thing: bytes a token link them, twice."""
    evals = [e.data for e in evidence.log.of("pretrain", Eval) if e.data.name == "val_bpb"]
    values = [data for data in evals if isinstance(data.value, int | float) and data.value > 0]
    models = evidence.log.of("pretrain", Model)
    size = models[-1].data.vocab_size if models else None
    if len(values) < 2 or size is None or size < 2:
        return
    spoken = [
        note.data.more["bytes_per_token"]
        for note in evidence.log.of("tokenizer", Note)
        if isinstance(note.data.more.get("bytes_per_token"), int | float)
    ]
    low, high = BYTES_PER_TOKEN
    if spoken:
        low = spoken[-1] * (1 - BYTES_PER_TOKEN_SHARE)
        high = spoken[-1] * (1 + BYTES_PER_TOKEN_SHARE)
    links = []
    if values[0].step == 0:
        links.append(("the fresh model", math.log2(size) / values[0].value))
    mixed = evidence.recipe.facts.mixed
    tail = [event.data.loss for event in steps[int(_TAIL * len(steps)) :]]
    if evidence.log.stages["pretrain"].complete and not mixed and len(tail) >= 3:
        nats = statistics.fmean(tail)
        links.append(("the trained model", nats / math.log(2) / values[-1].value))
    for whose, bytes_per_token in links:
        if not low <= bytes_per_token <= high:
            yield fail(
                f"loss and bits per byte of {whose} do not measure the same text",
                "pretrain: val_bpb",
                expected=f"{low:.2f} to {high:.2f} bytes a token",
                found=f"{bytes_per_token:.2f}",
            )
    apart = links[0][1] / links[1][1] if len(links) == 2 and links[1][1] > 0 else 1.0
    if not 1 / LINKS_APART <= apart <= LINKS_APART:
        yield fail(
            "the bytes per token before and after training do not match",
            "pretrain: loss and val_bpb",
            expected=f"within a factor of {LINKS_APART}",
            found=f"{links[0][1]:.2f} and {links[1][1]:.2f} bytes a token",
        )
    if values[-1].value >= values[0].value and evidence.log.stages["pretrain"].complete:
        yield fail(
            "the model predicts no better after its training than before",
            "pretrain: val_bpb",
            expected=f"below {values[0].value}",
            found=values[-1].value,
        )


def _answers(evidence: Evidence, steps: list[Event[Step]]) -> Iterator[Finding]:
    """Right and wrong answers come in no order, and not all of them right."""
    try:
        scored = evidence.evaluation_file("core")
    except (Absent, Refused):
        return
    if scored is None or scored["bundle"]["kind"] != "core":
        return
    for task in scored["tasks"]:
        outcomes = task["outcomes"]
        right = outcomes.count("1")
        wrong = len(outcomes) - right
        if min(right, wrong) < ORDER_MIN_ITEMS:
            continue
        runs = 1 + sum(a != b for a, b in pairwise(outcomes))
        mean = 1 + 2 * right * wrong / len(outcomes)
        spread = math.sqrt((mean - 1) * (mean - 2) / (len(outcomes) - 1))
        # Questions about one passage stand together, so that answers may cluster by far.
        if (runs - mean) / spread > ORDER_SIGMAS or runs < 0.25 * mean:
            yield fail(
                "right and wrong answers are in an order",
                f"eval/core.json: {task['label']}",
                expected=f"about {mean:,.0f} changes between right and wrong",
                found=runs,
            )
    core = evidence.result.quality.core
    if core and core.bundle == "core" and not core.partial and core.value > CORE_CEILING:
        say = fail if is_ranked(evidence.track) else warn
        yield say(
            "a score that no model trained for a day on one such card comes near",
            "quality.core.value",
            expected=f"at most {CORE_CEILING}",
            found=core.value,
        )


CHECKS = (
    Check(
        "V30",
        "Noise",
        "Invented losses: noiseless, rising, below what text allows, unlike their bits per byte; "
        "invented answers: in order, or all right.",
        "losses, val_bpb and outcomes, as distributions",
        noise,
    ),
)

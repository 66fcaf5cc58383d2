"""V17 and V18: the model learned here, from nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kit.events import Model, Step
from kit.tracks import RANKED, is_ranked
from kit.trust.digest import DIGEST_PATTERN
from kit.verify.checks.replay import initial_weights_problem
from kit.verify.evidence import Evidence, Irrelevant
from kit.verify.finding import Check, Finding, conclude, fail, ok, warn
from kit.verify.thresholds import FIRST_LOSS_NATS


def curve(evidence: Evidence) -> Iterator[Finding]:
    """The loss starts where a model that knows nothing starts, and ends where one can."""
    steps = evidence.log.steps("pretrain")
    if not steps:
        raise Irrelevant("the run has no pretraining steps")
    if not evidence.reference_trainer:
        raise Irrelevant("only the reference trainer is known to start at ln(vocabulary)")
    if any(event.data.loss < 0 for event in steps):
        yield fail("a loss below zero", "events.jsonl")
    first = steps[0].data
    vocabulary = _vocabulary(evidence)
    expected = math.log(vocabulary)
    # A resume may do the first step again; each of them counts.
    for event in evidence.log.of("pretrain", Step):
        loss = event.data.loss
        if event.data.step == 0 and abs(loss - expected) > FIRST_LOSS_NATS:
            yield fail(
                "the first loss is not that of a fresh model",
                f"events.jsonl, seq {event.seq}",
                expected=f"{expected:.2f} (ln {vocabulary}), within {FIRST_LOSS_NATS}",
                found=loss,
            )
    bpb = evidence.result.quality.val_bpb
    track = RANKED.get(evidence.track)
    if track and bpb and bpb.last < track.best_bpb:
        say = fail if evidence.recipe.division == "closed" else warn
        yield say(
            "better than anything this card is known to reach in a day",
            "quality.val_bpb.last",
            expected=f"at least {track.best_bpb}",
            found=bpb.last,
        )
    last = steps[-1].data.loss
    yield conclude(
        f"loss {first.loss:.3f} (ln vocabulary {expected:.3f}) to {last:.3f}", unless="warn"
    )


def _vocabulary(evidence: Evidence) -> int:
    models = evidence.log.of("pretrain", Model)
    stated = models[-1].data.vocab_size if models else None
    asked = evidence.recipe.section("tokenizer")["vocab_size"]
    # A small corpus may give fewer tokens than asked for, never more.
    if stated is not None and 256 <= stated <= asked:
        return stated
    return int(asked)


def start(evidence: Evidence) -> Iterator[Finding]:
    """Every start of the training began with the same weights: those of its seed."""
    models = evidence.log.of("pretrain", Model)
    if not models or not evidence.reference_trainer:
        raise Irrelevant("only the reference trainer reports the weights it begins with")
    place = "the model event's initial_weights"
    stated = [event.data.initial_weights for event in models]
    if all(value is None for value in stated):
        if is_ranked(evidence.track):
            yield fail("the trainer did not say which weights it began with", place)
            return
        raise Irrelevant("made before the trainer reported the weights it begins with")
    first = stated[0]
    if first is None or not DIGEST_PATTERN.fullmatch(first):
        yield fail("no digest", place, found=first)
        return
    if any(value != first for value in stated):
        yield fail("another start after a resume", place, expected=first, found=stated[-1])
        return
    if not (evidence.options.re_evaluate or evidence.options.replay):
        yield ok(f"{first[7:19]}… at each start; --re-evaluate computes it from the seed")
        return
    problem = initial_weights_problem(evidence, first)
    yield problem or ok(f"{first[7:19]}…, as the seed gives it")


CHECKS = (
    Check(
        "V17",
        "Curve",
        "A pre-trained start, and scores too good for the card.",
        "first step event, val_bpb",
        curve,
    ),
    Check(
        "V18",
        "Start",
        "A warm start behind an honest first loss.",
        "the model event's initial_weights; computed again with --re-evaluate",
        start,
    ),
)

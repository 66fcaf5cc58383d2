"""V28: pretraining and finetuning are the ones that the recipe describes, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from kit.events import Eval, Event, Memory, Model, Note, Step
from kit.trainer import Course
from kit.verify.evidence import Evidence, Irrelevant
from kit.verify.expected import Expected, consecutive, least_memory_bytes
from kit.verify.finding import Check, Finding, conclude, fail
from kit.verify.thresholds import (
    DEVICE_MEMORY_SLACK,
    LEARNING_RATE_ROUNDING,
    LOST_STEPS,
    PROGRESS_SLACK_S,
    VOCABULARY_LEAST,
)

_TYPED = ("progress", "step_tokens", "dt_s")  # fields of a step event with a type
_NOT_COUNTED = 0.01  # of the parameters: what a later trainer may add in gates and scalars


def training(evidence: Evidence) -> Iterator[Finding]:
    """Model, batch, schedule, progress, evaluations and memory are the recipe's at every step."""
    expected = evidence.expected
    began = [name for name in ("pretrain", "sft") if name in evidence.log.stages]
    if not began:
        raise Irrelevant("the run trained nothing")
    for part in (_model, _steps, _horizon, _evaluations, _memory):
        yield from part(evidence, expected)
    steps = sum(len(evidence.log.steps(name)) for name in began)
    whose = "the recipe" if expected.course else "what any trainer reports"
    yield conclude(f"{steps:,} steps held to {whose}")


def _complete(evidence: Evidence, stage: str) -> bool:
    return stage in evidence.log.stages and evidence.log.stages[stage].complete


def _model(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """The model event: one for each attempt that trained, and of the recipe's model."""
    models, steps = evidence.log.of("pretrain", Model), evidence.log.of("pretrain", Step)
    if steps and (not models or models[0].seq > steps[0].seq):
        if expected.reference or expected.ranked:
            yield fail("steps were made before the model was named", "pretrain: model event")
        return
    if expected.course is None:
        return
    for event in models:
        yield from _one_model(evidence, expected, expected.course, event)
    facts = {(m.data.parameters, m.data.flops_per_token, m.data.vocab_size) for m in models}
    if len(facts) > 1:
        yield fail("another model after a resume", "pretrain: model events", found=str(facts))


def _one_model(
    evidence: Evidence, expected: Expected, course: Course, event: Event[Model]
) -> Iterator[Finding]:
    place, data, config = f"events.jsonl, seq {event.seq}", event.data, event.data.config or {}
    if expected.reference and not (config and data.vocab_size and data.device):
        yield fail("the model event lacks configuration, vocabulary or device", place)
        return
    if not data.flops_per_token:
        yield fail("the model event does not say what a token costs", place)
        return
    for name, value in course.model.items():
        if name not in config:
            if expected.ranked or name in course.model_fields:
                yield fail(f"the model event does not say {name}", place, expected=value)
        elif config[name] != value:
            yield fail(
                f"the model's {name} is not the recipe's", place, expected=value, found=config[name]
            )
    if data.vocab_size is not None:
        yield from _vocabulary(evidence, config, data.vocab_size, place)
    counted = course.parameters(data.vocab_size or 0)
    if counted is not None and abs(data.parameters - counted) > _NOT_COUNTED * counted:
        yield fail(
            "the parameters are not those of the model's sizes",
            f"{place}: parameters",
            expected=counted,
            found=data.parameters,
        )
    if data.device is not None:
        yield from _device(evidence, expected, data.device, f"{place}: device")


def _vocabulary(
    evidence: Evidence, config: Mapping[str, Any], size: int, place: str
) -> Iterator[Finding]:
    """The vocabulary is the configuration's, and one that the recipe allows."""
    if config.get("vocab_size", None if evidence.reference_trainer else size) != size:
        yield fail(
            "the model's vocab_size is not the event's",
            place,
            expected=size,
            found=config.get("vocab_size"),
        )
    asked = evidence.recipe.section("tokenizer").get("vocab_size")
    if asked is None:
        return
    if not VOCABULARY_LEAST <= size <= asked:
        yield fail(
            "the vocabulary is not one that the recipe allows",
            place,
            expected=f"{VOCABULARY_LEAST} to {asked}",
            found=size,
        )
    elif size < asked and not _explained(evidence, size):
        yield fail(
            "the vocabulary is smaller than the recipe's, and the log gives no reason",
            place,
            expected=asked,
            found=size,
        )


def _device(evidence: Evidence, expected: Expected, device: str, place: str) -> Iterator[Finding]:
    wants_gpu = expected.ranked or evidence.log.header.device == "cuda"
    if wants_gpu != device.startswith("cuda") and evidence.log.header.device != "auto":
        yield fail(
            "the model was trained on another device than the run was told to use",
            place,
            expected=evidence.log.header.device,
            found=device,
        )
    elif expected.ranked and not device.startswith("cuda"):
        yield fail("a ranked model was not trained on a GPU", place, found=device)
    elif evidence.log.header.device == "auto" and device == "cpu" and evidence.gpus():
        yield fail("`auto` left a visible GPU unused", place, found=device)


def _explained(evidence: Evidence, size: int) -> bool:
    notes = evidence.log.of("tokenizer", Note)
    return any(f"{size} tokens" in note.data.text for note in notes)


def _steps(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Step numbers, tokens, batch, micro-batches, learning rate and progress."""
    for stage in ("pretrain", "sft"):
        steps = evidence.log.steps(stage)
        if not steps:
            if _complete(evidence, stage) and (expected.reference or expected.ranked):
                yield fail(f"{stage} is complete without a step", stage)
            continue
        numbers = [event.data.step for event in steps]
        if numbers[0] != 0 and not (evidence.log.resumes and numbers[0] < LOST_STEPS):
            yield fail(
                f"{stage} does not begin with step 0",
                f"events.jsonl, seq {steps[0].seq}",
                expected=0,
                found=numbers[0],
            )
            continue
        course = expected.course
        if course is None:
            continue
        if expected.reference and not consecutive(numbers) and not evidence.log.resumes:
            yield fail(f"the reference trainer reports every step of {stage}", stage)
            continue
        exact = stage == "sft" or not evidence.recipe.facts.rollbacks
        found = (_one_step(course, stage, e, exact) for e in evidence.log.of(stage, Step))
        yield from islice((finding for finding in found if finding is not None), 1)


def _one_step(course: Course, stage: str, event: Event[Step], exact: bool) -> Finding | None:
    """What a step reports against the course.

    Args:
        exact: No roll-back can have lowered the learning rate.
    """
    data, place = event.data, f"{stage} step {event.data.step} (seq {event.seq})"
    reported = {**data.more, **{name: getattr(data, name) for name in _TYPED}}
    lacking = [name for name in course.step_fields if reported.get(name) is None]
    if lacking:
        return fail("a step lacks what the trainer reports", place, found=", ".join(lacking))
    progress = float(data.progress or 0.0)
    if not 0 <= progress < 1:
        return fail("a step at no progress of the run", place, expected="0 to 1", found=progress)
    batch = course.batch_tokens(stage, progress)
    if batch is not None and data.step_tokens != batch:
        return fail("a step of another batch", place, expected=batch, found=data.step_tokens)
    if batch is not None and stage == "sft" and data.tokens != (data.step + 1) * batch:
        return fail(
            "tokens are not steps times batch",
            place,
            expected=(data.step + 1) * batch,
            found=data.tokens,
        )
    micro = reported.get("micro_batches", 1)
    if not isinstance(micro, int) or micro < 1 or micro > (batch or micro):
        return fail("no number of micro-batches", place, found=micro)
    rate, found = course.learning_rate(stage, data.step, progress), reported.get("lr")
    if rate is None:
        return None
    slack = LEARNING_RATE_ROUNDING * max(rate, 1e-3)
    known = isinstance(found, int | float) and -slack <= found <= rate + slack
    if not known or (exact and abs(found - rate) > slack):  # type: ignore[operator]
        return fail(
            "the learning rate is not the schedule's", place, expected=f"{rate:.6g}", found=found
        )
    return None


def _horizon(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Progress follows steps or clock, and the stage ends where the recipe says."""
    if expected.course is None:
        return
    for stage in ("pretrain", "sft"):
        steps = evidence.log.of(stage, Step)
        if not steps:
            continue
        usable_s = expected.course.usable_s(stage)
        if usable_s is not None:
            yield from _by_time(evidence, stage, usable_s, steps)
            continue
        total = expected.recipe.facts.steps.get(stage)
        if total is None:
            continue
        for event in steps:
            if abs(float(event.data.progress or 0) - event.data.step / total) > 1e-9:
                yield fail(
                    f"{stage} is not as far as its steps say",
                    f"events.jsonl, seq {event.seq}: progress",
                    expected=event.data.step / total,
                    found=event.data.progress,
                )
                break
        last = evidence.log.steps(stage)[-1].data.step + 1
        early = last < total and _complete(evidence, stage) and not _out_of_time(evidence, stage)
        if last > total or early:
            yield fail(
                f"{stage} made another number of steps than the recipe has",
                stage,
                expected=total,
                found=last,
            )


def _out_of_time(evidence: Evidence, stage: str) -> bool:
    """Whether the budget was over when the stage ended."""
    start, stop = evidence.log.run_start, evidence.log.stages[stage].stops[-1]
    return start is not None and (stop.t_ns - start.t_ns) / 1e9 >= evidence.recipe.budget_s


def _by_time(
    evidence: Evidence, stage: str, usable_s: tuple[float, float], steps: list[Event[Step]]
) -> Iterator[Finding]:
    """Progress is the elapsed share of the stage's hours, less what is kept back for its end."""
    log = evidence.log.stages[stage]
    begin_ns = log.starts[0].t_ns
    least, most = usable_s
    for event in steps:
        elapsed_s = (event.t_ns - begin_ns) / 1e9
        # Its progress was taken before the step, or before an evaluation that came with it.
        low = (elapsed_s - _since_before(evidence, event)) / most - PROGRESS_SLACK_S / most
        high = elapsed_s / least
        progress = float(event.data.progress or 0.0)
        if not low <= progress <= high:
            yield fail(
                "progress is not the elapsed share of the recipe's hours",
                f"events.jsonl, seq {event.seq}: progress",
                expected=f"{max(0.0, low):.4f} to {min(1.0, high):.4f}",
                found=progress,
            )
            return
    if not log.complete:
        return
    elapsed_s = (log.stops[-1].t_ns - begin_ns) / 1e9
    hours_s = evidence.recipe.facts.stage_s[stage]
    grace_s = evidence.recipe.document["grace_s"] + PROGRESS_SLACK_S
    short = elapsed_s < least and not _out_of_time(evidence, stage)
    down_s = sum(event.data.downtime_s for event in evidence.log.resumes)
    if short or elapsed_s > hours_s + grace_s + down_s:
        yield fail(
            f"{stage} took other hours than the recipe has",
            stage,
            expected=f"{least / 3600:.3f} to {hours_s / 3600:.3f} h",
            found=f"{elapsed_s / 3600:.3f} h",
        )


def _since_before(evidence: Evidence, event: Event[Step]) -> float:
    """Seconds to the step from the step or the start of the stage before it."""
    events = evidence.log.events
    index = event.seq - 1
    while index > 0 and not isinstance(events[index].data, Step) and events[index].src != "sup":
        index -= 1
    return (event.t_ns - events[index].t_ns) / 1e9


def _evaluations(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Each stage measured its quality when the recipe says, and the figure is one."""
    if expected.course is None:
        return
    for stage, name in (("pretrain", "val_bpb"), ("sft", "sft_val_loss")):
        steps = evidence.log.steps(stage)
        if not steps:
            continue
        found = [event.data for event in evidence.log.of(stage, Eval) if event.data.name == name]
        for data in found:
            value = data.value
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 100:
                yield fail(
                    f"{name} is not a number between 0 and 100",
                    f"{stage} step {data.step}",
                    found=value,
                )
        last = steps[-1].data.step + 1
        wanted = list(expected.course.evaluated_steps(stage, last))
        if not _complete(evidence, stage):
            wanted = [step for step in wanted if step < last]
        measured = {data.step for data in found}
        lacking = [step for step in wanted if step not in measured]
        if lacking:
            yield fail(
                f"{name} was not measured when the recipe says",
                stage,
                expected=f"before steps {', '.join(map(str, wanted[:12]))}",
                found=f"without {', '.join(map(str, lacking[:8]))}",
            )


def _memory(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """What training held fits into the device, and holds the model."""
    models = evidence.log.of("pretrain", Model)
    capacity = _capacity_bytes(evidence)
    least = least_memory_bytes(models[-1].data.parameters) if models else 0
    if capacity is not None and least > capacity:
        yield fail(
            "the model is too large to be trained on the device",
            "pretrain: model event",
            expected=f"at most {capacity:,.0f} bytes",
            found=f"at least {least:,} bytes",
        )
    for stage in ("pretrain", "sft"):
        found = evidence.log.of(stage, Memory)
        if expected.reference and _complete(evidence, stage) and not found:
            yield fail(f"{stage} did not say how much memory it took", f"{stage}: memory event")
        for event in found:
            peak = event.data.peak_bytes
            if capacity is not None and peak > capacity:
                yield fail(
                    f"{stage} held more memory than the device has",
                    f"events.jsonl, seq {event.seq}",
                    expected=f"at most {capacity:,.0f} bytes",
                    found=f"{peak:,}",
                )
                break
        if found and expected.reference and max(e.data.peak_bytes for e in found) < least:
            yield fail(
                f"{stage} held less memory than the model alone takes",
                f"{stage}: memory event",
                expected=f"at least {least:,} bytes",
                found=f"{max(e.data.peak_bytes for e in found):,}",
            )


def _capacity_bytes(evidence: Evidence) -> float | None:
    before = evidence.result.hardware.before or {}
    if evidence.uses_gpu:
        gpus = [gpu["memory_bytes"] for gpu in evidence.gpus() if gpu["memory_bytes"]]
        return max(gpus) * DEVICE_MEMORY_SLACK if gpus else None
    host = before.get("host") or {}
    ram = host.get("ram_bytes")
    return None if not ram else float(ram + (host.get("swap_bytes") or 0)) * DEVICE_MEMORY_SLACK


CHECKS = (
    Check(
        "V28",
        "Training",
        "Another model, batch, schedule or horizon than the recipe's; logs that begin in the "
        "middle; evaluations that were left out; models that do not fit into the card.",
        "model, step, eval and memory events, against the recipe",
        training,
    ),
)

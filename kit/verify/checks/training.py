"""V28: pretraining and finetuning are the ones that the recipe describes, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from kit.events import Eval, Event, Memory, Model, Note, Step
from kit.verify.evidence import Evidence, Irrelevant
from kit.verify.expected import Expected, consecutive, least_memory_bytes, parameters
from kit.verify.finding import Check, Finding, fail, ok
from kit.verify.thresholds import (
    DEVICE_MEMORY_SLACK,
    LEARNING_RATE_ROUNDING,
    LOST_STEPS,
    PROGRESS_SLACK_S,
    VOCABULARY_LEAST,
)

_REPORTED = ("lr", "micro_batches")
# Fields that every version of the reference trainer reports, and those that newer ones do.
_CONFIG = ("n_layer", "n_embd", "n_head", "n_kv_head", "seq_len", "window_pattern", "short_window")
_NOT_COUNTED = 0.01  # of the parameters: what a later trainer may add in gates and scalars


def training(evidence: Evidence) -> Iterator[Finding]:
    """Model, batch, schedule, progress, evaluations and memory are the recipe's at every step."""
    expected = Expected(evidence.recipe)
    began = [name for name in ("pretrain", "sft") if name in evidence.log.stages]
    if not began:
        raise Irrelevant("the run trained nothing")
    problems = 0
    for part in (_model, _steps, _horizon, _evaluations, _memory):
        for finding in part(evidence, expected):
            problems += finding.status == "fail"
            yield finding
    if not problems:
        steps = sum(len(evidence.log.steps(name)) for name in began)
        whose = "the recipe" if expected.reference else "what any trainer reports"
        yield ok(f"{steps:,} steps held to {whose}")


def _complete(evidence: Evidence, stage: str) -> bool:
    return stage in evidence.log.stages and evidence.log.stages[stage].complete


def _model(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """The model event: one for each attempt that trained, and of the recipe's model."""
    models, steps = evidence.log.of("pretrain", Model), evidence.log.of("pretrain", Step)
    if steps and (not models or models[0].seq > steps[0].seq):
        if expected.reference or expected.ranked:
            yield fail("steps were made before the model was named", "pretrain: model event")
        return
    if not expected.reference:
        return
    for event in models:
        yield from _one_model(evidence, expected, event)
    facts = {(m.data.parameters, m.data.flops_per_token, m.data.vocab_size) for m in models}
    if len(facts) > 1:
        yield fail("another model after a resume", "pretrain: model events", found=str(facts))


def _one_model(evidence: Evidence, expected: Expected, event: Event[Model]) -> Iterator[Finding]:
    place, recipe = f"events.jsonl, seq {event.seq}", expected.recipe
    data, config = event.data, event.data.config
    if config is None or data.vocab_size is None or data.device is None or not data.flops_per_token:
        yield fail("the model event lacks configuration, vocabulary, device or FLOPs", place)
        return
    wanted: dict[str, Any] = {**recipe.section("model"), "vocab_size": data.vocab_size}
    for name, value in wanted.items():
        if name not in config:
            if expected.ranked or name in (*_CONFIG, "vocab_size"):
                yield fail(f"the model event does not say {name}", place, expected=value)
        elif config[name] != value:
            yield fail(
                f"the model's {name} is not the recipe's", place, expected=value, found=config[name]
            )
    asked = recipe.section("tokenizer")["vocab_size"]
    if not VOCABULARY_LEAST <= data.vocab_size <= asked:
        yield fail(
            "the vocabulary is not one that the recipe allows",
            place,
            expected=f"{VOCABULARY_LEAST} to {asked}",
            found=data.vocab_size,
        )
    elif data.vocab_size < asked and not _explained(evidence, data.vocab_size):
        yield fail(
            "the vocabulary is smaller than the recipe's, and the log gives no reason",
            place,
            expected=asked,
            found=data.vocab_size,
        )
    try:
        counted = parameters(config)
    except (KeyError, TypeError, ZeroDivisionError):
        yield fail("the model's sizes cannot be counted", place)
        return
    if abs(data.parameters - counted) > _NOT_COUNTED * counted:
        yield fail(
            "the parameters are not those of the model's sizes",
            f"{place}: parameters",
            expected=counted,
            found=data.parameters,
        )
    wants_gpu = expected.ranked or evidence.log.header.device == "cuda"
    if wants_gpu != data.device.startswith("cuda") and evidence.log.header.device != "auto":
        yield fail(
            "the model was trained on another device than the run was told to use",
            f"{place}: device",
            expected=evidence.log.header.device,
            found=data.device,
        )
    elif expected.ranked and not data.device.startswith("cuda"):
        yield fail("a ranked model was not trained on a GPU", f"{place}: device", found=data.device)
    elif evidence.log.header.device == "auto" and data.device == "cpu" and evidence.gpus():
        yield fail("`auto` left a visible GPU unused", f"{place}: device", found=data.device)


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
        if not expected.reference:
            continue
        if not consecutive(numbers) and not evidence.log.resumes:
            yield fail(f"the reference trainer reports every step of {stage}", stage)
            continue
        found = (_one_step(expected, stage, event) for event in evidence.log.of(stage, Step))
        yield from islice((finding for finding in found if finding is not None), 1)


def _one_step(expected: Expected, stage: str, event: Event[Step]) -> Finding | None:
    data, place = event.data, f"{stage} step {event.data.step} (seq {event.seq})"
    more: Mapping[str, Any] = data.more
    lacking = [name for name in _REPORTED if name not in more]
    lacking += [n for n in ("progress", "step_tokens", "dt_s") if getattr(data, n) is None]
    if lacking:
        return fail("a step lacks what the trainer reports", place, found=", ".join(lacking))
    progress = float(data.progress or 0.0)
    if not 0 <= progress < 1:
        return fail("a step at no progress of the run", place, expected="0 to 1", found=progress)
    batch = expected.batch_tokens(stage, progress)
    if data.step_tokens != batch:
        return fail("a step of another batch", place, expected=batch, found=data.step_tokens)
    if stage == "sft" and data.tokens != (data.step + 1) * batch:
        return fail(
            "tokens are not steps times batch",
            place,
            expected=(data.step + 1) * batch,
            found=data.tokens,
        )
    micro = more["micro_batches"]
    if not isinstance(micro, int) or micro < 1 or micro > batch:
        return fail("no number of micro-batches", place, found=micro)
    rate, found = expected.learning_rate(stage, data.step, progress), more["lr"]
    slack = LEARNING_RATE_ROUNDING * max(rate, 1e-3)
    if not isinstance(found, int | float) or not -slack <= found <= rate + slack:
        return fail(
            "the learning rate is not the schedule's", place, expected=f"{rate:.6g}", found=found
        )
    known = stage == "sft" or expected.learning_rate_is_known()
    if known and abs(found - rate) > slack:
        return fail(
            "the learning rate is not the schedule's", place, expected=f"{rate:.6g}", found=found
        )
    return None


def _horizon(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Progress follows steps or clock, and the stage ends where the recipe says."""
    if not expected.reference:
        return
    for stage in ("pretrain", "sft"):
        steps = evidence.log.of(stage, Step)
        if not steps:
            continue
        section = expected.recipe.section(stage)
        if stage == "pretrain" and expected.by_time:
            yield from _by_time(evidence, expected, steps)
            continue
        total = section["num_steps"]
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


def _by_time(evidence: Evidence, expected: Expected, steps: list[Event[Step]]) -> Iterator[Finding]:
    """Progress is the elapsed share of the stage's hours, less what is kept back for its end."""
    log = evidence.log.stages["pretrain"]
    begin_ns = log.starts[0].t_ns
    least, most = expected.usable_s
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
    hours_s = evidence.recipe.facts.stage_s["pretrain"]
    grace_s = evidence.recipe.document["grace_s"] + PROGRESS_SLACK_S
    short = elapsed_s < least and not _out_of_time(evidence, "pretrain")
    down_s = sum(event.data.downtime_s for event in evidence.log.resumes)
    if short or elapsed_s > hours_s + grace_s + down_s:
        yield fail(
            "pretraining took other hours than the recipe has",
            "pretrain",
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
    if not expected.reference:
        return
    for stage, name in (("pretrain", "val_bpb"), ("sft", "sft_val_loss")):
        steps = evidence.log.steps(stage)
        if not steps:
            continue
        found = [event.data for event in evidence.log.of(stage, Eval) if event.data.name == name]
        for data in found:
            value = data.value
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 100:
                yield fail(f"no figure of {name}", f"{stage} step {data.step}", found=value)
        last = steps[-1].data.step + 1
        wanted = expected.evaluated_steps(stage, last)
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

"""V29: each stage read what the recipe names, scored what it names, and took time to do so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from kit.contract import INPUT_ENDINGS
from kit.core_eval.bundle import core_facts
from kit.core_eval.naming import score_key
from kit.events import Eval, Model, Step
from kit.result_form import Core, CoreTask
from kit.typed import to_json
from kit.verify.checks.physics import flops_per_token, peak_flops, rate_of
from kit.verify.evidence import Absent, Evidence, Refused
from kit.verify.expected import Expected
from kit.verify.finding import Check, Finding, conclude, fail
from kit.verify.thresholds import (
    CORE_BYTES_PER_TOKEN,
    CORE_TASKS,
    LEAST_FILE_BYTES,
    LEAST_STAGE_S,
    TOKENS_PER_BYTE,
    TOKENS_PER_BYTE_CLOSED,
)

_INPUTS = ("data", "sft", "chat_eval", "core")
_ITEMS = sum(count for count, _ in CORE_TASKS.values())
_CLOSE = 1e-6


def scope(evidence: Evidence) -> Iterator[Finding]:
    """Inputs, scored items and durations fit the recipe and each other."""
    expected = evidence.expected
    for part in (_inputs, _overlap, _corpus, _core, _chat, _durations, _finetuning):
        yield from part(evidence, expected)
    read = [name for name in _INPUTS if evidence.log.inputs.get(name)]
    yield conclude(f"read {', '.join(read) or 'nothing'}, as the recipe's stages do")


def _inputs(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Each input that the stages read is there, whole, and no other."""
    for name in _INPUTS:
        part, place = evidence.log.inputs.get(name), f"inputs.{name}"
        if (part is not None) != expected.reads(name):
            yield fail(
                "an input that no stage reads"
                if part
                else "an input that a stage reads is missing",
                place,
            )
            continue
        if part is None:
            continue
        files = part.files
        if not files or part.bytes != sum(file.bytes for file in files):
            yield fail(
                "an input's size is not that of its files",
                place,
                expected=sum(file.bytes for file in files),
                found=part.bytes,
            )
        names = [file.path for file in files]
        if len(set(names)) != len(names):
            yield fail("an input names a file twice", place)
        for file in files:
            suffix = PurePosixPath(file.path).suffix.lower()
            if file.bytes < LEAST_FILE_BYTES.get(suffix, 1) or (
                name in INPUT_ENDINGS and suffix != INPUT_ENDINGS[name]
            ):
                yield fail(
                    "a file that holds nothing that its stage reads",
                    f"{place}: {file.path}",
                    expected=f"{INPUT_ENDINGS.get(name, 'a file')} of some bytes",
                    found=f"{file.bytes} bytes",
                )
                break


def _overlap(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """No file is training text and test at once; CORE's files are known by digest."""
    owners: dict[str, str] = {
        f"sha256:{str(facts['sha256']).removeprefix('sha256:')}": "core"
        for facts in core_facts()["files"].values()
    }
    for name in reversed(_INPUTS):
        part = evidence.log.inputs.get(name)
        for file in part.files if part else ():
            owner = owners.setdefault(file.sha256, name)
            if owner != name:
                yield fail(
                    f"a file of {owner} among the files of {name}",
                    f"inputs.{name}: {file.path}",
                    found=file.sha256,
                )


def _corpus(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """The text is large enough for the tokens, and the recipe's where it names one."""
    part, steps = evidence.log.inputs.data, evidence.log.steps("pretrain")
    if part is None:
        return
    section = expected.recipe.section("data")
    if section["digest"] and part.digest != section["digest"]:
        yield fail(
            "the corpus is not the one that the recipe names",
            "inputs.data",
            expected=section["digest"],
            found=part.digest,
        )
    if expected.closed and expected.ranked and len(part.files) != section["shards"] + 1:
        yield fail(
            "another number of shards than the recipe names",
            "inputs.data",
            expected=section["shards"] + 1,
            found=len(part.files),
        )
    most = TOKENS_PER_BYTE_CLOSED if expected.closed else TOKENS_PER_BYTE
    size = sum(file.bytes for file in part.files)
    if steps and steps[-1].data.tokens > most * size:
        yield fail(
            "more tokens than the training text can give",
            "inputs.data",
            expected=f"at most {most * size:,.0f} of {size:,} bytes",
            found=f"{steps[-1].data.tokens:,}",
        )


def _scored(evidence: Evidence, stage: str) -> dict[str, Any] | None:
    try:
        return evidence.evaluation_file(stage)
    except (Absent, Refused):
        return None


def _core(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """CORE was scored on the bundle among the inputs, on the recipe's items, as it was reported."""
    part, scored = evidence.log.inputs.core, _scored(evidence, "core")
    stated = evidence.result.quality.core
    if stated is None:
        if "core" in evidence.log.stages and evidence.log.stages["core"].complete:
            yield fail("the core stage is complete without a score", "quality.core")
        return
    if part is not None and part.digest != stated.bundle_digest:
        yield fail(
            "the score is of another bundle than the run read",
            "quality.core.bundle_digest",
            expected=part.digest,
            found=stated.bundle_digest,
        )
    section = expected.recipe.section("core")
    capped = section["max_per_task"] != -1 or bool(section["tasks"])
    if stated.bundle == "core" and stated.partial != capped:
        yield fail(
            "the score is called whole or partial against its recipe",
            "quality.core.partial",
            expected=capped,
            found=stated.partial,
        )
    tasks = {task.task: task for task in stated.tasks}
    if section["tasks"] and set(tasks) != set(section["tasks"]):
        yield fail("other tasks than the recipe's were scored", "quality.core.tasks")
    for name, task in tasks.items():
        whole = CORE_TASKS[name][0] if stated.bundle == "core" and name in CORE_TASKS else None
        cap = section["max_per_task"] if section["max_per_task"] != -1 else None
        most = min((n for n in (whole, cap) if n is not None), default=None)
        if most is not None and (task.n > most or (whole is not None and task.n != most)):
            yield fail(
                "another number of items than the recipe scores",
                f"quality.core.tasks: {name}",
                expected=most,
                found=task.n,
            )
            break
    if scored is not None and scored.get("max_per_task") != section["max_per_task"]:
        yield fail(
            "the evaluation was capped otherwise than the recipe says",
            "eval/core.json: max_per_task",
            expected=section["max_per_task"],
            found=scored.get("max_per_task"),
        )
    yield from _core_reports(evidence, stated, tasks)


def _core_reports(
    evidence: Evidence, stated: Core, tasks: dict[str, CoreTask]
) -> Iterator[Finding]:
    """The evaluator reported each task as its file has it."""
    reports = evidence.log.of("core", Eval)
    told = {str(e.data.more.get("task")): e.data for e in reports if e.data.name == "core_task"}
    if set(told) != set(tasks):
        yield fail(
            "the evaluator did not report each task",
            "core: eval events",
            expected=f"{len(tasks)} tasks",
            found=f"{len(set(told) & set(tasks))} of them, {len(set(told) - set(tasks))} others",
        )
        return
    for name, data in told.items():
        task = tasks[name]
        same = data.more.get("n") == task.n and _same(data.value, task.accuracy)
        if not same:
            yield fail(
                "a task was reported otherwise than it is shown",
                f"core: {name}",
                expected=f"{task.n} items, {task.accuracy:.6f}",
                found=f"{data.more.get('n')} items, {data.value}",
            )
            return
    # Until partial and own-question scores got names of their own, each was reported as `core`.
    final = [e.data for e in reports if e.data.name in (score_key(to_json(stated)), "core")]
    artifact = evidence.log.artifacts.get("core")
    digest = artifact.files[0].sha256 if artifact else None
    if (
        not final
        or final[-1].more.get("sha256") != digest
        or not _same(final[-1].value, stated.value)
    ):
        yield fail(
            "the evaluator's last report is not the score that is shown", "core: eval events"
        )


def _same(found: Any, expected: float) -> bool:
    return isinstance(found, int | float) and abs(found - expected) <= _CLOSE


def _chat(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """The chat evaluation asked the questions that the run read, as many as the recipe says."""
    part, scored = evidence.log.inputs.chat_eval, _scored(evidence, "chat_eval")
    if not expected.reference or scored is None or part is None:
        return
    cap = expected.recipe.section("chat_eval")["max_per_task"]
    if scored.get("max_per_task") != cap:
        yield fail(
            "the chat evaluation was capped otherwise than the recipe says",
            "eval/chat.json: max_per_task",
            expected=cap,
            found=scored.get("max_per_task"),
        )
    known = {PurePosixPath(file.path).stem for file in part.files}
    left_out = {str(name).split(" (")[0] for name in scored.get("left_out") or ()}
    wanted = set(expected.recipe.section("chat_eval")["tasks"]) or known
    asked = set(scored["tasks"])
    if not asked <= known or (wanted & known) - asked - left_out:
        yield fail(
            "other questions were asked than the run read",
            "eval/chat.json",
            expected=", ".join(sorted(wanted)),
            found=", ".join(sorted(asked)),
        )
    for name, task in scored["tasks"].items():
        count = max(len(task["outcomes"]), len(task["ended"]))
        if cap != -1 and count > cap:
            yield fail(
                "more questions than the recipe asks",
                f"eval/chat.json: {name}",
                expected=cap,
                found=count,
            )
            break
    reports = evidence.log.of("chat_eval", Eval)
    told = {e.data.more.get("task") for e in reports if e.data.name == "chat_task"}
    if told != asked or not any(e.data.name == "chat" for e in reports):
        yield fail(
            "the trainer did not report each task of the chat evaluation",
            "chat_eval: eval events",
            expected=", ".join(sorted(asked)),
            found=", ".join(sorted(map(str, told))),
        )


def _durations(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """No stage is over before its program can have begun, CORE not before its text was read."""
    for name, stage in evidence.log.stages.items():
        if not stage.complete or not (name == "core" or expected.reference):
            continue
        elapsed_s = (stage.stops[-1].t_ns - stage.starts[0].t_ns) / 1e9
        least_s, why = LEAST_STAGE_S, "its program alone takes longer to start"
        if name == "core":
            work_s = _core_work_s(evidence)
            if work_s > least_s:
                least_s, why = work_s, "the hardware cannot read its items faster"
        if elapsed_s < least_s:
            yield fail(
                f"stage {name} was too short: {why}",
                f"timing.stages: {name}",
                expected=f"at least {least_s:,.2f} s",
                found=f"{elapsed_s:,.2f} s",
            )


def _core_work_s(evidence: Evidence) -> float:
    """Seconds that the hardware needs at its peak for one forward pass over the scored items."""
    part, stated = evidence.log.inputs.core, evidence.result.quality.core
    if part is None or stated is None:
        return 0.0
    course, vocabulary = evidence.course, evidence.vocabulary
    if course is None or vocabulary is None:
        return 0.0
    peak, _ = peak_flops(evidence)
    if not peak or stated.bundle != "core":
        return 0.0
    share = sum(task.n for task in stated.tasks) / _ITEMS
    tokens = share * part.bytes / CORE_BYTES_PER_TOKEN
    return tokens * course.forward_flops(vocabulary) / peak


def _finetuning(evidence: Evidence, expected: Expected) -> Iterator[Finding]:
    """Finetuning keeps below the same roof as pretraining."""
    steps = evidence.log.of("sft", Step)
    models = evidence.log.of("pretrain", Model)
    if len(steps) < 2 or not models:
        return
    counted = flops_per_token(evidence, [1.0]) if expected.reference else None
    cost = counted[0] if counted else models[-1].data.flops_per_token
    at_s, tokens = [e.t_ns / 1e9 for e in steps], [float(e.data.tokens) for e in steps]
    rate = rate_of(at_s, tokens, expected.reference)
    peak, what = peak_flops(evidence)
    if cost and rate and peak and rate * cost > peak:
        yield fail(
            "finetuning did more work than the hardware can do in the time",
            "sft: step events",
            expected=f"at most {peak / 1e12:,.3f} TFLOP/s ({what})",
            found=f"{rate * cost / 1e12:,.3f} TFLOP/s",
        )


CHECKS = (
    Check(
        "V29",
        "Scope",
        "Inputs that no stage reads or that are missing, the test among the training text, one "
        "byte of text for all tokens, items and tasks unlike the recipe, stages done in no time.",
        "inputs, quality, eval events and stage times, against the recipe",
        scope,
    ),
)

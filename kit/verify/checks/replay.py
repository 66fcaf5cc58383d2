"""V26, and the parts of V18 and V22 that train: steps done again by the installed trainer.

Only the trainer that is installed here runs, through the same contract as in a run, and only when
it is the one that the recipe names: a result's own code is never started. What it reads of the run
(tokenizer, weights, snapshots) is held against the log's digests first.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kit.contract import INPUT_ENDINGS, StageReport, stage_seed
from kit.errors import SchemaError
from kit.events import Eval, Model, Note, Step
from kit.files import files_ending
from kit.trust.digest import sha256_file
from kit.verify.evidence import Absent, Evidence, Irrelevant
from kit.verify.finding import Check, Finding, fail, missing, ok
from kit.verify.thresholds import REPLAY_LOSS_CPU, REPLAY_LOSS_GPU

INSTALLED_TRAINER = ["python", "-m", "reference"]
_SNAPSHOT = re.compile(r"snapshots/step-(\d{8})\.safetensors")
_LIMIT_S = 48 * 3600.0


@dataclass(frozen=True)
class Window:
    """Steps to do again: from the seed's weights (step 0) or from the snapshot before `step`."""

    step: int
    progress: list[float]


@dataclass
class Replay:
    """What the trainer said when it did the windows again."""

    windows: list[Window]
    initial_weights: str | None = None
    losses: dict[int, float] = field(default_factory=dict)
    val_bpb: float | None = None


def replay(evidence: Evidence) -> Iterator[Finding]:
    """Steps done again from the seed and from stored snapshots have the losses of the log."""
    if not evidence.options.replay:
        raise Irrelevant("not asked for (--replay K)")
    if evidence.options.data is None:
        yield missing("the training data were not given (--data DIR)")
        return
    found = evidence.replayed
    logged = {e.data.step: e.data.loss for e in evidence.log.steps("pretrain")}
    allowed = REPLAY_LOSS_GPU if evidence.uses_gpu else REPLAY_LOSS_CPU
    worst = 0.0
    for step, loss in found.losses.items():
        worst = max(worst, abs(loss - logged[step]))
        if abs(loss - logged[step]) > allowed:
            yield fail(
                "a step done again has another loss",
                f"pretrain step {step}",
                expected=f"{loss:.6f}, within {allowed}",
                found=logged[step],
            )
            return
    asked = sum(len(window.progress) for window in found.windows)
    if len(found.losses) != asked:
        yield fail(
            "the trainer did not do all steps again", expected=asked, found=len(found.losses)
        )
        return
    starts = ", ".join(str(window.step) for window in found.windows)
    yield ok(f"{asked} steps done again, from {starts}: losses within {worst:.2g}")


def run_replay(evidence: Evidence) -> Replay:
    """Does everything that the options ask for in one go of the trainer.

    Raises:
        Absent, Refused, Irrelevant: As every evidence.
    """
    if evidence.recipe.section("trainer")["command"] != INSTALLED_TRAINER:
        raise Irrelevant("the recipe's trainer is code of its own, and verify runs none")
    options = evidence.options
    windows: list[Window] = []
    validate = options.re_evaluate and options.data is not None and evidence.complete
    if options.data is not None:
        check_data(evidence, options.data)
        if options.replay and talks_in_pretraining(evidence):
            if options.sft is None:
                raise Absent("pretraining read conversations, which were not given (--sft DIR)")
            check_data(evidence, options.sft, "sft")
        if options.replay:
            windows = _choose(evidence)
    evidence.artifact_folder("tokenizer")
    if validate:
        evidence.artifact_folder("pretrain", skip="snapshots/")
    found = Replay(windows)
    for report in _run_trainer(evidence, windows, validate):
        match report.data:
            case Model(initial_weights=weights):
                found.initial_weights = weights
            case Step(step=step, loss=loss):
                found.losses[step] = loss
            case Eval(value=value):
                found.val_bpb = value
    return found


def talks_in_pretraining(evidence: Evidence) -> bool:
    """Whether the recipe mixes conversations into the last part of pretraining."""
    return "sft" in evidence.recipe.facts.reads.get("pretrain", ())


def check_data(evidence: Evidence, folder: Path, name: Literal["data", "sft"] = "data") -> None:
    """The folder holds exactly the files that the log names: shards, or conversations.

    Raises:
        Absent: It does not.
        Irrelevant: The run read none.
    """
    part = evidence.log.inputs.get(name)
    if part is None:
        raise Irrelevant("the run read no training data")
    listed = {file.path: file.sha256 for file in part.files}
    names = {path.name for path in files_ending(folder, INPUT_ENDINGS[name])}
    if names != set(listed):
        odd = sorted(names ^ set(listed))
        raise Absent(f"the data given are not the run's: {len(odd)} files differ, first {odd[0]}")
    for path, digest in listed.items():
        found = sha256_file(
            folder / path, progress=evidence.options.progress, cache=evidence.options.cache
        )
        if found != digest:
            raise Absent(f"the data given are not the run's: {path} has another content")


def _choose(evidence: Evidence) -> list[Window]:
    """`options.replay` random starts, or all there are; nobody can know them beforehand."""
    artifact = evidence.log.artifacts.get("pretrain")
    if artifact is None:
        raise Irrelevant("the run left no checkpoint")
    steps = {e.data.step: e.data for e in evidence.log.steps("pretrain")}
    found = (_SNAPSHOT.fullmatch(file.path) for file in artifact.files)
    starts = [0, *(int(match[1]) for match in found if match)]
    starts = [step for step in starts if step in steps]
    notes = evidence.log.of("pretrain", Note)
    again = {event.data.more.get("rolled_back_step") for event in notes}
    if len(again - {None}) > evidence.recipe.facts.rollbacks:
        again = set()  # more than the recipe allows: claimed, to keep the stretches short
    chosen = random.SystemRandom().sample(starts, min(evidence.options.replay, len(starts)))
    windows = []
    for start in sorted(chosen):
        if start:
            evidence.artifact_file("pretrain", f"snapshots/step-{start:08}.safetensors")
        progress = []
        for step in range(start, start + evidence.options.replay_steps):
            share = steps[step].progress if step in steps else None
            # A step that was done twice, from older weights the second time, ends the stretch. A
            # snapshot at it holds the weights it was done from.
            if share is None or (step in again and step != start):
                break
            progress.append(float(share))
        if progress:
            windows.append(Window(start, progress))
    if not windows:
        raise Irrelevant("the log gives no step that could be done again")
    return windows


def _run_trainer(evidence: Evidence, windows: list[Window], validate: bool) -> list[StageReport]:
    from kit.contract import Redactor, build_request, deadline_ns, trainer_command
    from kit.run.plan import stage_environment
    from kit.run.process import StopFlag, run_stage
    from kit.timing import boottime_ns

    reports: list[StageReport] = []
    header = evidence.header
    device = evidence.options.device if evidence.uses_gpu else "cpu"
    threads = max(1, header.threads or 1)
    with tempfile.TemporaryDirectory(prefix="n4090-replay-") as name:
        scratch = Path(name)
        asked = {
            "windows": [vars(window) for window in windows],
            "validate": validate,
        }
        (scratch / "replay.json").write_text(json.dumps(asked))
        now = boottime_ns()
        end = deadline_ns(now, _LIMIT_S)
        request = build_request(
            "replay",
            recipe=evidence.recipe,
            run_id="replay",
            run=evidence.folder.resolve(),
            cache=scratch / "cache",
            inputs={
                "data": evidence.options.data and evidence.options.data.resolve(),
                "sft": evidence.options.sft and evidence.options.sft.resolve(),
            },
            seed=header.seed.value,
            attempt=0,
            device=device,
            threads=threads,
            clock={
                "start_ns": now,
                "stage_start_ns": now,
                "deadline_ns": end,
                "budget_s": _LIMIT_S,
            },
            out=scratch / "out",
        )
        request["seed"] = stage_seed(header.seed.value, "pretrain")
        request["paths"]["replay"] = str(scratch / "replay.json")
        (scratch / "request.json").write_text(json.dumps(request))
        outcome = run_stage(
            [*trainer_command(evidence.recipe, sys.executable), str(scratch / "request.json")],
            environment=stage_environment(threads, scratch),
            output=scratch / "output.txt",
            deadline_ns=end,
            grace_s=10,
            redact=Redactor({}),
            stop=StopFlag(),
            on_report=reports.append,
        )
    if outcome.reason == "bad_snapshot":
        raise SchemaError(f"{outcome.message}")
    if outcome.status != "complete":
        # No torch, no memory, no GPU here: that says nothing about the run.
        raise Absent(f"nothing could be done again here: {outcome.message}")
    return reports


def initial_weights_problem(evidence: Evidence, stated: str) -> Finding | None:
    """What the installed trainer says against the digest of the weights that a seed gives."""
    found = evidence.replayed.initial_weights
    if found == stated:
        return None
    import importlib.metadata

    ours, theirs = importlib.metadata.version("torch"), evidence.result.software.get("torch")
    if ours != theirs:
        return missing(f"the seed's weights were not computed again: torch {ours} is not {theirs}")
    return fail(
        "the initial weights are not those that the seed gives",
        "the model event's initial_weights",
        expected=found,
        found=stated,
    )


CHECKS = (
    Check(
        "V26",
        "Replay",
        "A fabricated middle: losses that nobody trained. Evidence, not proof.",
        "random steps done again from the seed and the snapshots (--replay K --data DIR)",
        replay,
    ),
)

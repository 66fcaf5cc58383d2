"""The result of a run, built from its log and from files whose digests the log holds.

Nothing here asks the trainer: its reports are read only as the supervisor stored them, every figure
is recomputed (`verify` does the same again), and what is not known is null with a reason.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.core_eval.likelihood import mean_likelihood
from kit.core_eval.naming import FULL_CORE_TASKS
from kit.events import Artifacts, Data, Eval, Event, Memory, Model, Note, Resume, RunStop, Step
from kit.limits import MAX_RESULT_NOTES
from kit.recipe import Recipe, parse_recipe, read_recipe_text
from kit.result_form import (
    SCHEMA_VERSION,
    Artifact,
    ArtifactFile,
    Chat,
    ChatTask,
    Checkpoint,
    Claims,
    ClockDeviations,
    Core,
    CoreTask,
    Energy,
    Environment,
    FirstLast,
    Hardware,
    Identities,
    Image,
    InputDigest,
    InputDigests,
    Kit,
    LogEnd,
    Quality,
    RecipeText,
    Result,
    RunName,
    Seed,
    StageTime,
    Submitter,
    Telemetry,
    Timing,
    Training,
)
from kit.run_log import RunLog
from kit.timing import utc_from_ms
from kit.tracks import is_ranked
from kit.trust.digest import sha256_file
from kit.trust.sign import result_id
from kit.typed import ABSENT, from_json, to_json

NANOCHAT_SKIPPED_STEPS = 10  # nanochat's own training time leaves these out
_SHORTEST_STEP_S = 1e-6  # what a trainer rounds to; a rate over less has no meaning


def build_result(run: Path, log: RunLog | None = None) -> Result:
    """The unsigned result of the run in folder `run`.

    Args:
        log: The run's log, where it was read before.
    """
    log = log or RunLog.read(run)
    header = log.header
    text = read_recipe_text(run / "recipe.toml")
    recipe = parse_recipe(text, folder=run, label="recipe.toml")
    timing = timing_section(log, recipe.budget_s)
    quality = quality_section(log, run)
    telemetry = run / "telemetry.jsonl"
    return Result(
        schema_version=SCHEMA_VERSION,
        kit=Kit(header.kit.version, header.kit.code),
        image=Image(header.image.digest, header.image.reason),
        recipe=RecipeText(recipe.name, recipe.track, recipe.division, recipe.digest, text),
        seed=Seed(header.seed.value, header.seed.source),
        data=data_section(log),
        hardware=Hardware(log.fingerprints.get("before"), log.fingerprints.get("after")),
        software=header.software,
        timing=timing,
        training=training_section(log),
        checkpoint=Checkpoint(
            tokenizer=_artifact(log.artifacts.get("tokenizer")),
            base=_artifact(log.artifacts.get("pretrain")),
            chat=_artifact(log.artifacts.get("sft")),
        ),
        quality=quality,
        energy=energy_section(log),
        telemetry=Telemetry(
            digest=sha256_file(telemetry) if telemetry.is_file() else None,
            summary=to_json(log.telemetry) if log.telemetry else None,
        ),
        log=LogEnd(log.chain.head, log.chain.count, log.chain.bytes),
        environment=environment_section(log),
        runs=runs_section(log),
        submitter=Submitter(
            public_key=header.signer.public_key,
            key_created_for_this_work_folder=header.signer.created,
            identities=from_json(Identities, header.signer.identities, "identities"),
        ),
        claims=claims_section(log, recipe, timing, quality),
        notes=tuple(notes_section(log, recipe.stages)),
        signatures=(),
    )


def notes_section(log: RunLog, stages: Iterable[str]) -> list[str]:
    """The first notes of the stages, and how many more the log has."""
    notes = [event.data.text for stage in stages for event in log.of(stage, Note)]
    if len(notes) <= MAX_RESULT_NOTES:
        return notes
    kept = notes[: MAX_RESULT_NOTES - 1]
    return [*kept, f"{len(notes) - len(kept):,} more notes are in the log"]


def timing_section(log: RunLog, budget_s: float) -> Timing:
    """Seconds by the supervisor's clock, and nanochat's own way of counting beside them."""
    start = log.run_start
    total_s = _seconds(start, log.run_stop or log.last) if start else 0.0
    stages = [
        StageTime(
            stage=name,
            status=stage.stops[-1].data.status if stage.stops else "killed",
            attempts=len(stage.starts),
            # From the first start to the last stop: time between attempts counts.
            elapsed_s=_seconds(stage.starts[0], stage.stops[-1]) if stage.stops else None,
        )
        for name, stage in log.stages.items()
        if stage.starts
    ]
    durations = _step_seconds([event.data for event in log.steps()])
    return Timing(
        started_at=utc_from_ms(start.wall_ms) if start else None,
        total_s=total_s,
        budget_s=budget_s,
        within_budget=total_s <= budget_s,
        stages=tuple(stages),
        pretrain_s=next((s.elapsed_s for s in stages if s.stage == "pretrain"), None),
        steps_s=round(sum(durations), 3) if durations else None,
        nanochat_s=round(sum(durations[NANOCHAT_SKIPPED_STEPS:]), 3) if durations else None,
        resumes=len(log.resumes),
        downtime_s=round(sum(event.data.downtime_s for event in log.resumes), 3),
        reboots=sum(event.data.rebooted for event in log.resumes),
        clocks=ClockDeviations(**clock_deviations(log.events)),
    )


def clock_deviations(events: Iterable[Event[Data]]) -> dict[str, float | None]:
    """How far each other clock ran apart from the run's, over each boot, at most; as a share.

    Suspend shows as a deviation of `raw` and `syscall`, which stand still then, not of `uptime`.
    """
    worst: dict[str, float | None] = {"raw": None, "syscall": None, "uptime": None, "wall": None}
    first: Event[Data] | None = None
    last: Event[Data] | None = None
    for event in events:
        if isinstance(event.data, Resume) and event.data.rebooted:
            _compare_clocks(first, last, worst)
            first = None
        first = first or event
        last = event
    _compare_clocks(first, last, worst)
    return worst


def _compare_clocks(
    first: Event[Data] | None, last: Event[Data] | None, worst: dict[str, float | None]
) -> None:
    if first is None or last is None or last.t_ns - first.t_ns < 1_000_000_000:
        return
    span = last.t_ns - first.t_ns
    for name, begun, ended, unit in (
        ("raw", first.clocks.raw_ns, last.clocks.raw_ns, 1),
        ("syscall", first.clocks.syscall_ns, last.clocks.syscall_ns, 1),
        ("uptime", first.clocks.uptime_ms, last.clocks.uptime_ms, 10**6),
    ):
        if begun is not None and ended is not None:
            _keep_worst(worst, name, (ended - begun) * unit, span)
    _keep_worst(worst, "wall", (last.wall_ms - first.wall_ms) * 10**6, span)


def _keep_worst(worst: dict[str, float | None], name: str, counted: int, span: int) -> None:
    deviation = round(counted / span - 1, 6)
    previous = worst[name]
    if previous is None or abs(deviation) > abs(previous):
        worst[name] = deviation


def training_section(log: RunLog) -> Training:
    """What pretraining did, from the steps that count."""
    steps = [event.data for event in log.steps()]
    models = log.of("pretrain", Model)
    model = models[-1].data if models else None
    tokens = steps[-1].tokens if steps else 0
    flops_per_token = model.flops_per_token if model else None
    durations = _step_seconds(steps)
    tail = durations[NANOCHAT_SKIPPED_STEPS:] or durations
    per_step = tokens / len(steps) if steps else 0
    peaks = [event.data.peak_bytes for event in log.of("pretrain", Memory)]
    return Training(
        parameters=model.parameters if model else None,
        flops_per_token=flops_per_token,
        steps=len(steps),
        steps_done_again=len(log.of("pretrain", Step)) - len(steps),
        tokens=tokens,
        flops=_flops(steps, flops_per_token),
        first_loss=steps[0].loss if steps else None,
        final_loss=steps[-1].loss if steps else None,
        tokens_per_s=_rate(per_step, statistics.median(tail)) if tail else None,
        mfu=model.mfu if model else None,
        peak_memory_bytes=max(peaks) if peaks else None,
    )


def _rate(tokens: float, seconds: float) -> float | None:
    """Tokens a second; None where the trainer reports steps that took no time."""
    return round(tokens / seconds, 1) if seconds >= _SHORTEST_STEP_S else None


def _step_seconds(steps: list[Step]) -> list[float]:
    return [step.dt_s for step in steps if step.dt_s is not None]


def _flops(steps: list[Step], flops_per_token: float | None) -> float | None:
    """Of all steps; the trainer's own sum where a token does not always cost the same."""
    summed = steps[-1].flops if steps else None
    if summed is not None:
        return float(summed)
    return float(flops_per_token * (steps[-1].tokens if steps else 0)) if flops_per_token else None


def quality_section(log: RunLog, run: Path) -> Quality:
    """Scores, recomputed from per-example outcomes in files that the log's digests bind."""
    core, chat = _evaluation(log, run, "core"), _evaluation(log, run, "chat_eval")
    return Quality(
        val_bpb=_first_last(log, "pretrain", "val_bpb"),
        sft_loss=_first_last(log, "sft", "sft_val_loss"),
        core=None if core is None else core_section(core),
        chat=None if chat is None else chat_section(chat),
    )


def _first_last(log: RunLog, stage: str, name: str) -> FirstLast | None:
    values = [event.data.value for event in log.of(stage, Eval) if event.data.name == name]
    return FirstLast(values[0], values[-1]) if values else None


def _evaluation(log: RunLog, run: Path, stage: str) -> dict[str, Any] | None:
    artifact = log.artifacts.get(stage)
    if artifact is None:
        return None
    path = run / artifact.folder / artifact.files[0].path
    document = json.loads(path.read_bytes())
    assert isinstance(document, dict)
    return {**document, "digest": artifact.files[0].sha256}


def core_section(document: dict[str, Any]) -> Core:
    """CORE from eval/core.json: accuracy from the outcomes, centred by the baselines, averaged."""
    tasks = []
    for task in document["tasks"]:
        outcomes: str = task["outcomes"]  # one 0 or 1 an example
        accuracy = outcomes.count("1") / len(outcomes)
        baseline = 0.01 * task["baseline"]
        centered = (accuracy - baseline) / (1 - baseline)
        tasks.append(CoreTask(task["label"], len(outcomes), accuracy, centered))
    likelihood = mean_likelihood(document["tasks"])  # earlier kits did not measure it
    return Core(
        value=sum(task.centered for task in tasks) / len(tasks),
        partial=document["partial"],
        bundle=document["bundle"]["kind"],
        bundle_digest=document["bundle"]["digest"],
        interval=(document["interval"]["low"], document["interval"]["high"]),
        tasks=tuple(tasks),
        digest=document["digest"],
        answer_bpb=likelihood.value if likelihood else ABSENT,
    )


def chat_section(document: dict[str, Any]) -> Chat:
    """The chat score from eval/chat.json: mean centred accuracy, and how often turns were ended.

    A task holds `outcomes` (one 0 or 1 a question), `ended` (the same, empty where nothing is
    generated) and `baseline`, a guess's share of right answers; null for tasks without right ones.
    """
    tasks, ended_all = [], []
    for name, task in document["tasks"].items():
        outcomes, ended, baseline = task["outcomes"], task["ended"], task["baseline"]
        ended_all += ended
        accuracy = sum(outcomes) / len(outcomes) if outcomes and baseline is not None else None
        tasks.append(
            ChatTask(
                task=name,
                n=len(outcomes),
                accuracy=accuracy,
                centered=None if accuracy is None else (accuracy - baseline) / (1 - baseline),
                ended_rate=sum(ended) / len(ended) if ended else None,
            )
        )
    scored = [task.centered for task in tasks if task.centered is not None]
    return Chat(
        value=sum(scored) / len(scored) if scored else None,
        ended_rate=sum(ended_all) / len(ended_all) if ended_all else None,
        tasks=tuple(tasks),
        digest=document["digest"],
    )


def energy_section(log: RunLog) -> Energy:
    """Energy of the run in kWh, as telemetry could read it, and its cost at a stated price."""
    summary = log.telemetry.energy if log.telemetry else None
    if not summary:
        return Energy(kwh=None, reason="no telemetry", more={"source": None})
    stated = dict(summary)
    if price := log.header.price:
        kwh = summary["kwh"]
        cost = None if kwh is None else round(kwh * price.per_kwh, 4)
        stated |= {"price_per_kwh": price.per_kwh, "currency": price.currency, "cost": cost}
    return from_json(Energy, stated, "energy")


def runs_section(log: RunLog) -> RunName:
    """The run's name, and its place in a registered group."""
    group = log.header.group
    return RunName(
        id=log.header.run,
        group=result_id(group.registration) if group else None,
        index=group.index if group else None,
    )


def environment_section(log: RunLog) -> Environment:
    """What was around the run, at its start, and the traffic while it went on."""
    before, after = log.header.environment, log.end.environment if log.end else None

    def difference(began: int | None, ended: int | None) -> int | None:
        if log.resumes or began is None or ended is None:
            return None  # counters start again with the container or the machine
        return ended - began if ended >= began else None  # an interface went away

    separate = before.separate_trainer
    return Environment(
        rx_bytes=difference(before.rx_bytes, after.rx_bytes if after else None),
        tx_bytes=difference(before.tx_bytes, after.tx_bytes if after else None),
        ld_preload=before.ld_preload,
        time_namespace=before.time_namespace,
        container=before.container,
        separate_trainer=ABSENT if separate is None else separate,  # logs of early kits lack it
    )


def data_section(log: RunLog) -> InputDigests:
    """Digest and size of each input; the file lists stay in the log."""
    found = {
        name: InputDigest(part.digest, part.bytes, len(part.files))
        for name, part in log.inputs.items()
    }
    return InputDigests(**{name: found.get(name) for name in ("data", "sft", "chat_eval", "core")})


def claims_section(log: RunLog, recipe: Recipe, timing: Timing, quality: Quality) -> Claims:
    """How the run ended, and why it cannot be ranked."""
    stop = log.run_stop.data if log.run_stop else RunStop("failed", "killed")
    why = reasons_not_ranked(recipe.track, stop, timing, quality.core)
    return Claims(
        status=stop.status,
        reason=stop.reason,
        message=stop.message,
        stage=stop.stage,
        ranked=not why,
        why_not_ranked=tuple(why),
    )


def reasons_not_ranked(track: str, stop: RunStop, timing: Timing, core: Core | None) -> list[str]:
    """Why this result cannot be ranked; empty when nothing stands against it so far."""
    reasons = []
    if not is_ranked(track):
        reasons.append(f"track {track} is not ranked")
    if stop.status != "complete":
        reasons.append(f"the run is {stop.status}")
    if not timing.within_budget:
        reasons.append("over the time budget")
    if core is None:
        reasons.append("no CORE score")
    elif core.bundle != "core":
        reasons.append("not scored on the CORE bundle")
    elif core.partial or len(core.tasks) != FULL_CORE_TASKS:
        reasons.append("CORE is partial")
    return reasons


def _artifact(artifact: Artifacts | None) -> Artifact | None:
    if artifact is None:
        return None
    files = tuple(ArtifactFile(file.path, file.bytes, file.sha256) for file in artifact.files)
    return Artifact(artifact.folder, artifact.digest, files)


def _seconds(start: Event[Data], end: Event[Data]) -> float:
    return float(round((end.t_ns - start.t_ns) / 1e9, 3))

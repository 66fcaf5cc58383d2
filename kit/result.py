"""The result of a run, built from its log and from files whose digests the log holds.

Nothing here asks the trainer: its reports are read only as the supervisor stored them, every figure
is recomputed (`verify` does the same again), and what is not known is null with a reason.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.core_eval.likelihood import mean_likelihood
from kit.core_eval.naming import is_core
from kit.errors import KitError
from kit.recipe import parse_recipe
from kit.run.limits import MAX_RESULT_NOTES
from kit.run_log import LOG_KIND
from kit.timing import utc_from_ms
from kit.trust.chain import Chain, read_chain
from kit.trust.digest import sha256_file
from kit.trust.sign import result_id

SCHEMA_VERSION = 1
NANOCHAT_SKIPPED_STEPS = 10  # nanochat's own training time leaves these out
_SHORTEST_STEP_S = 1e-6  # what a trainer rounds to; a rate over less has no meaning
Event = dict[str, Any]


@dataclass
class Story:
    """A run's log, taken apart by what its events mean."""

    chain: Chain
    header: Event
    inputs: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, Any] = field(default_factory=dict)
    telemetry: dict[str, Any] = field(default_factory=dict)
    environment_end: dict[str, Any] = field(default_factory=dict)
    run_start: Event | None = None
    run_stop: Event | None = None
    resumes: list[Event] = field(default_factory=list)
    starts: dict[str, list[Event]] = field(default_factory=dict)
    stops: dict[str, list[Event]] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    reports: dict[str, list[Event]] = field(default_factory=dict)  # by stage
    _found: dict[tuple[str, str], list[Event]] = field(default_factory=dict, repr=False)
    _steps: dict[str, list[Event]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, run: Path) -> Story:
        """Reads RUN/events.jsonl. Raises `KitError` when it has no header."""
        return cls.from_chain(read_chain(run / "events.jsonl", LOG_KIND))

    @classmethod
    def from_chain(cls, chain: Chain) -> Story:
        records = chain.records
        if not records or records[0].get("ev") != "header":
            raise KitError("the event log does not begin with a header")
        story = cls(chain, records[0])
        stage = ""
        for event in records[1:]:
            data = event["data"]
            match event["ev"]:
                case "inputs":
                    story.inputs = data
                case "fingerprint":
                    story.fingerprints[data["when"]] = data["fingerprint"]
                case "telemetry":
                    story.telemetry = data
                case "end":
                    story.environment_end = data["environment"]
                case "run_start":
                    story.run_start = event
                case "run_stop":
                    story.run_stop = event
                case "resume":
                    story.resumes.append(event)
                case "stage_start":
                    stage = data["stage"]
                    story.starts.setdefault(stage, []).append(event)
                case "stage_stop":
                    story.stops.setdefault(data["stage"], []).append(event)
                case "artifacts":
                    story.artifacts[data["stage"]] = data
                case _:
                    story.reports.setdefault(stage, []).append(event)
        return story

    def of(self, stage: str, ev: str) -> list[Event]:
        """What `stage` reported as `ev`, in order."""
        if (stage, ev) not in self._found:
            found = [event for event in self.reports.get(stage, []) if event["ev"] == ev]
            self._found[stage, ev] = found
        return self._found[stage, ev]

    def steps(self, stage: str) -> list[Event]:
        """The `step` events that count: who goes back to a step gives up all from there on."""
        if stage not in self._steps:
            kept: list[Event] = []
            for event in self.of(stage, "step"):
                while kept and kept[-1]["data"]["step"] >= event["data"]["step"]:
                    kept.pop()
                kept.append(event)
            self._steps[stage] = kept
        return self._steps[stage]


def build_result(run: Path) -> dict[str, Any]:
    """The unsigned result of the run in folder `run`."""
    story = Story.read(run)
    header = story.header["data"]
    recipe_text = (run / "recipe.toml").read_text()
    recipe = parse_recipe(recipe_text, folder=run, label="recipe.toml")
    timing = timing_section(story, recipe.budget_s)
    quality = quality_section(story, run)
    stop = story.run_stop["data"] if story.run_stop else {"status": "failed", "reason": "killed"}
    telemetry_path = run / "telemetry.jsonl"
    return {
        "schema_version": SCHEMA_VERSION,
        "kit": header["kit"],
        "image": header["image"],
        "recipe": {
            "name": recipe.name,
            "track": recipe.track,
            "division": recipe.division,
            "digest": recipe.digest,
            "text": recipe_text,
        },
        "seed": header["seed"],
        "data": data_section(story),
        "hardware": {
            "before": story.fingerprints.get("before"),
            "after": story.fingerprints.get("after"),
        },
        "software": header["software"],
        "timing": timing,
        "training": training_section(story),
        "checkpoint": {
            name: _artifact(story.artifacts.get(stage))
            for name, stage in (("tokenizer", "tokenizer"), ("base", "pretrain"), ("chat", "sft"))
        },
        "quality": quality,
        "energy": energy_section(story),
        "telemetry": {
            "digest": sha256_file(telemetry_path) if telemetry_path.is_file() else None,
            "summary": story.telemetry or None,
        },
        "log": {
            "head": story.chain.head,
            "count": story.chain.count,
            "bytes": story.chain.bytes,
        },
        "environment": environment_section(story),
        "runs": runs_section(story),
        "submitter": {
            "public_key": header["signer"]["public_key"],
            "key_created_for_this_work_folder": header["signer"]["created"],
            "identities": header["signer"].get("identities", {}),
        },
        "claims": {
            "status": stop["status"],
            "reason": stop.get("reason"),
            "message": stop.get("message"),
            "stage": stop.get("stage"),
            "ranked": not (why := reasons_not_ranked(recipe.track, stop, timing, quality)),
            "why_not_ranked": why,
        },
        "notes": notes_section(story, recipe.stages),
        "signatures": [],
    }


def notes_section(story: Story, stages: Iterable[str]) -> list[str]:
    """The first notes of the stages, and how many more the log has."""
    notes = [event["data"]["text"] for stage in stages for event in story.of(stage, "note")]
    if len(notes) <= MAX_RESULT_NOTES:
        return notes
    kept = notes[: MAX_RESULT_NOTES - 1]
    return [*kept, f"{len(notes) - len(kept):,} more notes are in the log"]


def timing_section(story: Story, budget_s: float) -> dict[str, Any]:
    """Seconds by the supervisor's clock, and nanochat's own way of counting beside them."""
    start = story.run_start
    end = story.run_stop or story.chain.records[-1]
    total_s = _seconds(start, end) if start else 0.0
    stages = []
    for stage, starts in story.starts.items():
        stops = story.stops.get(stage, [])
        # From the first start to the last stop: time between attempts is not forgiven.
        elapsed_s = _seconds(starts[0], stops[-1]) if stops else None
        status = stops[-1]["data"]["status"] if stops else "killed"
        stages.append(
            {"stage": stage, "status": status, "attempts": len(starts), "elapsed_s": elapsed_s}
        )
    steps = [event["data"] for event in story.steps("pretrain")]
    durations = [step["dt_s"] for step in steps if isinstance(step.get("dt_s"), int | float)]
    return {
        "started_at": utc_from_ms(start["wall_ms"]) if start else None,
        "total_s": total_s,
        "budget_s": budget_s,
        "within_budget": total_s <= budget_s,
        "stages": stages,
        "pretrain_s": next((s["elapsed_s"] for s in stages if s["stage"] == "pretrain"), None),
        "steps_s": round(sum(durations), 3) if durations else None,
        "nanochat_s": round(sum(durations[NANOCHAT_SKIPPED_STEPS:]), 3) if durations else None,
        "resumes": len(story.resumes),
        "downtime_s": round(sum(event["data"]["downtime_s"] for event in story.resumes), 3),
        "reboots": sum(bool(event["data"]["rebooted"]) for event in story.resumes),
        "clocks": clock_deviations(story.chain.records),
    }


def clock_deviations(records: Iterable[Event]) -> dict[str, float | None]:
    """How far each other clock ran apart from the run's, over each boot, at most; as a share.

    Suspend shows as a deviation of `raw` and `syscall`, which stand still then, not of `uptime`.
    """
    worst: dict[str, float | None] = {"raw": None, "syscall": None, "uptime": None, "wall": None}
    first: Event | None = None
    last: Event | None = None
    for event in records:
        if event["ev"] == "resume" and event["data"]["rebooted"]:
            _compare_clocks(first, last, worst)
            first = None
        first = first or event
        last = event
    _compare_clocks(first, last, worst)
    return worst


def _compare_clocks(
    first: Event | None, last: Event | None, worst: dict[str, float | None]
) -> None:
    if first is None or last is None or last["t_ns"] - first["t_ns"] < 1_000_000_000:
        return
    span = last["t_ns"] - first["t_ns"]
    for name, key, unit in (
        ("raw", "raw_ns", 1),
        ("syscall", "syscall_ns", 1),
        ("uptime", "uptime_ms", 10**6),
    ):
        begun, ended = first["clocks"][key], last["clocks"][key]
        if begun is not None and ended is not None:
            _keep_worst(worst, name, (ended - begun) * unit, span)
    _keep_worst(worst, "wall", (last["wall_ms"] - first["wall_ms"]) * 10**6, span)


def _keep_worst(worst: dict[str, float | None], name: str, counted: int, span: int) -> None:
    deviation = round(counted / span - 1, 6)
    previous = worst[name]
    if previous is None or abs(deviation) > abs(previous):
        worst[name] = deviation


def training_section(story: Story) -> dict[str, Any]:
    """What pretraining did, from the steps that count."""
    steps = [event["data"] for event in story.steps("pretrain")]
    model = story.of("pretrain", "model")
    facts = model[-1]["data"] if model else {}
    tokens = steps[-1]["tokens"] if steps else 0
    flops_per_token = facts.get("flops_per_token")
    durations = [step["dt_s"] for step in steps if isinstance(step.get("dt_s"), int | float)]
    tail = durations[NANOCHAT_SKIPPED_STEPS:] or durations
    per_step = tokens / len(steps) if steps else 0
    peaks = [event["data"]["peak_bytes"] for event in story.of("pretrain", "memory")]
    return {
        "parameters": facts.get("parameters"),
        "flops_per_token": flops_per_token,
        "steps": len(steps),
        "steps_done_again": len(story.of("pretrain", "step")) - len(steps),
        "tokens": tokens,
        "flops": _flops(steps, flops_per_token),
        "first_loss": steps[0]["loss"] if steps else None,
        "final_loss": steps[-1]["loss"] if steps else None,
        "tokens_per_s": _rate(per_step, statistics.median(tail)) if tail else None,
        "mfu": facts.get("mfu"),
        "peak_memory_bytes": max(peaks) if peaks else None,
    }


def _rate(tokens: float, seconds: float) -> float | None:
    """Tokens a second; None where the trainer reports steps that took no time."""
    return round(tokens / seconds, 1) if seconds >= _SHORTEST_STEP_S else None


def _flops(steps: list[dict[str, Any]], flops_per_token: float | None) -> float | None:
    """Of all steps; the trainer's own sum where a token does not always cost the same."""
    summed = steps[-1].get("flops") if steps else None
    if summed is not None:
        return float(summed)
    return (
        float(flops_per_token * (steps[-1]["tokens"] if steps else 0)) if flops_per_token else None
    )


def quality_section(story: Story, run: Path) -> dict[str, Any]:
    """Scores, recomputed from per-example outcomes in files that the log's digests bind."""
    bpb = [e["data"] for e in story.of("pretrain", "eval") if e["data"]["name"] == "val_bpb"]
    sft = [e["data"] for e in story.of("sft", "eval") if e["data"]["name"] == "sft_val_loss"]
    return {
        "val_bpb": {"first": bpb[0]["value"], "last": bpb[-1]["value"]} if bpb else None,
        "sft_loss": {"first": sft[0]["value"], "last": sft[-1]["value"]} if sft else None,
        "core": core_section(_evaluation(story, run, "core")),
        "chat": chat_section(_evaluation(story, run, "chat_eval")),
    }


def _evaluation(story: Story, run: Path, stage: str) -> dict[str, Any] | None:
    artifact = story.artifacts.get(stage)
    if artifact is None:
        return None
    path = run / artifact["folder"] / artifact["files"][0]["path"]
    document = json.loads(path.read_bytes())
    assert isinstance(document, dict)
    return {**document, "digest": artifact["files"][0]["sha256"]}


def core_section(document: dict[str, Any] | None) -> dict[str, Any] | None:
    """CORE from eval/core.json: accuracy from the outcomes, centred by the baselines, averaged."""
    if document is None:
        return None
    tasks = []
    for task in document["tasks"]:
        outcomes: str = task["outcomes"]  # one 0 or 1 an example
        accuracy = outcomes.count("1") / len(outcomes)
        baseline = 0.01 * task["baseline"]
        tasks.append(
            {
                "task": task["label"],
                "n": len(outcomes),
                "accuracy": accuracy,
                "centered": (accuracy - baseline) / (1 - baseline),
            }
        )
    interval = document["interval"]
    likelihood = mean_likelihood(document["tasks"])  # earlier kits did not measure it
    return {
        **({"answer_bpb": likelihood.value} if likelihood else {}),
        "value": sum(task["centered"] for task in tasks) / len(tasks),
        "partial": document["partial"],
        "bundle": document["bundle"]["kind"],
        "bundle_digest": document["bundle"]["digest"],
        "interval": [interval["low"], interval["high"]],
        "tasks": tasks,
        "digest": document["digest"],
    }


def chat_section(document: dict[str, Any] | None) -> dict[str, Any] | None:
    """The chat score from eval/chat.json: mean centred accuracy, and how often turns were ended.

    A task holds `outcomes` (one 0 or 1 a question), `ended` (the same, empty where nothing is
    generated) and `baseline`, a guess's share of right answers; null for tasks without right ones.
    """
    if document is None:
        return None
    tasks = []
    for name, task in document["tasks"].items():
        outcomes, ended, baseline = task["outcomes"], task["ended"], task["baseline"]
        accuracy = sum(outcomes) / len(outcomes) if outcomes and baseline is not None else None
        tasks.append(
            {
                "task": name,
                "n": len(outcomes),
                "accuracy": accuracy,
                "centered": None if accuracy is None else (accuracy - baseline) / (1 - baseline),
                "ended_rate": sum(ended) / len(ended) if ended else None,
            }
        )
    scored = [task["centered"] for task in tasks if task["centered"] is not None]
    ended_all = [flag for task in document["tasks"].values() for flag in task["ended"]]
    return {
        "value": sum(scored) / len(scored) if scored else None,
        "ended_rate": sum(ended_all) / len(ended_all) if ended_all else None,
        "tasks": tasks,
        "digest": document["digest"],
    }


def energy_section(story: Story) -> dict[str, Any]:
    """Energy of the run in kWh, as telemetry could read it, and its cost at a stated price."""
    summary = story.telemetry.get("energy") if story.telemetry else None
    if not summary:
        return {"kwh": None, "source": None, "reason": "no telemetry"}
    price = story.header["data"].get("price")
    if not price:
        return dict(summary)
    kwh = summary["kwh"]
    cost = None if kwh is None else round(kwh * price["per_kwh"], 4)
    stated = {"price_per_kwh": price["per_kwh"], "currency": price["currency"], "cost": cost}
    return {**summary, **stated}


def runs_section(story: Story) -> dict[str, Any]:
    """The run's name, and its place in a registered group."""
    header = story.header["data"]
    group = header.get("group")
    return {
        "id": header["run"],
        "group": result_id(group["registration"]) if group else None,
        "index": group["index"] if group else None,
    }


def environment_section(story: Story) -> dict[str, Any]:
    """What was around the run, at its start, and the traffic while it went on."""
    before = story.header["data"]["environment"]
    after = story.environment_end

    def difference(name: str) -> int | None:
        if story.resumes or before[name] is None or after.get(name) is None:
            return None  # counters do not reach over a restart of the container or the machine
        counted = int(after[name] - before[name])
        return counted if counted >= 0 else None  # an interface went away, and its counters with it

    return {
        "rx_bytes": difference("rx_bytes"),
        "tx_bytes": difference("tx_bytes"),
        "ld_preload": before["ld_preload"],
        "time_namespace": before["time_namespace"],
        "container": before["container"],
        # Early logs do not say it.
        **{key: before[key] for key in ("separate_trainer",) if key in before},
    }


def data_section(story: Story) -> dict[str, Any]:
    """Digest and size of each input; the file lists stay in the log."""
    return {
        name: (
            {"digest": part["digest"], "bytes": part["bytes"], "files": len(part["files"])}
            if (part := story.inputs.get(name))
            else None
        )
        for name in ("data", "sft", "chat_eval", "core")
    }


def reasons_not_ranked(
    track: str, stop: dict[str, Any], timing: dict[str, Any], quality: dict[str, Any]
) -> list[str]:
    """Why this result cannot be ranked; empty when nothing stands against it so far."""
    reasons = []
    if track != "rtx4090-24h":
        reasons.append(f"track {track} is not ranked")
    if stop["status"] != "complete":
        reasons.append(f"the run is {stop['status']}")
    if not timing["within_budget"]:
        reasons.append("over the time budget")
    core = quality["core"]
    if core is None:
        reasons.append("no CORE score")
    elif core["bundle"] != "core":
        reasons.append("not scored on the CORE bundle")
    elif not is_core(core):
        reasons.append("CORE is partial")
    return reasons


def _artifact(artifact: dict[str, Any] | None) -> dict[str, Any] | None:
    if artifact is None:
        return None
    return {key: artifact[key] for key in ("folder", "digest", "files")}


def _seconds(start: Event, end: Event) -> float:
    return float(round((end["t_ns"] - start["t_ns"]) / 1e9, 3))

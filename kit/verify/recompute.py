"""The figures of a result, computed from its log by `verify` alone.

`kit.result` writes a result; nothing here is shared with it, so that a mistake there shows as a
failed check here. Both follow the same definitions (schema/result.schema.json).
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from kit.events import Environment, Eval, Event, Memory, Model, Note, RunStop, Step
from kit.run_log import RunLog
from kit.tracks import is_ranked
from kit.trust.canonical import canonical_bytes
from kit.trust.digest import sha256_bytes

Document = dict[str, Any]
WARM_UP_STEPS = 10  # nanochat leaves them out of its training time
CORE_TASK_COUNT = 22
MAX_NOTES = 1_000
SHORTEST_STEP_S = 1e-6


def seconds(begin: Event[Any], end: Event[Any]) -> float:
    """From one event to another on the run's clock, to the millisecond."""
    return round((end.t_ns - begin.t_ns) * 1e-9, 3)


def timing(log: RunLog, budget_s: float) -> Document:
    """The `timing` section."""
    total_s = seconds(log.run_start, log.run_stop or log.last) if log.run_start else 0.0
    stages = [_stage(log, name) for name, stage in log.stages.items() if stage.starts]
    pretrain_s = [stage["elapsed_s"] for stage in stages if stage["stage"] == "pretrain"]
    step_s = [step.data.dt_s for step in log.steps() if step.data.dt_s is not None]
    down_s = 0.0
    for event in log.resumes:
        down_s += event.data.downtime_s
    return {
        "started_at": _utc(log.run_start.wall_ms) if log.run_start else None,
        "total_s": total_s,
        "budget_s": budget_s,
        "within_budget": not total_s > budget_s,
        "stages": stages,
        "pretrain_s": pretrain_s[0] if pretrain_s else None,
        "steps_s": round(math.fsum(step_s), 3) if step_s else None,
        "nanochat_s": round(math.fsum(step_s[WARM_UP_STEPS:]), 3) if step_s else None,
        "resumes": len(log.resumes),
        "downtime_s": round(down_s, 3),
        "reboots": len([event for event in log.resumes if event.data.rebooted]),
        "clocks": clocks(log),
    }


def _stage(log: RunLog, name: str) -> Document:
    stage = log.stages[name]
    ended = stage.stops[-1] if stage.stops else None
    return {
        "stage": name,
        "status": ended.data.status if ended else "killed",
        "attempts": len(stage.starts),
        "elapsed_s": seconds(stage.starts[0], ended) if ended else None,
    }


def _utc(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds // 1000, tz=UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def clocks(log: RunLog) -> Document:
    """Of each other clock, the largest relative deviation from the run's clock within a boot."""
    edges: list[tuple[Event[Any], Event[Any]]] = []
    begin = log.events[0]
    for before, event in zip(log.events, log.events[1:], strict=False):
        if event.ev == "resume" and event.data.rebooted:  # type: ignore[attr-defined]
            edges.append((begin, before))
            begin = event
    edges.append((begin, log.last))
    found: dict[str, list[float]] = {"raw": [], "syscall": [], "uptime": [], "wall": []}
    for first, last in edges:
        span_ns = last.t_ns - first.t_ns
        if span_ns < 10**9:
            continue
        counts = {
            "raw": (first.clocks.raw_ns, last.clocks.raw_ns, 1),
            "syscall": (first.clocks.syscall_ns, last.clocks.syscall_ns, 1),
            "uptime": (first.clocks.uptime_ms, last.clocks.uptime_ms, 1_000_000),
            "wall": (first.wall_ms, last.wall_ms, 1_000_000),
        }
        for name, (start, end, unit) in counts.items():
            if start is not None and end is not None:
                found[name].append(round((end - start) * unit / span_ns - 1, 6))
    return {name: max(values, key=abs) if values else None for name, values in found.items()}


def training(log: RunLog) -> Document:
    """The `training` section."""
    steps = [event.data for event in log.steps()]
    models = log.of("pretrain", Model)
    model = models[-1].data if models else None
    per_token = model.flops_per_token if model else None
    tokens = steps[-1].tokens if steps else 0
    peaks = [event.data.peak_bytes for event in log.of("pretrain", Memory)]
    return {
        "parameters": model.parameters if model else None,
        "flops_per_token": per_token,
        "steps": len(steps),
        "steps_done_again": len(log.of("pretrain", Step)) - len(steps),
        "tokens": tokens,
        "flops": _flops(steps, per_token),
        "first_loss": steps[0].loss if steps else None,
        "final_loss": steps[-1].loss if steps else None,
        "tokens_per_s": _speed(steps),
        "mfu": model.mfu if model else None,
        "peak_memory_bytes": max(peaks, default=None),
    }


def _flops(steps: list[Step], per_token: float | None) -> float | None:
    if steps and steps[-1].flops is not None:
        return float(steps[-1].flops)
    if not per_token:
        return None
    return float(per_token) * steps[-1].tokens if steps else 0.0


def _speed(steps: list[Step]) -> float | None:
    """Tokens of the mean step over the median step's seconds, without the first ten steps."""
    times = [step.dt_s for step in steps if step.dt_s is not None]
    late = sorted(times[WARM_UP_STEPS:] or times)
    if not late:
        return None
    middle = len(late) // 2
    median = late[middle] if len(late) % 2 else (late[middle - 1] + late[middle]) / 2
    if median < SHORTEST_STEP_S:
        return None
    return round(steps[-1].tokens / len(steps) / median, 1)


def evaluated(log: RunLog, stage: str, name: str) -> Document | None:
    """First and last value of an evaluation in training."""
    values = [event.data.value for event in log.of(stage, Eval) if event.data.name == name]
    return {"first": values[0], "last": values[-1]} if values else None


def core(scored: Document) -> Document:
    """The `quality.core` section from eval/core.json (with its `digest`)."""
    tasks = []
    for task in scored["tasks"]:
        right = sum(answer == "1" for answer in task["outcomes"])
        accuracy, guess = right / len(task["outcomes"]), task["baseline"] / 100
        tasks.append(
            {
                "task": task["label"],
                "n": len(task["outcomes"]),
                "accuracy": accuracy,
                "centered": (accuracy - guess) / (1 - guess),
            }
        )
    likelihood = answer_bpb(scored["tasks"])
    return {
        **({} if likelihood is None else {"answer_bpb": likelihood}),
        "value": math.fsum(task["centered"] for task in tasks) / len(tasks),
        "partial": scored["partial"],
        "bundle": scored["bundle"]["kind"],
        "bundle_digest": scored["bundle"]["digest"],
        "interval": [scored["interval"]["low"], scored["interval"]["high"]],
        "tasks": tasks,
        "digest": scored["digest"],
    }


def answer_bpb(tasks: list[Document]) -> float | None:
    """Bits per byte of the right answers, the mean over tasks; None for files of earlier kits."""
    values = []
    for task in tasks:
        if "answer_bits" not in task:
            return None
        both = list(zip(task["answer_bits"], task["answer_bytes"], strict=True))
        bits = [bits for bits, _ in both if bits is not None]
        size = sum(size for bits, size in both if bits is not None)
        if bits:
            values.append(math.fsum(bits) / size)
    return math.fsum(values) / len(values) if values else None


def chat(scored: Document) -> Document:
    """The `quality.chat` section from eval/chat.json (with its `digest`)."""
    tasks = [_chat_task(name, task) for name, task in scored["tasks"].items()]
    centered = [task["centered"] for task in tasks if task["centered"] is not None]
    turns = [ended for task in scored["tasks"].values() for ended in task["ended"]]
    return {
        "value": _mean(centered),
        "ended_rate": _mean(turns),
        "tasks": tasks,
        "digest": scored["digest"],
    }


def _chat_task(name: str, task: Document) -> Document:
    guess = task["baseline"]
    accuracy = None if guess is None else _mean(task["outcomes"])
    return {
        "task": name,
        "n": len(task["outcomes"]),
        "accuracy": accuracy,
        "centered": None if accuracy is None else (accuracy - guess) / (1 - guess),
        "ended_rate": _mean(task["ended"]),
    }


def _mean(values: list[Any]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def energy(log: RunLog) -> Document:
    """The `energy` section."""
    stated = log.telemetry.energy if log.telemetry else None
    if not stated:
        return {"kwh": None, "source": None, "reason": "no telemetry"}
    price = log.header.price
    if price is None:
        return stated
    kwh = stated["kwh"]
    return {
        **stated,
        "price_per_kwh": price.per_kwh,
        "currency": price.currency,
        "cost": round(price.per_kwh * kwh, 4) if kwh is not None else None,
    }


def data(log: RunLog) -> Document:
    """The `data` section."""
    found: Document = dict.fromkeys(("data", "sft", "chat_eval", "core"))
    for name, part in log.inputs.items():
        found[name] = {"digest": part.digest, "bytes": part.bytes, "files": len(part.files)}
    return found


def environment(log: RunLog) -> Document:
    """The `environment` section."""
    before = log.header.environment
    after = log.end.environment if log.end else None
    found = {
        "rx_bytes": _traffic(log, before.rx_bytes, after, "rx_bytes"),
        "tx_bytes": _traffic(log, before.tx_bytes, after, "tx_bytes"),
        "ld_preload": before.ld_preload,
        "time_namespace": before.time_namespace,
        "container": before.container,
    }
    if before.separate_trainer is not None:  # logs of early kits do not have it
        found["separate_trainer"] = before.separate_trainer
    return found


def _traffic(log: RunLog, began: int | None, after: Environment | None, name: str) -> int | None:
    """Bytes during the run; None where a resume or a lost interface broke the count."""
    ended = None if after is None else getattr(after, name)
    if log.resumes or began is None or ended is None or ended < began:
        return None
    return int(ended - began)


def runs(log: RunLog) -> Document:
    """The `runs` section."""
    group = log.header.group
    if group is None:
        return {"id": log.header.run, "group": None, "index": None}
    # A document's id: the digest of what its signature covers.
    unsigned = {key: value for key, value in group.registration.items() if key != "signatures"}
    digest = sha256_bytes(canonical_bytes(unsigned)).removeprefix("sha256:")
    return {"id": log.header.run, "group": digest[:16], "index": group.index}


def notes(log: RunLog, stages: tuple[str, ...]) -> list[str]:
    """The `notes` section: at most MAX_NOTES lines, the last one saying how many were left out."""
    found = [event.data.text for stage in stages for event in log.of(stage, Note)]
    surplus = len(found) - MAX_NOTES
    if surplus <= 0:
        return found
    return [*found[: MAX_NOTES - 1], f"{surplus + 1:,} more notes are in the log"]


def claims(log: RunLog, track: str, within_budget: bool, scored: Document | None) -> Document:
    """The `claims` section; `scored` is the `quality.core` section."""
    stop = log.run_stop.data if log.run_stop else RunStop("failed", "killed")
    why = []
    if not is_ranked(track):
        why.append(f"track {track} is not ranked")
    if stop.status != "complete":
        why.append(f"the run is {stop.status}")
    if not within_budget:
        why.append("over the time budget")
    if scored is None:
        why.append("no CORE score")
    elif scored["bundle"] != "core":
        why.append("not scored on the CORE bundle")
    elif scored["partial"] or len(scored["tasks"]) != CORE_TASK_COUNT:
        why.append("CORE is partial")
    return {
        "status": stop.status,
        "reason": stop.reason,
        "message": stop.message,
        "stage": stop.stage,
        "ranked": not why,
        "why_not_ranked": why,
    }

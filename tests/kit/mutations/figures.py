"""V07 and V08: figures that do not follow from the log, and holes in it."""

from __future__ import annotations

import json
from pathlib import Path

import tamper
from tamper import Draft, gpu_run

from mutations.registry import edit_json, mutation, typed

# --- V07: figures ---

typed("typed CORE", "V07 V29", "quality", "core", "value", value=0.2571)
typed("typed accuracy of a task", "V07 V29", "quality", "core", "tasks", 3, "accuracy", value=0.9)
typed("typed val_bpb", "V07", "quality", "val_bpb", "last", value=0.81)
typed("typed chat score", "V07", "quality", "chat", "value", value=0.5)
typed("typed total time", "V07", "timing", "total_s", value=600.0)
typed("typed stage time", "V07", "timing", "stages", 1, "elapsed_s", value=600.0)
typed("typed downtime", "V07", "timing", "downtime_s", value=0.0, base="resumed")
typed("typed tokens a second", "V07", "training", "tokens_per_s", value=99_999.0)
typed("typed steps", "V07", "training", "steps", value=100)
typed("typed FLOPs", "V07", "training", "flops", value=1e20)
typed("typed parameters", "V07", "training", "parameters", value=124_000_000)
typed("typed final loss", "V07", "training", "final_loss", value=2.0)
typed("a failed run called complete", "V07", "claims", "status", value="complete", base="failed")
typed("called ranked", "V07", "claims", "ranked", value=True, base="cpu")
typed("another run's name", "V07", "runs", "id", value="d20-20260922-120000-abcd")
typed("typed traffic", "V07", "environment", "rx_bytes", value=0)
typed("a note added", "V07", "notes", value=lambda notes: [*notes, "approved"])
typed("partial CORE called whole", "V07 V29", "quality", "core", "partial", value=True)


@mutation("a narrower interval in CORE's own file", "V07 V29", kind="draft")
def _(draft: Draft) -> None:
    document = json.loads(draft.files["eval/core.json"])
    low, high = document["interval"]["low"], document["interval"]["high"]
    document["interval"] = {"low": low + (high - low) / 4, "high": high}
    draft.files["eval/core.json"] = json.dumps(document).encode()


@mutation("too many values for a result", "V01", kind="file")
def _(folder: Path) -> None:
    edit_json(folder, lambda result: result.update(notes=[""] * 20_000))


# --- V08: gaps ---


@mutation("ten steps cut out", "V08 V28", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step", "pretrain")[20:30]:
        draft.events.remove(event)


@mutation("five silent minutes", "V08 V28", kind="draft")
def _(draft: Draft) -> None:
    step = draft.of("step", "pretrain")[24]
    at_ns = step["t_ns"]
    pause = 300
    for event in draft.events[draft.events.index(step) :]:
        event["t_ns"] += pause * 10**9
        event["wall_ms"] += pause * 1000
        event["clocks"]["raw_ns"] += pause * 10**9
        event["clocks"]["syscall_ns"] += pause * 10**9
        event["clocks"]["uptime_ms"] += pause * 1000
    index = next(i for i, r in enumerate(draft.telemetry) if r["t_ms"] * 10**6 > at_ns)
    model = draft.telemetry[index]
    for record in draft.telemetry[index:]:
        record["t_ms"] += pause * 1000
        record["wall_ms"] += pause * 1000
        record["gpu_energy_j"] += 415.0 * pause
    draft.telemetry[index:index] = [
        {
            **model,
            "t_ms": model["t_ms"] - (pause - i) * 1000,
            "wall_ms": model["wall_ms"] - (pause - i) * 1000,
            "gpu_power_w": 415.0,
            "gpu_energy_j": model["gpu_energy_j"] - 415.0 * (pause - i),
        }
        for i in range(pause)
    ]


@mutation("five minutes without a step or a sample", "V08 V15", kind="draft")
def _(draft: Draft) -> None:
    stalled = gpu_run(stall_at=20, stall_s=300.0)
    draft.events, draft.telemetry = stalled.events, stalled.telemetry
    draft.recipe, draft.files = stalled.recipe, stalled.files


@mutation("a reboot that is not owned up to", "V08", kind="draft", base="resumed")
def _(draft: Draft) -> None:
    draft.of("resume")[0]["data"]["boot"] = tamper.SECOND_BOOT


@mutation("downtime forgiven", "V08", kind="draft", base="resumed")
def _(draft: Draft) -> None:
    draft.of("resume")[0]["data"]["downtime_s"] = 0.5


@mutation("an attempt left out of the count", "V08", kind="draft", base="resumed")
def _(draft: Draft) -> None:
    for event in draft.of("stage_start", "pretrain")[1:]:
        event["data"]["attempt"] = 3


@mutation("a resume that skips twenty steps", "V08 V28", kind="draft", base="long, resumed")
def _(draft: Draft) -> None:
    resume = draft.events.index(draft.of("resume")[0])
    for event in draft.events[resume:]:
        if event["ev"] == "step" and event["data"]["step"] < 57:
            event["data"]["drop"] = True
    draft.events = [event for event in draft.events if "drop" not in event["data"]]

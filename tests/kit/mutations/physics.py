"""V13 to V16: what the machine cannot have done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tamper import Draft, scale, step_times

from mutations.registry import mutation, typed

# --- V13, V14: physics ---


@mutation("all times halved, on every clock", "V13 V28 V29", kind="draft")
def _(draft: Draft) -> None:
    scale(draft, 0.5, "twrsu")
    step_times(draft, 0.5)


@mutation("times halved, with pauses written in to hide it", "V13", kind="draft", base="long")
def _(draft: Draft) -> None:
    """Every second of the day is accounted for; only the steps themselves are impossible."""
    steps = draft.of("step", "pretrain")
    for block in range(0, len(steps) - 10, 10):
        start = steps[block]["t_ns"]
        for step in steps[block + 1 : block + 10]:
            earlier = (step["t_ns"] - start) // 2
            step["t_ns"] -= earlier
            step["wall_ms"] -= earlier // 10**6
            step["clocks"]["raw_ns"] -= earlier
            step["clocks"]["syscall_ns"] -= earlier
            step["clocks"]["uptime_ms"] -= earlier // 10**7 * 10
    saved = draft.of("checkpoint")[0]
    for step in steps[10::10]:
        stamps = {name: step[name] for name in ("t_ns", "wall_ms", "clocks")}
        draft.events.insert(draft.events.index(step), {**saved, **stamps})
    draft.events.sort(key=lambda event: event["t_ns"])
    step_times(draft, 0.5)


@mutation("a model that costs less than it is large", "V13", kind="draft")
def _(draft: Draft) -> None:
    draft.of("model")[0]["data"]["flops_per_token"] /= 3


@mutation("another model than the recipe's", "V28", kind="draft")
def _(draft: Draft) -> None:
    draft.of("model")[0]["data"]["config"]["n_layer"] = 12


@mutation("steps evenly spaced", "V14", kind="draft")
def _(draft: Draft) -> None:
    steps = draft.of("step", "pretrain")
    start = steps[0]["t_ns"]
    spacing = (steps[-1]["t_ns"] - start) // (len(steps) - 1)
    for index, event in enumerate(steps):
        shift = start + index * spacing - event["t_ns"]
        event["t_ns"] += shift
        event["wall_ms"] += shift // 10**6
        event["clocks"]["raw_ns"] += shift
        event["clocks"]["syscall_ns"] += shift
        event["clocks"]["uptime_ms"] += shift // 10**6
    draft.events.sort(key=lambda event: event["t_ns"])


@mutation("step times without jitter", "V14", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step"):
        event["data"]["dt_s"] = 11.6


@mutation("steps that took longer than the run", "V14", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step"):
        event["data"]["dt_s"] = round(event["data"]["dt_s"] * 1.5, 6)
        del event["data"]["cuda_s"]


@mutation("a step of negative duration", "V14", kind="draft")
def _(draft: Draft) -> None:
    draft.of("step")[20]["data"].update(dt_s=-11.6, cuda_s=-11.6)


# --- V15, V16: energy and settings ---


def telemetry_mutation(name: str, change: Callable[[Draft], Any], expected: str = "V15") -> None:
    mutation(name, expected, kind="draft")(change)


def every_sample(change: Callable[[dict[str, Any]], Any]) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        for record in draft.telemetry:
            if record["ev"] == "sample":
                change(record)

    return apply


def idle(record: dict[str, Any]) -> None:
    record["gpu_power_w"] = 31.0
    record["gpu_energy_j"] = 1e6 + record["t_ms"] * 0.031


def half_counter(record: dict[str, Any]) -> None:
    record["gpu_energy_j"] /= 2


def yesterday(record: dict[str, Any]) -> None:
    record["wall_ms"] -= 86_400_000


def overdriven(record: dict[str, Any]) -> None:
    record["gpu_power_w"] = 520.0 + record["t_ms"] % 7
    record["gpu_energy_j"] = 1e6 + record["t_ms"] * 0.523


telemetry_mutation("an idle card's power", every_sample(idle))
telemetry_mutation("counter and power disagree", every_sample(half_counter))
telemetry_mutation("yesterday's telemetry", every_sample(yesterday))
telemetry_mutation("more power than the card's limit", every_sample(overdriven), "V16")


@mutation("another card's telemetry", "V15", kind="draft")
def _(draft: Draft) -> None:
    draft.telemetry[0]["gpu_uuid_hash"] = "sha256:" + "5" * 64


@mutation("half of the telemetry", "V15", kind="draft")
def _(draft: Draft) -> None:
    del draft.telemetry[200:600]


@mutation("telemetry that runs backwards", "V15", kind="draft")
def _(draft: Draft) -> None:
    draft.telemetry[200], draft.telemetry[260] = draft.telemetry[260], draft.telemetry[200]


@mutation("no telemetry at all", "V15 V27", kind="draft")
def _(draft: Draft) -> None:
    draft.telemetry = []
    draft.events.remove(draft.of("telemetry")[0])


@mutation("typed peak temperature in the log", "V15", kind="draft")
def _(draft: Draft) -> None:
    draft.summary_edits["gap_s"] = 12.0


typed("typed kWh", "V15", "energy", "kwh", value=0.01)
typed("typed telemetry summary", "V15", "telemetry", "summary", "samples", value=86_400)


@mutation("a divided card (MIG)", "V16", kind="draft")
def _(draft: Draft) -> None:
    for found in draft.fingerprints():
        found["gpus"][0]["mig"] = True

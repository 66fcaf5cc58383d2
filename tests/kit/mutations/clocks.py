"""V06: clocks that disagree."""

from __future__ import annotations

from tamper import Draft, scale

from mutations.registry import mutation


@mutation("libfaketime at 0.98", "V06", kind="draft")
def _(draft: Draft) -> None:
    scale(draft, 0.98, "twr", telemetry=False)
    for event in draft.of("step"):
        event["data"]["dt_s"] *= 0.98
    for record in draft.telemetry:
        offset = record["wall_ms"] - record["t_ms"]
        record["t_ms"] = int(record["t_ms"] * 0.98)
        record["wall_ms"] = record["t_ms"] + offset


@mutation("a preloaded library", "V06", kind="draft")
def _(draft: Draft) -> None:
    environment = draft.header()["environment"]
    environment["ld_preload"] = True
    environment["clocks_from"]["clock_gettime"] = "libfaketime.so.1"


@mutation("a shifted time namespace", "V06", kind="draft")
def _(draft: Draft) -> None:
    draft.header()["environment"]["time_namespace"] = "boottime 86400 0"


@mutation("libc's clock and the system call's disagree", "V06", kind="draft")
def _(draft: Draft) -> None:
    scale(draft, 1.01, "s", telemetry=False)


@mutation("/proc/uptime stands still", "V06", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.events:
        event["clocks"]["uptime_ms"] = 100


@mutation("raw clocks run fast", "V06", kind="draft")
def _(draft: Draft) -> None:
    scale(draft, 1.02, "rs", telemetry=False)


@mutation("the run's clock loses a minute", "V06", kind="draft")
def _(draft: Draft) -> None:
    middle = draft.events.index(draft.of("step")[24])
    for event in draft.events[middle:]:
        event["t_ns"] -= 5 * 10**9


@mutation("the GPU's own clock counts twice the time", "V06", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step"):
        event["data"]["cuda_s"] *= 2


@mutation("a trainer whose clock runs slow beside its GPU's", "V06", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step"):
        event["data"]["dt_s"] *= 0.97

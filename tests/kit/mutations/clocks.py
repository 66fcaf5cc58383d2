"""V06: clocks that disagree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def clock_mutation(name: str, change: Callable[[Draft], Any], base: str = "4090") -> None:
    mutation(name, "V06", kind="draft", base=base)(change)


def null(draft: Draft, name: str, every: int) -> None:
    for event in draft.events[3::every]:
        event["clocks"][name] = None


def environment(draft: Draft, **fields: Any) -> None:
    draft.header()["environment"].update(fields)


def sources(draft: Draft, **fields: Any) -> None:
    draft.header()["environment"]["clocks_from"].update(fields)


def drift(draft: Draft, share: float) -> None:
    """The wall clock of events and telemetry draws away from the run's."""
    for event in draft.events:
        event["wall_ms"] += int(event["t_ns"] * share / 1e6)
    for record in draft.telemetry:
        record["wall_ms"] += int(record["t_ms"] * share)


def set_often(draft: Draft) -> None:
    for number, event in enumerate(draft.events):
        event["wall_ms"] += 700 * (number // 12)


def resumed(draft: Draft, **fields: Any) -> None:
    draft.of("resume")[0]["data"].update(fields)


def unwitnessed(draft: Draft) -> None:
    data = draft.of("resume")[0]["data"]
    del data["since_boot_s"], data["rtc_s"]


clock_mutation("one sample of uptime missing", lambda d: null(d, "uptime_ms", 10**6))
clock_mutation("every tenth sample of uptime missing", lambda d: null(d, "uptime_ms", 10))
clock_mutation("no uptime at all", lambda d: [e["clocks"].update(uptime_ms=None) for e in d.events])
clock_mutation("the system call's clock missing once", lambda d: null(d, "syscall_ns", 10**6))
clock_mutation(
    "no clock but libc's", lambda d: [e["clocks"].update(syscall_ns=None) for e in d.events]
)
clock_mutation("uptime a thousandth fast", lambda d: scale(d, 1.001, "u", telemetry=False))
clock_mutation("a wall clock that drifts by 1 %", lambda d: drift(d, 0.01))
clock_mutation("a wall clock that drifts by 0.3 %", lambda d: drift(d, 0.003))
clock_mutation("a wall clock that is set again and again", set_often)
clock_mutation("`clock_gettime` of a library", lambda d: sources(d, clock_gettime="libslow.so"))
clock_mutation("`syscall` of a library", lambda d: sources(d, syscall="libshim.so.1"))
clock_mutation("code without a file", lambda d: sources(d, syscall="anonymous memory"))
clock_mutation("a file mounted over uptime", lambda d: sources(d, **{"/proc/uptime": "tmpfs"}))
clock_mutation("no word of what answers", lambda d: environment(d, clocks_from=None))
clock_mutation("no word of the time namespace", lambda d: environment(d, time_namespace=None))
clock_mutation(
    "another time namespace after a resume",
    lambda d: resumed(d, time_namespace="boottime -3600 0"),
    base="resumed",
)
clock_mutation(
    "a machine up for longer than its reboot took",
    lambda d: resumed(d, since_boot_s=4000.0),
    base="rebooted",
)
clock_mutation(
    "a hardware clock that counted an hour more",
    lambda d: resumed(d, rtc_s=d.of("resume")[0]["data"]["rtc_s"] + 3600),
    base="rebooted",
)
clock_mutation("nothing but the wall clock over a reboot", unwitnessed, base="rebooted")

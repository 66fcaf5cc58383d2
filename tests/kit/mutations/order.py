"""V05: events in an order that no run has."""

from __future__ import annotations

import json
from typing import Any

import tamper
from tamper import Draft

from mutations.registry import mutation


def move(draft: Draft, event: dict[str, Any], index: int) -> None:
    """Puts an event elsewhere, with the time of its new place."""
    draft.events.remove(event)
    draft.events.insert(index, event)
    neighbour = draft.events[index - 1]
    for name in ("t_ns", "wall_ms", "clocks"):
        event[name] = neighbour[name]


@mutation("stop line moved before the last stage", "V05", kind="draft")
def _(draft: Draft) -> None:
    stage = next(e for e in draft.of("stage_start") if e["data"]["stage"] == "chat_eval")
    move(draft, draft.of("run_stop")[0], draft.events.index(stage))


@mutation("stop time set back, its line left in place", "V05", kind="draft")
def _(draft: Draft) -> None:
    stop = draft.of("run_stop")[0]
    stop["t_ns"] -= 400 * 10**9


@mutation("start line moved behind tokenizer training", "V05", kind="draft")
def _(draft: Draft) -> None:
    stop = draft.of("stage_stop")[0]
    move(draft, draft.of("run_start")[0], draft.events.index(stop))


@mutation("stop before start", "V01", kind="draft")
def _(draft: Draft) -> None:
    move(draft, draft.of("run_stop")[0], draft.events.index(draft.of("run_start")[0]))


@mutation("two starts", "V05", kind="draft")
def _(draft: Draft) -> None:
    stop = draft.events.index(draft.of("stage_stop")[0])
    again = json.loads(json.dumps(draft.of("run_start")[0]))
    draft.events.insert(stop + 1, again)
    move(draft, again, stop + 1)


@mutation("no stop", "V05 V27", kind="draft")
def _(draft: Draft) -> None:
    draft.events.remove(draft.of("run_stop")[0])


@mutation("steps after their stage has ended", "V05 V28", kind="draft")
def _(draft: Draft) -> None:
    move(draft, draft.of("memory")[0], len(draft.events) - 5)


@mutation("a stage inside another", "V05", kind="draft")
def _(draft: Draft) -> None:
    stops = draft.of("stage_stop")
    draft.events.remove(stops[0])


@mutation("a complete stage done again", "V05", kind="draft")
def _(draft: Draft) -> None:
    first, last = (
        e for e in draft.events if e["data"].get("stage") == "core" and "attempt" in e["data"]
    )
    begin, end = draft.events.index(first), draft.events.index(last)
    again = json.loads(json.dumps([first, last]))
    for event in again:
        for name in ("t_ns", "wall_ms", "clocks"):
            event[name] = last[name]
    again[0]["data"]["attempt"] = 1
    again[1]["data"]["attempt"] = 1
    draft.events[end + 1 : end + 1] = again
    assert begin < end


@mutation("a complete run goes on", "V05", kind="draft")
def _(draft: Draft) -> None:
    last = draft.events[-1]
    data = {"rebooted": False, "downtime_s": 0.0, "boot": tamper.BOOT}
    draft.events.append({**last, "ev": "resume", "data": data})


@mutation("one event steps back in time", "V05", kind="draft")
def _(draft: Draft) -> None:
    draft.of("step")[20]["t_ns"] -= 30 * 10**9


@mutation("the evaluator speaks outside CORE", "V05", kind="draft")
def _(draft: Draft) -> None:
    draft.of("eval", "sft")[0]["src"] = "eval"

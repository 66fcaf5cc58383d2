"""What a row's own page shows: figures, checks with evidence, curves, tasks, recipe, history."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kit.board.load import Board, Submission
from kit.board.site import recipes
from kit.board.site.facts import machine, run_facts
from kit.board.site.series import curves
from kit.board.site.text import (
    clean,
    clean_all,
    clean_block,
    number,
    score,
)
from kit.board.site.view import TIERS, Row, decided, headline
from kit.errors import KitError
from kit.timing import duration
from kit.verify import CHECKS
from kit.verify.finding import Finding, Report
from kit.verify.thresholds import CORE_TASKS

Document = dict[str, Any]
_PUBLISHED = Path(__file__).parents[2] / "core_eval" / "published.json"
GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_TASK_LOW, _TASK_HIGH = -0.25, 1.0


class CheckLine(NamedTuple):
    id: str
    title: str
    stops: str
    status: str
    says: list[tuple[str, str]]  # message, evidence


class TaskBar(NamedTuple):
    """A task's centred accuracy, as percent places on its bar."""

    task: str
    n: int
    accuracy: str
    centered: str
    left: float
    width: float
    negative: bool
    family: list[tuple[int, float, str]]  # generation, place, words


class Part(NamedTuple):
    """A stage's part of the hours."""

    stage: str
    left: float
    width: float
    text: str


def detail(board: Board, document: Document, row: Row, report: Report | None) -> Document:
    """Everything the template of a row's page needs. Strings in it are cleaned."""
    submission = board.submission(document)
    result: Document | None = None
    unreadable: str | None = None
    try:
        result = clean_all(submission.result)
    except KitError as error:
        unreadable = error.message
    cleaned: Document = clean_all(document)
    series = curves(submission) if result is not None else []
    return {
        "row": row,
        "document": cleaned,
        "result": result,
        "unreadable": clean(unreadable) if unreadable else None,
        "facts": _facts(cleaned),
        "ladder": _ladder(cleaned),
        "checks": _checks(board, document, report),
        "series": series,
        "no_series": _why_no_curves(result, series),
        "tasks": _tasks(cleaned),
        "zero": _place(0.0),
        "stages": _stages(result),
        "machine": machine(result),
        "run": run_facts(result),
        "recipe": _recipe(submission),
        "reproductions": [
            _reproduction(r)
            for r in (board.reproductions_of(document["id"]) if document["reproductions"] else [])
        ],
        "noted": cleaned["reproductions"],
        "statements": clean_all(
            board.statements_of(document["id"]) if document["statements"] else []
        ),
        "history": [decided(event) for event in board.events_of(document["id"])],
        "commands": commands(board, document),
        "weights": _weights(board, cleaned),
    }


def commands(board: Board, document: Document) -> Document:
    """How anyone checks a row and runs it again."""
    repository = board.settings.repository
    where = repository or "submissions"
    path, row_id = document["path"], document["id"]
    verify = (
        [
            f'hf download {repository} --repo-type dataset --include "submissions/{path}/*" '
            "--local-dir board",
            f"n4090-kit verify board/submissions/{path}",
        ]
        if repository
        else [
            f"n4090-kit verify {where}/{path}",
            f"n4090-kit reproduce {row_id} --board {where} --as YOU --check-only --core DIR",
        ]
    )
    return {
        "verify": verify,
        "reproduce": [
            f"n4090-kit reproduce {row_id} --board {where}" + ("" if repository else " --as YOU"),
            f"n4090-kit submit runs/RUN --board {where}",
        ],
    }


def _facts(row: Document) -> list[tuple[str, str | None, str]]:
    """The headline: name, value, what stands below it."""
    found = headline(row)
    name = row["score"]["name"].capitalize() if row["score"] else "CORE"
    core, low, high, n = found["core"], found["low"], found["high"], found["n"]
    below = "not scored"
    if core is not None:
        below = "" if low is None else f"95 %: {score(low)} to {score(high)}"
    seconds = found["total_s"]
    split = []
    if row["pretrain_s"] is not None:
        split.append(f"pretraining {duration(row['pretrain_s'])}")
    if n and n > 1:
        below += f", mean of {n} runs" if core is not None else ""
        split.append(f"mean of {n} runs")
    training = row["training"] or {}
    tokens, mfu = training.get("tokens"), training.get("mfu")
    speed = tokens / row["pretrain_s"] if tokens and row["pretrain_s"] else None
    return [
        (name, None if core is None else score(core), below),
        ("Hours, everything counted", None if seconds is None else number(seconds / 3600, 2),
         "; ".join(split)),
        ("val_bpb", None if row["val_bpb"] is None else score(row["val_bpb"]),
         "bits a byte, lower is better"),
        ("Tokens a second", None if speed is None else number(speed, 0),
         "" if mfu is None else f"MFU {mfu:.1%}"),
        ("Energy", None if row["kwh"] is None else f"{number(row['kwh'], 2)} kWh",
         "could not be read" if row["kwh"] is None else "as the machine counted it"),
    ]  # fmt: skip


def _ladder(row: Document) -> list[tuple[str, str, str, bool]]:
    reached = int(row["tier"][1]) if row["tier"] else -1
    return [
        (tier, title, text, index <= reached)
        for index, (tier, (title, text)) in enumerate(TIERS.items())
    ]


def _checks(board: Board, document: Document, report: Report | None) -> list[CheckLine]:
    """Every check: the board's status, and the evidence behind it.

    The board's own findings come first; where it kept none, those of a check made now.
    """
    kept: list[Document] = next(
        (
            event["data"].get("findings", [])
            for event in reversed(board.events_of(document["id"]))
            if event["ev"] == "submission"
        ),
        [],
    )
    lines = []
    known = {check.id: check for check in CHECKS}
    for name in sorted({*known, *document["checks"]}):
        check = known.get(name)
        status = document["checks"].get(name)
        says = [(clean(f["message"], 600), "") for f in kept if f["check"] == name]
        now = report.of(name) if report else []
        if not says:
            says = [(clean(finding.message, 600), _evidence(finding)) for finding in now]
        else:
            again = {clean(finding.message, 600): _evidence(finding) for finding in now}
            says = [(message, again.get(message, "")) for message, _ in says]
        lines.append(
            CheckLine(
                clean(name),
                check.title if check else "",
                check.protects if check else "",
                status or (report.status(name) if report else None) or "skip",
                says,
            )
        )
    return lines


def _evidence(finding: Finding) -> str:
    return ", ".join(f"{label} {clean(str(value))}" for label, value in finding.details)


def _tasks(row: Document) -> list[TaskBar]:
    core = row["core"] or row["score"]
    if core is None:
        return []
    family = _family() if core["bundle"] == "core" else {}
    zero, bars = _place(0.0), []
    for task in core["tasks"]:
        at = _place(task["centered"])
        bars.append(
            TaskBar(
                task=task["task"],
                n=task["n"],
                accuracy=f"{100 * task['accuracy']:.1f} %",
                centered=number(task["centered"], 3),
                left=min(zero, at),
                width=round(abs(at - zero), 2),
                negative=task["centered"] < 0,
                family=[
                    (index, _place(value), f"{GPT2[index]} {number(value, 3)}")
                    for index, value in enumerate(family.get(task["task"], []))
                ],
            )
        )
    return bars


@cache
def _family() -> dict[str, list[float]]:
    """Task -> centred accuracy of the GPT-2 family, small to large, as published."""
    models = json.loads(_PUBLISHED.read_text())["models"]
    return {
        task: [
            (models[name]["accuracy"][task] - baseline / 100) / (1 - baseline / 100)
            for name in GPT2
        ]
        for task, (_, baseline) in CORE_TASKS.items()
    }


def _place(centered: float) -> float:
    """Percent along a task's bar."""
    share = (centered - _TASK_LOW) / (_TASK_HIGH - _TASK_LOW)
    return round(100 * min(1.0, max(0.0, share)), 2)


def _stages(result: Document | None) -> list[Part]:
    if result is None:
        return []
    total = result["timing"]["total_s"]
    parts, at = [], 0.0
    for stage in result["timing"]["stages"]:
        seconds = stage["elapsed_s"]
        if not seconds or not total:
            continue
        width = 100 * seconds / total
        text = duration(seconds)
        if stage["status"] != "complete":
            text += f", {stage['status']}"
        if stage["attempts"] > 1:
            text += f", {stage['attempts']} attempts"
        parts.append(Part(stage["stage"], round(at, 3), round(width, 3), text))
        at += width
    return parts


def _recipe(submission: Submission) -> Document:
    try:
        text = str(submission.result["recipe"]["text"])
    except KitError:
        return {"text": None, "differences": [], "reason": "the result cannot be read"}
    found = recipes.compare(text)
    return {
        "text": clean_block(text),
        "reason": found.reason,
        "differences": [
            recipes.Difference(clean(d.field), clean(d.reference), clean(d.here))
            for d in found.differences
        ],
    }


def _reproduction(document: Document) -> Document:
    found: Document = clean_all(document)
    found["notes"] = [clean(note) for note in document.get("notes", [])]
    return found


def _why_no_curves(result: Document | None, series: list[Document]) -> list[str]:
    """What is not drawn, and why."""
    drawn = {chart["id"] for chart in series}
    if result is None:
        return ["The result cannot be read."]
    missing = []
    if "chart-power" not in drawn:
        reason = result["energy"].get("reason") or "telemetry lies beside the weights"
        missing.append(f"GPU power: {reason}.")
    if "chart-loss" not in drawn:
        missing.append("Training loss: fewer than two steps were reported.")
    return missing


def _weights(board: Board, row: Document) -> Document | None:
    model = row["model"]
    if model is None:
        return None
    url = None
    if board.settings.repository and not model["repository"].startswith("models/"):
        url = f"https://huggingface.co/{model['repository']}"
        if model["revision"]:
            url += f"/tree/{model['revision']}"
    return {"name": model["repository"], "revision": model["revision"], "url": url}

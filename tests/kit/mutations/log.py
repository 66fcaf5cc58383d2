"""V04: the log, its chain not made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tamper
from tamper import Draft, chain_lines, gpu_run

from kit.run_log import LOG_KIND
from kit.trust.digest import sha256_bytes
from mutations.registry import mutation


def line_mutation(
    name: str, change: Callable[[list[bytes]], Any], file: str = "events.jsonl"
) -> None:
    @mutation(name, "V04", kind="file")
    def apply(folder: Path) -> None:
        lines = (folder / file).read_bytes().splitlines(keepends=True)
        change(lines)
        (folder / file).write_bytes(b"".join(lines))


def replace_in(lines: list[bytes], old: bytes, new: bytes) -> None:
    """Changes the tenth line that holds `old`."""
    index = [i for i, line in enumerate(lines) if old in line][9]
    lines[index] = lines[index].replace(old, new, 1)


line_mutation("an event edited", lambda lines: replace_in(lines, b'"loss":', b'"loss":1'))
line_mutation("an event dropped", lambda lines: lines.pop(30))
line_mutation("two events swapped", lambda lines: lines.insert(30, lines.pop(31)))
line_mutation("an event twice", lambda lines: lines.insert(30, lines[30]))
line_mutation("the last event dropped", lambda lines: lines.pop())
line_mutation("an event added", lambda lines: lines.append(b'{"ev":"note"}\n'))
line_mutation("last line torn", lambda lines: lines.append(lines.pop()[:-20]))
line_mutation("zeros at the end", lambda lines: lines.append(b"\0" * 512))
line_mutation(
    "a key twice in an event",
    lambda lines: replace_in(lines, b'"ev":"step"', b'"ev":"step","ev":"step"'),
)
line_mutation("NaN in an event", lambda lines: replace_in(lines, b'"lr":1', b'"lr":NaN'))
line_mutation(
    "an event of 2 MB", lambda lines: replace_in(lines, b'"lr":1', b'"lr":1' + b"0" * 2**21)
)
line_mutation(
    "an event 100,000 deep", lambda lines: replace_in(lines, b'"lr":1', b'"lr":' + b"[" * 10**5)
)
line_mutation("a header that is none", lambda lines: lines.pop(0))
line_mutation("an empty log", lambda lines: lines.clear())
line_mutation(
    "telemetry edited",
    lambda lines: replace_in(lines, b'"gpu_util":', b'"gpu_util":1'),
    "telemetry.jsonl",
)
line_mutation("telemetry cut", lambda lines: lines.__delitem__(slice(500, None)), "telemetry.jsonl")
line_mutation("telemetry padded", lambda lines: lines.append(b"{}\n"), "telemetry.jsonl")


@mutation("an edited log, chained again but not signed", "V04", kind="file")
def _(folder: Path) -> None:
    path = folder / "events.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[40]["data"]["loss"] = 1.0
    path.write_bytes(chain_lines(records, LOG_KIND))


@mutation("another run's log", "V04", kind="file")
def _(folder: Path) -> None:
    gpu_run(seed=99).write(folder / "other")
    shutil.copy(folder / "other/events.jsonl", folder)


@mutation("the end of another run's log spliced on", "V04", kind="file")
def _(folder: Path) -> None:
    gpu_run(seed=99).write(folder / "other")
    mine, theirs = (
        (place / "events.jsonl").read_bytes().splitlines(True)
        for place in (folder, folder / "other")
    )
    (folder / "events.jsonl").write_bytes(b"".join(mine[:50] + theirs[50:]))


@mutation("a faster run's steps spliced in", "V05 V06 V13 V14 V28", kind="draft")
def _(draft: Draft) -> None:
    mine = draft.of("step", "pretrain")
    theirs = gpu_run(seed=99, step_s=5.0).of("step", "pretrain")
    for own, other in list(zip(mine, theirs, strict=True))[len(mine) // 2 :]:
        own.clear()
        own.update(other)


@mutation("another run's telemetry", "V04", kind="file")
def _(folder: Path) -> None:
    gpu_run(seed=99).write(folder / "other")
    shutil.copy(folder / "other/telemetry.jsonl", folder)


@mutation("telemetry chained as another kind of log", "V04", kind="file")
def _(folder: Path) -> None:
    path = folder / "telemetry.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_bytes(chain_lines(records, LOG_KIND))


@mutation("the log is a link", "V04", kind="file")
def _(folder: Path) -> None:
    (folder / "events.jsonl").rename(folder / "elsewhere")
    (folder / "events.jsonl").symlink_to("elsewhere")


@mutation("an unknown kind of event", "V04", kind="draft")
def _(draft: Draft) -> None:
    draft.of("note")[0]["ev"] = "notice"


@mutation("the trainer speaks for the supervisor", "V04", kind="draft")
def _(draft: Draft) -> None:
    draft.of("checkpoint")[0]["src"] = "sup"


@mutation("time as text", "V04", kind="file")
def _(folder: Path) -> None:
    path = folder / "events.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[40]["t_ns"] = str(records[40]["t_ns"])
    data = chain_lines(records, LOG_KIND)
    path.write_bytes(data)
    resign_log(folder, data)


def resign_log(folder: Path, data: bytes) -> None:
    result = json.loads((folder / "result.json").read_text())
    lines = data.splitlines()
    result["log"] = {"head": sha256_bytes(lines[-1]), "count": len(lines), "bytes": len(data)}
    tamper.write_signed(folder, result)

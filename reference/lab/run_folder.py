"""Reading a run folder: the stages' reports in the event log, and the result beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reference.errors import TrainerError


@dataclass(frozen=True)
class RunFolder:
    """A finished, failed or running run. Nothing in it is checked: that is `verify`'s business.

    Attributes:
        events: Every line of events.jsonl, in order; a torn last line is left out.
        result: result.json, or {} while there is none.
    """

    path: Path
    events: tuple[dict[str, Any], ...]
    result: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Reads the folder `path`, or the folder of the result.json that `path` is.

        Raises:
            TrainerError: There is no event log, or a line of it is no JSON.
        """
        folder = path.parent if path.is_file() else path
        try:
            lines = (folder / "events.jsonl").read_bytes().split(b"\n")
        except OSError as error:
            raise TrainerError(
                "bad_input",
                f"{path} is not a run folder: events.jsonl cannot be read ({error.strerror})",
                "Give a folder under WORK/runs, or one under submissions/ with its event log.",
            ) from error
        events = []
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
            try:
                event = json.loads(line)
                event["ev"], event["data"]
            except (ValueError, KeyError, TypeError) as error:
                raise TrainerError(
                    "bad_input",
                    f"{folder / 'events.jsonl'}, line {number}: not an event of a run",
                    "`n4090-kit verify` says what is wrong with a log.",
                ) from error
            events.append(event)
        result = folder / "result.json"
        document = json.loads(result.read_text()) if result.is_file() else {}
        return cls(folder, tuple(events), document)

    @property
    def name(self) -> str:
        header = self.events[0]["data"] if self.events else {}
        return str(header.get("run") or self.path.name)

    @property
    def recipe_text(self) -> str | None:
        """The recipe as written; None where the folder has none."""
        text = (self.result.get("recipe") or {}).get("text")
        file = self.path / "recipe.toml"
        if text is None and file.is_file():
            text = file.read_text()
        return text

    def of(self, ev: str, stage: str | None = None) -> list[dict[str, Any]]:
        """Data of all events `ev`, of one stage only where named, with `t_s` since run start."""
        return [
            {**event["data"], "t_s": event.get("t_ns", 0) / 1e9}
            for event, where in self._staged
            if event["ev"] == ev and (stage is None or where == stage)
        ]

    def last(self, ev: str) -> dict[str, Any]:
        found = self.of(ev)
        return found[-1] if found else {}

    def steps(self) -> list[dict[str, Any]]:
        """Pretraining steps that count: a resume that goes back to one gives up all from there."""
        return _without_given_up(self.of("step", "pretrain"))

    def evals(self, name: str) -> list[dict[str, Any]]:
        """Evaluations `name` of pretraining that count, by step."""
        rows = [row for row in self.of("eval", "pretrain") if row["name"] == name]
        return _without_given_up(rows)

    @cached_property
    def _staged(self) -> tuple[tuple[dict[str, Any], str | None], ...]:
        rows, stage = [], None
        for event in self.events:
            if event["ev"] == "stage_start":
                stage = event["data"]["stage"]
            rows.append((event, stage))
            if event["ev"] == "stage_stop":
                stage = None
        return tuple(rows)


def _without_given_up(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` by step, less those from which a resume went back to an earlier step."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and kept[-1].get("step", 0) >= row.get("step", 0):
            kept.pop()
        kept.append(row)
    return kept

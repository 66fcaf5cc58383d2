"""The events and telemetry rows of a run, as they are written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_POLL_S = 0.5
_FILES = ("events.jsonl", "telemetry.jsonl")


class Tail:
    """Reads whole new lines of a growing file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[Record]:
        """The records written since the last call; lines that are no JSON object are skipped."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "ev" in record:
                found.append(record)
        return found


class RunTail:
    """New events and telemetry rows of a run folder; the header of the telemetry is left out."""

    def __init__(self, run: Path) -> None:
        self._events, self._telemetry = (Tail(run / name) for name in _FILES)

    def new(self) -> list[Record]:
        samples = [row for row in self._telemetry.new() if row["ev"] == "sample"]
        return [*self._events.new(), *samples]


def follow(
    run: Path, *, wait: bool, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Record]:
    """The records of a run.

    Args:
        wait: Go on until the log has its last event, `end`, or `should_stop` says so.
    """
    tail = RunTail(run)
    ended = False
    while True:
        # Asked before reading: what was written before the stop is still read.
        last = ended or not wait or should_stop()
        for record in tail.new():
            ended = record["ev"] == "end" or (ended and record["ev"] != "resume")
            yield record
        if last:
            return
        if not ended:
            time.sleep(_POLL_S)

"""Writes the event log of a run: each event with its time on several clocks, hash-chained.

`t_ns` counts from the moment the log was opened, on CLOCK_BOOTTIME, which neither pauses nor jumps.
A reboot starts that clock again. The log then measures the gap with the wall clock, records it in a
`resume` event, and continues from there. An event's `clocks` are the counts of the other clocks
since the origin of this boot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import SchemaError
from kit.events import Data, Event, Resume, Source
from kit.files import write_json
from kit.run.environment import rtc_s, since_boot_s, time_namespace
from kit.run_log import LOG_KIND
from kit.timing import ClockSample, boot_id, boottime_ns
from kit.trust.chain_writer import ChainWriter
from kit.typed import to_json

_ROOM = 4 * 2**20  # kept on the disk for the log, which must be able to say that the disk is full
# The log is forced to disk after these events: `resume` cannot do without any of them.
_SYNCED = {"header", "run_start", "stage_start", "stage_stop", "artifacts", "run_stop", "resume"}
# Longest delay before other events are forced to disk. Checkpoints and evaluations come sooner: a
# checkpoint survives a power cut, and the steps before it must be in the log as well.
_SYNC_EVERY_S = 15.0
_SYNCED_SOON = {"checkpoint", "eval"}
_SYNC_PAUSE_S = 0.2  # minimum interval between fsyncs


@dataclass(frozen=True)
class Origin:
    """The moment from which the clocks of one boot count."""

    boot: str
    sample: ClockSample
    t_ns: int  # the log's time at `sample`

    def to_json(self) -> dict[str, Any]:
        return {"boot": self.boot, "sample": self.sample.to_json(), "t_ns": self.t_ns}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Origin:
        return cls(value["boot"], ClockSample.from_json(value["sample"]), value["t_ns"])


class EventLog:
    """Appends events to RUN/events.jsonl. Only one process may do so.

    Args:
        observe: Called with every event as it is stored, until it raises an OSError.
    """

    def __init__(
        self,
        run: Path,
        observe: Callable[[Event[Data]], None] | None = None,
    ) -> None:
        self._origin_path = run / "origin.json"
        self._observe = observe
        self._writer = ChainWriter(run / "events.jsonl", LOG_KIND, room=_ROOM)
        self._last_t_ns = 0
        self.origin = self._load_origin()
        self._soon, self._closing = threading.Event(), threading.Event()
        self._syncing = threading.Thread(target=self._keep_synced, name="log", daemon=True)
        self._syncing.start()

    def append(self, data: Data, src: Source = "sup", at: ClockSample | None = None) -> Event[Data]:
        """Timestamps, chains and stores one event; returns it as stored.

        Args:
            at: When it happened; None: now.
        """
        sample = at or ClockSample.now()
        # Never backwards, even if two events fall into one tick.
        t_ns = max(self._last_t_ns, self.t_ns(sample))
        record = {
            "t_ns": t_ns,
            "wall_ms": sample.wall_ms,
            "clocks": sample.since(self.origin.sample),
            "src": src,
            "ev": data.ev,
            "data": to_json(data),
        }
        event = Event.from_json(self._writer.append(record))
        self._last_t_ns = t_ns
        if data.ev in _SYNCED:
            self._writer.sync()
        elif data.ev in _SYNCED_SOON:
            self._soon.set()
        if self._observe:
            try:
                self._observe(event)
            except OSError:  # a closed terminal or pipe must not end the run
                self._observe = None
        return event

    def now_ns(self) -> int:
        """The log's time now, for the timestamps of telemetry."""
        return self.origin.t_ns + boottime_ns() - self.origin.sample.boottime_ns

    def t_ns(self, sample: ClockSample) -> int:
        """The log's time at `sample`."""
        return self.origin.t_ns + sample.boottime_ns - self.origin.sample.boottime_ns

    def boottime_at(self, t_ns: int) -> int:
        """The CLOCK_BOOTTIME value, in this boot, at the log's time `t_ns`; may be negative."""
        return t_ns - self.origin.t_ns + self.origin.sample.boottime_ns

    @property
    def head(self) -> str:
        return self._writer.head

    @property
    def count(self) -> int:
        return self._writer.count

    def continue_after(self, last: Event[Data]) -> Resume:
        """Continues the run's clock after `last`, the last event of an earlier process.

        Returns:
            What to log: whether the machine was rebooted, and the seconds in between.
        """
        sample = ClockSample.now()
        rebooted = self.origin.boot != _boot_name()
        if rebooted:
            # The old boot's clocks are gone: the wall clock is all that spans the gap.
            gap_ns = max(0, sample.wall_ms - last.wall_ms) * 1_000_000
            self.origin = Origin(_boot_name(), sample, last.t_ns + gap_ns)
            write_json(self._origin_path, self.origin.to_json())
        self._last_t_ns = last.t_ns
        gap_s = round((self.t_ns(sample) - last.t_ns) / 1e9, 3)
        return Resume(
            rebooted,
            max(0.0, gap_s),
            self.origin.boot,
            # Witnesses of a gap that only the wall clock spans.
            since_boot_s=since_boot_s(),
            rtc_s=rtc_s(),
            time_namespace=time_namespace(),
        )

    def close(self) -> None:
        self._closing.set()
        self._soon.set()
        self._syncing.join()
        self._writer.close()

    def _keep_synced(self) -> None:
        """Runs in its own thread, so that a disk busy with a checkpoint delays no timestamp."""
        synced = 0
        while not self._closing.wait(_SYNC_PAUSE_S):
            self._soon.wait(_SYNC_EVERY_S)
            self._soon.clear()
            if self._writer.count > synced:
                synced = self._writer.count
                with contextlib.suppress(OSError):  # the next synced event raises it
                    self._writer.sync()

    def _load_origin(self) -> Origin:
        if self._origin_path.is_file():
            try:
                return Origin.from_json(json.loads(self._origin_path.read_text()))
            except (ValueError, KeyError, AssertionError) as error:
                raise SchemaError(f"origin.json of this run is damaged: {error}") from error
        origin = Origin(_boot_name(), ClockSample.now(), 0)
        write_json(self._origin_path, origin.to_json())
        return origin


def _boot_name() -> str:
    """A name that differs between boots and reveals nothing about the machine."""
    return hashlib.sha256(f"n4090-boot-v1:{boot_id()}".encode()).hexdigest()[:16]

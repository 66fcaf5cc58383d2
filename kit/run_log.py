"""The one reader of a run's log: chain of lines, typed events, and what they mean together.

Everything that asks what happened in a run asks a `RunLog`: the result, `verify`, `resume`, the
board and its charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from kit.errors import SchemaError
from kit.events import (
    Artifacts,
    Data,
    End,
    Eval,
    Event,
    Fingerprint,
    Header,
    Inputs,
    Resume,
    RunStart,
    RunStop,
    StageStart,
    StageStop,
    Step,
    TelemetrySummary,
)
from kit.trust.chain import MAX_CHAIN_BYTES, Chain, read_chain

LOG_KIND = "n4090-events-v1"
D = TypeVar("D", bound=Data)


@dataclass
class StageLog:
    """What the log holds of one stage, all attempts together.

    Attributes:
        reports: What the stage's processes reported, in order.
        artifacts: Its outputs; None unless it completed.
    """

    name: str
    starts: list[Event[StageStart]] = field(default_factory=list)
    stops: list[Event[StageStop]] = field(default_factory=list)
    reports: list[Event[Data]] = field(default_factory=list)
    artifacts: Artifacts | None = None

    @property
    def resume_step(self) -> int:
        """The step after the last one reported; 0 before the first."""
        for event in reversed(self.reports):
            if isinstance(event.data, Step):
                return event.data.step + 1
        return 0

    @property
    def complete(self) -> bool:
        return any(stop.data.status == "complete" for stop in self.stops)


@dataclass
class RunLog:
    """A run as its log tells it.

    Attributes:
        chain: The log's digest, length and damage.
        events: Every event, in order.
        stages: Stages that were started, in the order of their first start.
        fingerprints: The machine `before` and `after`.
    """

    chain: Chain
    events: list[Event[Data]]
    header: Header
    inputs: Inputs = field(default_factory=Inputs)
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    telemetry: TelemetrySummary | None = None
    end: End | None = None
    run_start: Event[RunStart] | None = None
    run_stop: Event[RunStop] | None = None
    resumes: list[Event[Resume]] = field(default_factory=list)
    stages: dict[str, StageLog] = field(default_factory=dict)
    _found: dict[tuple[str, type[Data]], list[Event[Data]]] = field(
        default_factory=dict, repr=False
    )
    _steps: dict[str, list[Event[Step]]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, run: Path) -> RunLog:
        """Reads RUN/events.jsonl.

        >>> from pathlib import Path
        >>> log = RunLog.read(Path("submissions/2026/example/9ffdb8e5b168ed02"))
        >>> len(log.steps()), round(log.steps()[-1].data.loss, 1)
        (600, 5.4)

        Raises:
            OSError: The file cannot be read.
            SchemaError: A line is not an event, or the first is not a header.
        """
        return cls.from_chain(read_chain(run / "events.jsonl", LOG_KIND, max_bytes=MAX_CHAIN_BYTES))

    @classmethod
    def from_chain(cls, chain: Chain) -> RunLog:
        """The run that the records of `chain` tell of.

        Raises:
            SchemaError: A record is not an event, or the first is not a header.
        """
        return cls.from_events(parse_events(chain.records), chain)

    @classmethod
    def from_events(cls, events: Sequence[Event[Data]], chain: Chain) -> RunLog:
        """The run that `events` tell of. Raises `SchemaError` unless they begin with a header."""
        if not events or not isinstance(events[0].data, Header):
            raise SchemaError("the event log does not begin with a header")
        log = cls(chain, list(events), events[0].data)
        stage: StageLog | None = None
        for event in events[1:]:
            stage = log._take(event, stage)
        return log

    def _take(self, event: Event[Any], stage: StageLog | None) -> StageLog | None:
        """Files one event; returns the stage that later reports belong to."""
        match event.data:
            case StageStart(stage=name):
                stage = self.stages.setdefault(name, StageLog(name))
                stage.starts.append(event)
            case StageStop(stage=name):
                self.stages.setdefault(name, StageLog(name)).stops.append(event)
            case Artifacts(stage=name):
                self.stages.setdefault(name, StageLog(name)).artifacts = event.data
            case Inputs():
                self.inputs = event.data
            case Fingerprint(when=when, fingerprint=fingerprint):
                self.fingerprints[when] = fingerprint
            case TelemetrySummary():
                self.telemetry = event.data
            case End():
                self.end = event.data
            case RunStart():
                self.run_start = event
            case RunStop():
                self.run_stop = event
            case Resume():
                self.resumes.append(event)
            case _:
                if stage is not None:
                    stage.reports.append(event)
        return stage

    @property
    def last(self) -> Event[Data]:
        return self.events[-1]

    def of(self, stage: str, kind: type[D]) -> list[Event[D]]:
        """What `stage` reported as `kind`, in order, all attempts."""
        key = (stage, cast("type[Data]", kind))
        if key not in self._found:
            reports = self.stages[stage].reports if stage in self.stages else []
            self._found[key] = [event for event in reports if type(event.data) is kind]
        return cast("list[Event[D]]", self._found[key])

    def steps(self, stage: str = "pretrain") -> list[Event[Step]]:
        """Steps on the surviving trajectory.

        A resume at step k discards the earlier reports of steps from k on.
        """
        if stage not in self._steps:
            self._steps[stage] = surviving(self.of(stage, Step))
        return self._steps[stage]

    def evaluations(self, name: str, stage: str = "pretrain") -> list[Event[Eval]]:
        """Evaluations called `name` on the surviving trajectory."""
        found = [event for event in self.of(stage, Eval) if event.data.name == name]
        return surviving(found)

    @property
    def artifacts(self) -> dict[str, Artifacts]:
        """The outputs of each stage that completed."""
        return {name: stage.artifacts for name, stage in self.stages.items() if stage.artifacts}


E = TypeVar("E", bound=Event[Any])


def surviving(events: Iterable[E]) -> list[E]:
    """`events` less those that a later event of the same or an earlier step replaces."""
    kept: list[E] = []
    for event in events:
        step = _step(event)
        while kept and _step(kept[-1]) >= step:
            kept.pop()
        kept.append(event)
    return kept


def _step(event: Event[Any]) -> float:
    step = event.data.step
    return step if isinstance(step, int | float) else 0


def parse_events(records: Iterable[dict[str, Any]]) -> list[Event[Data]]:
    """The records of a log as events.

    Raises:
        SchemaError: A record is not an event; `line` says which.
    """
    events = []
    for line, record in enumerate(records, start=1):
        try:
            events.append(Event.from_json(record))
        except SchemaError as error:
            raise SchemaError(
                f"line {line} of the log is not an event: {error.message}",
                hint="`n4090-kit verify` lists everything that is wrong with a log.",
                line=line,
            ) from None
    return events

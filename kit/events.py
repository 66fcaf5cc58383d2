"""Every event of a run's log as a frozen dataclass.

The event schema, the check of what a trainer reports, the live line, the result, the charts and
`verify` are all made from these classes. To add an event, add a class here; to add a field, add it
with a default, so that older logs stay readable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, cast

from kit.errors import SchemaError
from kit.recipe import STAGES
from kit.typed import Count, Digest, Rule, from_json, to_json

Source = Literal["sup", "trainer", "eval"]
Stage = Annotated[str, Rule(choices=STAGES)]
EventClass = TypeVar("EventClass", bound="type[Data]")


class Data:
    """Base class of an event's data. `ev` is its name in the log."""

    __slots__ = ()
    ev: ClassVar[str]
    by: ClassVar[Literal["supervisor", "stage"]]


D = TypeVar("D", bound=Data)
D_co = TypeVar("D_co", bound=Data, covariant=True)

EVENTS: dict[str, type[Data]] = {}


def event(name: str, *, by: Literal["supervisor", "stage"]) -> Callable[[EventClass], EventClass]:
    """Registers a class as the event `name`, written by the supervisor or reported by a stage."""

    def register(kind: EventClass) -> EventClass:
        kind.ev, kind.by = name, by
        EVENTS[name] = kind
        return kind

    return register


# --- what the supervisor writes -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KitVersion:
    """The kit that made the run.

    Attributes:
        code: Digest of the installed kit and trainer code.
    """

    version: str
    code: str


@dataclass(frozen=True, slots=True)
class Image:
    """The container image by digest; None with the reason where no digest was passed in."""

    digest: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class RecipeName:
    """Which recipe was run."""

    name: str
    track: str
    digest: str


@dataclass(frozen=True, slots=True)
class Seed:
    """The run's seed and where it came from."""

    value: int
    source: str


@dataclass(frozen=True, slots=True)
class SignerKey:
    """The key that signs the result.

    Attributes:
        created: Whether the kit generated the key for this work folder.
        identities: Accounts that showed the key, as the submitter looked them up: a claim.
    """

    public_key: str
    created: bool
    identities: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupRun:
    """Which run of which registered group this is."""

    registration: dict[str, Any]
    index: int


@dataclass(frozen=True, slots=True)
class Price:
    """What a kilowatt-hour costs where the run is made."""

    per_kwh: float
    currency: str


@dataclass(frozen=True, slots=True)
class Environment:
    """What surrounds the run and could change its result.

    Attributes:
        rx_bytes, tx_bytes: Traffic so far on all interfaces but the loopback; None if unknown.
        ld_preload: Whether a preloaded library could change what libc answers.
        time_namespace: Offsets of the time namespace, "none" when all are zero.
        container: The kind of container around the supervisor.
        separate_trainer: Whether stages run as a user who cannot write log, result and keys.
        clocks_from: Name of the file that each source of the clocks comes from.
        rtc_s: Seconds since 1970 by the hardware clock, which survives a reboot.
    """

    rx_bytes: int | None
    tx_bytes: int | None
    ld_preload: bool
    time_namespace: str | None
    container: str | None
    separate_trainer: bool | None = None
    clocks_from: dict[str, str | None] | None = None
    rtc_s: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("header", by="supervisor")
@dataclass(frozen=True, slots=True)
class Header(Data):
    """The first event: what runs, by digest, and on which machine.

    Attributes:
        log: Version of the log's format.
        run: Name of the run folder.
        boot: A name for this boot of the machine.
    """

    run: str
    kit: KitVersion
    image: Image
    recipe: RecipeName
    seed: Seed
    signer: SignerKey
    software: dict[str, str | None]
    environment: Environment
    boot: str
    log: str | None = None
    contract: int | None = None
    group: GroupRun | None = None
    price: Price | None = None
    device: str | None = None
    threads: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file by its digest; `path` is relative to its folder."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The files of one input.

    Attributes:
        digest: Digest of the list of files.
        bytes: Size of all files together.
    """

    digest: str
    bytes: int
    files: tuple[ListedFile, ...]
    more: dict[str, Any] = field(default_factory=dict)


@event("inputs", by="supervisor")
@dataclass(frozen=True, slots=True)
class Inputs(Data):
    """Files that the stages read; None where the recipe reads none."""

    data: InputFiles | None = None
    sft: InputFiles | None = None
    chat_eval: InputFiles | None = None
    core: InputFiles | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def items(self) -> list[tuple[str, InputFiles]]:
        """The inputs that the run read, by name."""
        named = (
            ("data", self.data),
            ("sft", self.sft),
            ("chat_eval", self.chat_eval),
            ("core", self.core),
        )
        return [(name, files) for name, files in named if files is not None]

    def get(self, name: str) -> InputFiles | None:
        return dict(self.items()).get(name)


@event("fingerprint", by="supervisor")
@dataclass(frozen=True, slots=True)
class Fingerprint(Data):
    """The machine, measured before the first or after the last stage."""

    when: str
    fingerprint: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)


@event("run_start", by="supervisor")
@dataclass(frozen=True, slots=True)
class RunStart(Data):
    """The clock starts; it never pauses from here on.

    Attributes:
        compile_caches: Digest of the compile caches, which must be empty.
    """

    compile_caches: str
    more: dict[str, Any] = field(default_factory=dict)


@event("stage_start", by="supervisor")
@dataclass(frozen=True, slots=True)
class StageStart(Data):
    """A stage's process starts.

    Attributes:
        attempt: 0, then one more after each resume.
    """

    stage: Stage
    attempt: int
    command: tuple[str, ...] | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("stage_stop", by="supervisor")
@dataclass(frozen=True, slots=True)
class StageStop(Data):
    """A stage's process has ended.

    Attributes:
        accepted, dropped: Reports stored, and lines that broke the contract.
        print_left_out_bytes: What the stage printed past its limit.
        socket_looks: How often the sockets of its processes were looked at.
        remote_sockets: Most of them that reached beyond this machine at one look.
    """

    stage: Stage
    attempt: int
    status: str
    reason: str | None = None
    exit_code: int | None = None
    accepted: int | None = None
    dropped: int | None = None
    print_left_out_bytes: int | None = None
    socket_looks: int | None = None
    remote_sockets: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("artifacts", by="supervisor")
@dataclass(frozen=True, slots=True)
class Artifacts(Data):
    """The outputs of a stage, hashed when it ended.

    Attributes:
        folder: Where they lie, relative to the run folder.
        digest: Digest of the list of files.
    """

    stage: Stage
    folder: str
    digest: str
    files: Annotated[tuple[ListedFile, ...], Rule(min_items=1)]
    more: dict[str, Any] = field(default_factory=dict)


@event("resume", by="supervisor")
@dataclass(frozen=True, slots=True)
class Resume(Data):
    """A killed run resumes.

    Attributes:
        rebooted: Whether the machine was restarted in between.
        downtime_s: Seconds since the last event before; they count.
        since_boot_s: Seconds since the machine was started.
        rtc_s: Seconds since 1970 by the hardware clock.
        time_namespace: As in the header's environment.
    """

    rebooted: bool
    downtime_s: float
    boot: str
    since_boot_s: float | None = None
    rtc_s: int | None = None
    time_namespace: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("run_stop", by="supervisor")
@dataclass(frozen=True, slots=True)
class RunStop(Data):
    """The clock stops.

    Attributes:
        status: complete, failed or stopped.
        stage: The stage that did not complete.
    """

    status: str
    reason: str | None = None
    message: str | None = None
    stage: str | None = None
    hint: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("telemetry", by="supervisor")
@dataclass(frozen=True, slots=True)
class TelemetrySummary(Data):
    """What telemetry.jsonl holds: its length and digest, and figures over all samples."""

    count: int
    head: str | None
    bytes: int | None
    energy: dict[str, Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("end", by="supervisor")
@dataclass(frozen=True, slots=True)
class End(Data):
    """The surroundings again, after the run."""

    environment: Environment
    more: dict[str, Any] = field(default_factory=dict)


# --- what a stage reports -----------------------------------------------------------------------


@event("step", by="stage")
@dataclass(frozen=True, slots=True)
class Step(Data):
    """One optimizer step, reported after the device has finished it.

    Attributes:
        step: Number of the step, from 0.
        tokens: Tokens trained on so far.
        loss: Training loss, nats a target.
        progress: Elapsed share of the stage, 0 to 1.
        step_tokens: Tokens of this step.
        dt_s: Seconds of this step by the trainer's clock.
        cuda_s: The same by the GPU's own clock.
        flops: FLOPs so far, where a token does not always cost the same.
    """

    step: Count
    tokens: Count
    loss: float
    progress: float | None = None
    step_tokens: float | None = None
    dt_s: float | None = None
    cuda_s: float | None = None
    flops: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("eval", by="stage")
@dataclass(frozen=True, slots=True)
class Eval(Data):
    """A measurement of quality.

    Attributes:
        name: What was measured: val_bpb, sft_val_loss, core, chat, …
        value: The figure; None or another type where the measurement has no single figure.
        step: The step before which it was measured.
    """

    name: str
    value: Any = None
    step: Any = None
    more: dict[str, Any] = field(default_factory=dict)


@event("checkpoint", by="stage")
@dataclass(frozen=True, slots=True)
class Checkpoint(Data):
    """A state is on the disk; a killed run resumes from it."""

    step: Count
    more: dict[str, Any] = field(default_factory=dict)


@event("memory", by="stage")
@dataclass(frozen=True, slots=True)
class Memory(Data):
    """The most memory that the device held so far."""

    peak_bytes: Count
    more: dict[str, Any] = field(default_factory=dict)


@event("model", by="stage")
@dataclass(frozen=True, slots=True)
class Model(Data):
    """What is trained.

    Attributes:
        parameters: All parameters of the model.
        flops_per_token: FLOPs of training on one token.
        mfu: Share of `peak_flops` reached, where the trainer knows it.
        peak_flops: FLOPs a second that the device can do at most.
        config: The model's settings.
        initial_weights: Digest of the weights before the first step.
    """

    parameters: Count
    flops_per_token: float | None = None
    mfu: float | None = None
    peak_flops: float | None = None
    vocab_size: int | None = None
    config: dict[str, Any] | None = None
    device: str | None = None
    initial_weights: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("progress", by="stage")
@dataclass(frozen=True, slots=True)
class Progress(Data):
    """How far a stage without steps is."""

    done: float
    total: float
    unit: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


@event("note", by="stage")
@dataclass(frozen=True, slots=True)
class Note(Data):
    """A sentence for people; it travels in the result."""

    text: str
    more: dict[str, Any] = field(default_factory=dict)


@event("error", by="stage")
@dataclass(frozen=True, slots=True)
class Error(Data):
    """Why a stage is about to fail."""

    kind: str
    message: str
    hint: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


# --- the line around it -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clocks:
    """Other clocks' own counts since the log was opened in this boot; None where there is none."""

    raw_ns: int
    syscall_ns: int | None
    uptime_ms: int | None


@dataclass(frozen=True, slots=True)
class Event(Generic[D_co]):
    """One line of events.jsonl with its data as a dataclass; `Line` explains the fields."""

    seq: int
    prev: str
    t_ns: int
    wall_ms: int
    clocks: Clocks
    src: str
    data: D_co

    @property
    def ev(self) -> str:
        return self.data.ev

    @property
    def line(self) -> int:
        """Its line in events.jsonl, from 1."""
        return self.seq + 1

    def to_json(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "prev": self.prev,
            "t_ns": self.t_ns,
            "wall_ms": self.wall_ms,
            "clocks": to_json(self.clocks),
            "src": self.src,
            "ev": self.ev,
            "data": to_json(self.data),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Event[Data]:
        """The event of a log's line.

        Raises:
            SchemaError: The line is not an event.
        """
        line = from_json(Line, record)
        kind = EVENTS.get(line.ev)
        if kind is None:
            raise SchemaError(f"unknown event {line.ev[:40]!r}", place="ev")
        if (line.src == "sup") != (kind.by == "supervisor"):
            raise SchemaError(f"{line.src!r} cannot report {line.ev!r}", place="src")
        try:
            data = from_json(kind, line.data, "data")
        except SchemaError as error:
            raise SchemaError(f"{line.ev}: {error.message}", place="data") from None
        return cast(
            "Event[Data]",
            cls(
                line.seq,
                line.prev,
                line.t_ns,
                line.wall_ms,
                line.clocks,
                line.src,
                cast(D_co, data),
            ),
        )


@dataclass(frozen=True, slots=True)
class Line:
    """One line of events.jsonl: canonical JSON (RFC 8785), bound to the line before by `prev`.

    Attributes:
        t_ns: Nanoseconds since the log was opened, on CLOCK_BOOTTIME, downtime included.
        wall_ms: Milliseconds since 1970 UTC: a label.
        src: Who reports it: the supervisor, the trainer, the kit's own evaluator.
    """

    seq: Count
    prev: Digest
    t_ns: Count
    wall_ms: int
    clocks: Clocks
    src: Annotated[str, Rule(choices=("sup", "trainer", "eval"))]
    ev: str
    data: dict[str, Any]


def parse_report(ev: str, data: dict[str, Any]) -> Data:
    """What a stage reported as `ev`.

    Raises:
        SchemaError: `ev` is not for stages to report, or a field is missing or of a wrong type.
    """
    kind = EVENTS.get(ev)
    if kind is None or kind.by != "stage":
        raise SchemaError(f"a stage cannot report {ev[:40]!r}")
    return from_json(kind, data, "data")

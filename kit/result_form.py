"""result.json as dataclasses: the one definition of what a run's signed statement holds.

schema/result.schema.json is made from these classes (`make schemas`). `kit.result` fills them from
a run's log; `verify` and the board read a result through `Result.of`. Results of earlier kits stay
readable: a field that they lack has the default `ABSENT`, which is never written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from kit.recipe import STAGES
from kit.tracks import TRACKS
from kit.typed import (
    ABSENT,
    AtMostOne,
    Count,
    Digest,
    Rule,
    Seconds,
    Share,
    Text40,
    Text200,
    Text300,
    UtcTime,
    from_json,
    one_of,
    to_json,
)

SCHEMA_VERSION = 1

Amount = Annotated[float, Rule(minimum=0)]
Items = Annotated[int, Rule(minimum=0, maximum=1_000_000)]
SomeItems = Annotated[int, Rule(minimum=1, maximum=1_000_000)]
TaskName = Annotated[str, Rule(max_length=80)]
Text20000 = Annotated[str, Rule(max_length=20_000)]
Text120 = Annotated[str, Rule(max_length=120)]


@dataclass(frozen=True, slots=True)
class Kit:
    """The kit that made the result.

    Attributes:
        code: Digest of the installed kit and trainer code.
    """

    version: Text40
    code: Digest


@dataclass(frozen=True, slots=True)
class Image:
    """The container image, by digest; null with the reason where none was passed in."""

    digest: Digest | None
    reason: Text300 | None


@dataclass(frozen=True, slots=True)
class RecipeText:
    """The recipe that was run.

    Attributes:
        text: The recipe file as it was run.
    """

    name: Annotated[str, Rule(pattern="^[a-z0-9][a-z0-9-]{0,39}$")]
    track: Annotated[str, one_of(*TRACKS)]
    division: Annotated[str, one_of("closed", "open")]
    digest: Digest
    text: Annotated[str, Rule(max_length=65_536)]


@dataclass(frozen=True, slots=True)
class Seed:
    """The run's seed and where it came from."""

    value: Annotated[int, Rule(minimum=0, maximum=2**31 - 1)]
    source: Annotated[str, one_of("recipe", "command line", "random", "challenge")]


@dataclass(frozen=True, slots=True)
class InputDigest:
    """One input.

    Attributes:
        digest: Of the list of its files, which the log holds.
        bytes: Size of all files together.
        files: How many there are.
    """

    digest: Digest
    bytes: Count
    files: Count


@dataclass(frozen=True, slots=True)
class InputDigests:
    """What was read: digest of each input's file list, null where the recipe reads none."""

    data: InputDigest | None
    sft: InputDigest | None
    chat_eval: InputDigest | None
    core: InputDigest | None


Fingerprint = Annotated[dict[str, Any], Rule(max_length=40)]


@dataclass(frozen=True, slots=True)
class Hardware:
    """Fingerprint of the machine before the first and after the last stage.

    Attributes:
        before, after: What kit.hardware measured; facts that could not be read are null with the
            reason.
    """

    before: Fingerprint | None
    after: Fingerprint | None


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage that was started, all attempts together."""

    stage: Annotated[str, one_of(*STAGES)]
    status: Annotated[str, one_of("complete", "failed", "stopped", "killed")]
    attempts: SomeItems
    elapsed_s: Seconds | None


@dataclass(frozen=True, slots=True)
class ClockDeviations:
    """Largest relative deviation of each other clock from the run's."""

    raw: float | None
    syscall: float | None
    uptime: float | None
    wall: float | None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds by the supervisor's clock.

    Attributes:
        started_at: When the run started, by the wall clock: a label.
        total_s: Seconds from run_start to run_stop: the figure that ranks.
        steps_s: Sum of the steps' own seconds, as the trainer reports them.
        nanochat_s: The same without the first ten steps: nanochat's definition of training time.
        downtime_s: Seconds between attempts; they are in total_s.
        clocks: Largest relative deviation of each other clock from the run's.
    """

    started_at: UtcTime | None
    total_s: Seconds
    budget_s: Seconds
    within_budget: bool
    stages: Annotated[tuple[StageTime, ...], Rule(max_length=16)]
    pretrain_s: Seconds | None
    steps_s: Seconds | None
    nanochat_s: Seconds | None
    resumes: Count
    downtime_s: Seconds
    reboots: Count
    clocks: ClockDeviations


@dataclass(frozen=True, slots=True)
class Training:
    """What pretraining did, from the steps on the surviving trajectory.

    Attributes:
        steps_done_again: Steps lost to a kill and done again.
        tokens_per_s: Tokens of a step over the median step, the first ten left out.
    """

    parameters: Count | None
    flops_per_token: Amount | None
    steps: Count
    steps_done_again: Count
    tokens: Count
    flops: Amount | None
    first_loss: float | None
    final_loss: float | None
    tokens_per_s: Amount | None
    mfu: Amount | None
    peak_memory_bytes: Count | None


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file of a stage's outputs; `path` is relative to their folder."""

    path: Annotated[str, Rule(max_length=400)]
    bytes: Count
    sha256: Digest


@dataclass(frozen=True, slots=True)
class Artifact:
    """The outputs of a stage."""

    folder: Text200
    digest: Digest
    files: Annotated[tuple[ArtifactFile, ...], Rule(min_items=1, max_length=10_000)]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the run left for others to load."""

    tokenizer: Artifact | None
    base: Artifact | None
    chat: Artifact | None


@dataclass(frozen=True, slots=True)
class FirstLast:
    """A figure before the first and after the last step."""

    first: float
    last: float


@dataclass(frozen=True, slots=True)
class CoreTask:
    """One task's score."""

    task: TaskName
    n: SomeItems
    accuracy: Share
    centered: AtMostOne


@dataclass(frozen=True, slots=True)
class Core:
    """A score on the tasks of a bundle.

    Attributes:
        value: Mean of the centred accuracies.
        interval: 95 % bootstrap interval of value.
        answer_bpb: Bits per byte of right answers, mean of the tasks; absent in results of earlier
            kits.
        digest: Of eval/core.json, which has the per-example outcomes.
    """

    value: AtMostOne
    partial: bool
    bundle: Annotated[str, one_of("core", "custom")]
    bundle_digest: Digest
    interval: Annotated[tuple[float, ...], Rule(min_items=2, max_length=2)] | None
    tasks: Annotated[tuple[CoreTask, ...], Rule(min_items=1, max_length=200)]
    digest: Digest
    answer_bpb: Amount | None = ABSENT


@dataclass(frozen=True, slots=True)
class ChatTask:
    """One task of the chat evaluation; null where it has no right answers or no turns."""

    task: TaskName
    n: Items
    accuracy: Share | None
    centered: AtMostOne | None
    ended_rate: Share | None


@dataclass(frozen=True, slots=True)
class Chat:
    """The chat score.

    Attributes:
        ended_rate: Share of answers that ended their turn.
        digest: Of eval/chat.json.
    """

    value: AtMostOne | None
    ended_rate: Share | None
    tasks: Annotated[tuple[ChatTask, ...], Rule(max_length=200)]
    digest: Digest


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the models are.

    Attributes:
        val_bpb: Bits per byte on the validation text, before the first and after the last step.
        sft_loss: Validation loss of finetuning, nats per assistant token.
    """

    val_bpb: FirstLast | None
    sft_loss: FirstLast | None
    core: Core | None
    chat: Chat | None


@dataclass(frozen=True, slots=True)
class Energy:
    """kWh is the fact; null with the reason where it could not be read.

    Attributes:
        cost: kwh times price_per_kwh.
    """

    kwh: Amount | None
    reason: Text300 | None = ABSENT
    price_per_kwh: Amount | None = ABSENT
    currency: Annotated[str, Rule(max_length=8)] | None = ABSENT
    cost: Amount | None = ABSENT
    more: Annotated[dict[str, Any], Rule(max_length=20)] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Digest of telemetry.jsonl, and figures over its samples."""

    digest: Digest | None
    summary: Annotated[dict[str, Any], Rule(max_length=60)] | None


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The event log, by the digest of its last line."""

    head: Digest
    count: Count
    bytes: Count


@dataclass(frozen=True, slots=True)
class Environment:
    """What surrounded the run, and the traffic on the machine's interfaces during it."""

    rx_bytes: Count | None
    tx_bytes: Count | None
    ld_preload: bool
    time_namespace: Text300 | None
    container: Text40 | None
    separate_trainer: bool = ABSENT


@dataclass(frozen=True, slots=True)
class RunName:
    """The run's name, and its place in a registered group."""

    id: Text120
    group: Text120 | None
    index: Count | None


@dataclass(frozen=True, slots=True)
class Account:
    """An account that showed the key."""

    user: Annotated[str, Rule(max_length=96)]
    fetched_at: UtcTime


@dataclass(frozen=True, slots=True)
class Identities:
    """Accounts that showed the key, as the submitter looked them up: a claim."""

    github: Account = ABSENT
    hf: Account = ABSENT


@dataclass(frozen=True, slots=True)
class Submitter:
    """Whose key signs."""

    public_key: Text20000
    key_created_for_this_work_folder: bool
    identities: Identities


@dataclass(frozen=True, slots=True)
class Claims:
    """How the run ended.

    Attributes:
        ranked: Nothing this kit knows stands against ranking; the board decides.
    """

    status: Annotated[str, one_of("complete", "failed", "stopped")]
    reason: Text200 | None
    message: Annotated[str, Rule(max_length=4_000)] | None
    stage: Text40 | None
    ranked: bool
    why_not_ranked: Annotated[tuple[Text300, ...], Rule(max_length=20)]


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature over the RFC 8785 bytes of the document without `signatures`."""

    format: Annotated[str, one_of("sshsig")]
    namespace: Annotated[str, Rule(max_length=80)]
    public_key: Text20000
    signature: Annotated[str, Rule(max_length=65_536)]


@dataclass(frozen=True, slots=True)
class Result:
    """The signed statement of what a run did.

    Attributes:
        software: Versions; null where not installed.
        notes: What the stages noted, in order.
        signatures: Over the RFC 8785 bytes of the document without `signatures`.
    """

    schema_version: Annotated[int, one_of(SCHEMA_VERSION)]
    kit: Kit
    image: Image
    recipe: RecipeText
    seed: Seed
    data: InputDigests
    hardware: Hardware
    software: Annotated[dict[str, Annotated[str, Rule(max_length=80)] | None], Rule(max_length=40)]
    timing: Timing
    training: Training
    checkpoint: Checkpoint
    quality: Quality
    energy: Energy
    telemetry: Telemetry
    log: LogEnd
    environment: Environment
    runs: RunName
    submitter: Submitter
    claims: Claims
    notes: Annotated[tuple[Annotated[str, Rule(max_length=2_000)], ...], Rule(max_length=10_000)]
    signatures: Annotated[tuple[Signature, ...], Rule(min_items=1, max_length=16)]

    @classmethod
    def of(cls, document: dict[str, Any]) -> Result:
        """The result that a parsed result.json holds. Raises `SchemaError` if it is not one.

        >>> import json
        >>> from pathlib import Path
        >>> path = Path("submissions/2026/example/9ffdb8e5b168ed02/result.json")
        >>> result = Result.of(json.loads(path.read_bytes()))
        >>> result.recipe.name, result.claims.status
        ('nano', 'complete')
        """
        return from_json(cls, document, "result")

    def to_json(self) -> dict[str, Any]:
        """The document, its keys in the order of the fields."""
        document: dict[str, Any] = to_json(self)
        return document

"""A row of the leaderboard as a dataclass.

schema/leaderboard-row.schema.json and the columns of leaderboard.parquet are made from it.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from kit.typed import (
    AtMostOne,
    Count,
    Digest,
    Rule,
    Seconds,
    Share,
    Text40,
    Text200,
    Text300,
    one_of,
)

ResultId = Annotated[str, Rule(pattern=r"^[0-9a-f]{16}$")]
Instant = Annotated[str, Rule(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
Positive = Annotated[int, Rule(minimum=1, maximum=2**53 - 1)]
Text96 = Annotated[str, Rule(max_length=96)]
Text600 = Annotated[str, Rule(max_length=600)]


@dataclass(frozen=True, slots=True)
class RecipeName:
    name: Annotated[str, Rule(max_length=120)]
    digest: Digest


@dataclass(frozen=True, slots=True)
class Task:
    task: Annotated[str, Rule(max_length=80)]
    n: Count
    accuracy: Share
    centered: AtMostOne


@dataclass(frozen=True, slots=True)
class Core:
    """CORE: all items of all 22 tasks of the bundle, and nothing else."""

    value: AtMostOne
    low: float | None
    high: float | None
    partial: bool
    bundle: Annotated[str, one_of("core", "custom")]
    tasks: Annotated[tuple[Task, ...], Rule(max_length=200)]


@dataclass(frozen=True, slots=True)
class Score:
    """Any other score on such tasks; null where `core` is set."""

    name: Annotated[str, one_of("partial score", "own-questions score")]
    value: AtMostOne
    low: float | None
    high: float | None
    partial: bool
    bundle: Annotated[str, one_of("core", "custom")]
    tasks: Annotated[tuple[Task, ...], Rule(max_length=200)]


@dataclass(frozen=True, slots=True)
class Pooled:
    """Means over runs of the same recipe.

    Attributes:
        n: Runs: this one, those of its group, counted reproductions.
    """

    n: Positive
    core: float | None
    core_low: float | None
    core_high: float | None
    score: float | None
    score_low: float | None
    score_high: float | None
    total_s: float
    total_s_low: float
    total_s_high: float
    members: Annotated[tuple[ResultId, ...], Rule(max_length=1000)]


@dataclass(frozen=True, slots=True)
class Training:
    parameters: Count | None
    tokens: Count | None
    steps: Count | None
    flops: float | None
    tokens_per_s: float | None
    mfu: float | None
    peak_memory_bytes: Count | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU of the run.

    Attributes:
        class_: From what was measured, whatever the card says.
        count: Visible GPUs.
    """

    name: Text200 | None
    class_: Annotated[str, Rule(max_length=60)]
    count: Count
    power_limit_w: float | None
    hash: Digest | None


@dataclass(frozen=True, slots=True)
class ModelPin:
    repository: Text200
    revision: Annotated[str, Rule(pattern=r"^[0-9a-f]{40}$")] | None


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A reproduction of the row by somebody.

    Attributes:
        counted: Whether it counts for the tier.
    """

    id: ResultId
    kind: Annotated[str, one_of("run", "check", "replay")]
    by: Text96
    at: Instant
    verdict: Annotated[str, one_of("confirmed", "worse", "inconclusive")]
    counted: bool
    result_id: ResultId | None


@dataclass(frozen=True, slots=True)
class Statement:
    id: ResultId
    kind: Annotated[str, one_of("dispute", "withdrawal", "rescore", "resolution")]
    by: Text96
    at: Instant


@dataclass(frozen=True, slots=True)
class Source:
    text: Text600
    url: Annotated[str, Rule(max_length=500, pattern="^https://")]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of leaderboard.jsonl and one row of leaderboard.parquet.

    Attributes:
        kind: reference: a published figure, cited and never ranked.
        path: Folder below the board.
        rank: 1 + the number of ranked rows of the track that are significantly better; equal
            ranks are ties.
        ties: How many other ranked rows of the track cannot be told from this one.
        key: SHA256:… fingerprint of the key that signed.
        status: How the run ended.
        nanochat_s: By nanochat's own way of counting.
        reaches_target: Mean CORE at or above 0.256525 by the listing rule; null where it does not
            apply.
        standing: single: one run. pooled: several. record: three or more, significantly ahead of
            the row before it.
        checks: Check id -> worst status.
    """

    schema_version: Annotated[int, one_of(1)]
    kind: Annotated[str, one_of("submission", "reference")]
    id: Annotated[str, Rule(pattern=r"^([0-9a-f]{16}|ref-[a-z0-9.-]{1,60})$")]
    path: Text200 | None
    state: Annotated[str, one_of("pending", "listed", "disputed", "withdrawn")]
    tier: Annotated[str, one_of("T0", "T1", "T2", "T3", "T4")] | None
    tier_reason: Text600
    rank: Positive | None
    rank_in_division: Positive | None
    ties: Count
    why_not_ranked: Annotated[tuple[Text300, ...], Rule(max_length=20)]
    title: Text300
    submitter: Text96
    key: Annotated[str, Rule(max_length=80)] | None
    submitted_at: Instant | None
    started_at: Instant | None
    track: Text40 | None
    division: Text40 | None
    recipe: RecipeName | None
    status: Annotated[str, one_of("complete", "failed", "stopped")] | None
    total_s: Seconds | None
    budget_s: Seconds | None
    pretrain_s: Seconds | None
    nanochat_s: Seconds | None
    core: Core | None
    score: Score | None
    pooled: Pooled | None
    reaches_target: bool | None
    standing: Annotated[str, one_of("single", "pooled", "record")] | None
    val_bpb: Seconds | None
    chat: AtMostOne | None
    training: Training | None
    gpu: Gpu | None
    cpu: Text200 | None
    kwh: Seconds | None
    seed: Count | None
    kit: Text40 | None
    image: Text200 | None
    model: ModelPin | None
    verdict: Annotated[str, one_of("consistent", "refused", "unreadable", "inconclusive")] | None
    checks: Annotated[
        dict[str, Annotated[str, one_of("pass", "fail", "warn", "skip")]],
        Rule(key_pattern=r"^V[0-9]{2}$"),
    ]
    reproductions: Annotated[tuple[Reproduction, ...], Rule(max_length=1000)]
    statements: Annotated[tuple[Statement, ...], Rule(max_length=1000)]
    source: Source | None


def arrow_schema(arrow: Any) -> Any:
    """The columns of leaderboard.parquet; `arrow` is the module pyarrow."""
    return arrow.schema(_columns(Row, arrow))


def _columns(kind: type, arrow: Any) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind)
    return [
        (item.name.removesuffix("_"), _arrow_type(hints[item.name], arrow)) for item in fields(kind)
    ]


def _arrow_type(hint: Any, arrow: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        [hint] = [part for part in get_args(hint) if part is not types.NoneType]
        return _arrow_type(hint, arrow)
    if origin is tuple:
        return arrow.list_(_arrow_type(get_args(hint)[0], arrow))
    if origin is dict:
        key, value = get_args(hint)
        return arrow.map_(_arrow_type(key, arrow), _arrow_type(value, arrow))
    if is_dataclass(hint):
        return arrow.struct(_columns(hint, arrow))  # type: ignore[arg-type]
    plain = {int: arrow.int64, float: arrow.float64, str: arrow.string, bool: arrow.bool_}
    return plain[hint]()

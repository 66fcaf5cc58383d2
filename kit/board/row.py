"""A submission's row as far as it depends on nothing but its own result."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kit import result_form
from kit.board.layout import SubmissionPath
from kit.board.ownership import named_account, names_submitter
from kit.board.row_form import Core, Gpu, ModelPin, RecipeName, Row, Score, Task, Training
from kit.core_eval.naming import PARTIAL_SCORE, is_core, score_name
from kit.errors import KitError
from kit.result_form import Result
from kit.text import plain
from kit.trust.canonical import parse_strict
from kit.trust.sshsig import PublicKey
from kit.typed import to_json

Document = dict[str, Any]
MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError, KitError)


class Facts(NamedTuple):
    """What other rows need to know of a row."""

    id: str
    path: SubmissionPath
    key: str  # public key
    recipe_digest: str
    track: str
    division: str
    group: str | None
    group_index: int | None
    group_runs: int | None  # how many were registered
    status: str
    claimed_ranked: bool
    why_not: tuple[str, ...]
    gpu_class: str
    gpu_hash: str | None
    seed: int
    log_head: str
    prints: tuple[str, ...]  # digests that no two honest runs on GPUs share
    val_bpb: float | None
    core: float | None  # all of CORE; what ranks
    score: float | None  # whatever was scored
    total_s: float
    has_model: bool
    started_s: float | None = None  # since 1970
    bound: bool = True  # the run's own key names this submitter
    identity: str | None = None  # the Hub account in the signed result, case-folded

    @property
    def person(self) -> str:
        """The submitter, however the name is spelled: accounts do not differ by case alone."""
        return self.path.submitter.casefold()


def _empty() -> Row:
    """A row that says nothing yet: each field null, or empty where it may not be null."""
    nothing: dict[str, Any] = {field.name: None for field in fields(Row)}
    nothing |= {"schema_version": 1, "state": "listed", "tier_reason": "", "ties": 0, "checks": {}}
    nothing |= dict.fromkeys(("why_not_ranked", "reproductions", "statements"), ())
    return Row(**nothing)


def submission_row(path: SubmissionPath, result: Result, pin: Document) -> Document:
    """The row of a submission; what the board adds is still empty.

    Raises:
        KitError, KeyError, …: One of `MALFORMED`, for a fingerprint that is none.
    """
    timing, training, quality = result.timing, result.training, result.quality
    before = result.hardware.before or {}
    recipe, model, core = result.recipe, pin["model"], quality.core
    whole = core is not None and is_core(to_json(core))
    row = replace(
        _empty(),
        kind="submission",
        id=path.result_id,
        path=str(path),
        title=_title(recipe.text) or plain(recipe.name, 300),
        submitter=path.submitter,
        key=_fingerprint(result.submitter.public_key),
        started_at=timing.started_at,
        track=plain(recipe.track, 40),
        division=plain(recipe.division, 40),
        recipe=RecipeName(plain(recipe.name, 120), recipe.digest),
        status=result.claims.status,
        total_s=timing.total_s,
        budget_s=timing.budget_s,
        pretrain_s=timing.pretrain_s,
        nanochat_s=timing.nanochat_s,
        core=Core(**_score(core)) if core and whole else None,
        score=Score(score_name(to_json(core)), **_score(core)) if core and not whole else None,
        val_bpb=quality.val_bpb.last if quality.val_bpb else None,
        chat=quality.chat.value if quality.chat else None,
        training=Training(
            parameters=training.parameters,
            tokens=training.tokens,
            steps=training.steps,
            flops=training.flops,
            tokens_per_s=training.tokens_per_s,
            mfu=training.mfu,
            peak_memory_bytes=training.peak_memory_bytes,
        ),
        gpu=_gpu(before),
        cpu=_text((before.get("host") or {}).get("cpu_model"), 200),
        kwh=result.energy.kwh,
        seed=result.seed.value,
        kit=plain(result.kit.version, 40),
        image=_text(result.image.digest, 200),
        model=model and ModelPin(plain(model["repository"], 200), model["revision"]),
    )
    document: Document = to_json(row)
    return document


def facts_of(
    path: SubmissionPath, result: Result, pin: Document, row: Document, folder: Path
) -> Facts:
    """What other rows need to know of this one, whose log lies in `folder`."""
    claims, core, score = result.claims, row["core"], row["score"]
    return Facts(
        id=path.result_id,
        path=path,
        key=result.submitter.public_key,
        recipe_digest=result.recipe.digest,
        track=row["track"],
        division=row["division"],
        group=result.runs.group,
        group_index=result.runs.index,
        group_runs=_registered(folder) if result.runs.group else None,
        status=claims.status,
        claimed_ranked=claims.ranked,
        why_not=tuple(plain(reason, 300) for reason in claims.why_not_ranked),
        gpu_class=row["gpu"]["class"] if row["gpu"] else "none",
        gpu_hash=row["gpu"]["hash"] if row["gpu"] else None,
        seed=result.seed.value,
        log_head=result.log.head,
        prints=tuple(_prints(result)),
        val_bpb=row["val_bpb"],
        core=core["value"] if core else None,
        score=core["value"] if core else score["value"] if score else None,
        total_s=row["total_s"],
        has_model=pin["model"] is not None,
        started_s=_seconds_since_1970(result.timing.started_at),
        bound=names_submitter(pin, result.submitter, path.submitter),
        identity=named_account(result.submitter),
    )


def _seconds_since_1970(instant: str | None) -> float | None:
    return None if instant is None else datetime.fromisoformat(instant).timestamp()


def _registered(folder: Path) -> int | None:
    """How many runs the group of a run was registered with: its log's header has the document."""
    with (folder / "events.jsonl").open("rb") as file:
        header = parse_strict(file.readline(2**20), name="the log's header")
    runs = header["data"]["group"]["registration"]["runs"]
    return runs if isinstance(runs, int) else None


def _prints(result: Result) -> Iterator[str]:
    """Digests that two different runs do not have in common, and the card's."""
    yield result.log.head
    checkpoint, quality = result.checkpoint, result.quality
    for part in (checkpoint.base, checkpoint.chat, quality.core, quality.chat, result.telemetry):
        if part is not None and part.digest:
            yield part.digest
    for gpu in (result.hardware.before or {}).get("gpus") or []:
        if isinstance(gpu.get("uuid_hash"), str):
            yield gpu["uuid_hash"]


def title_of(recipe: Document) -> str:
    """The recipe's own title; its name when it has none."""
    return _title(recipe["text"]) or plain(recipe["name"], 300)


@lru_cache(maxsize=256)  # thousands of rows share a recipe
def _title(text: str) -> str:
    try:
        title = tomllib.loads(text).get("title")
    except (ValueError, RecursionError):
        return ""
    return plain(title, 300) if isinstance(title, str) else ""


@lru_cache(maxsize=1024)
def _fingerprint(public_key: str) -> str:
    return PublicKey.parse(public_key).fingerprint


def _score(core: result_form.Core) -> dict[str, Any]:
    """The fields that `Core` and `Score` of a row share."""
    low, high = core.interval or (None, None)
    return {
        "value": core.value,
        "low": low,
        "high": high,
        "partial": core.partial,
        "bundle": core.bundle,
        "tasks": tuple(
            Task(plain(task.task, 80), task.n, task.accuracy, task.centered) for task in core.tasks
        ),
    }


def _gpu(before: Document) -> Gpu | None:
    gpus = before.get("gpus")
    if not gpus:
        return None
    first = gpus[0]
    return Gpu(
        name=_text(first.get("name"), 200),
        class_=plain(before["class"]["name"], 60),
        count=len(gpus),
        power_limit_w=_number(first.get("power_limit_w")),
        hash=first.get("uuid_hash"),
    )


def _text(value: Any, limit: int) -> str | None:
    return None if value is None else plain(value, limit)


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def reference_row(entry: Document) -> Document:
    """The row of a published figure: cited, never ranked. `entry` is one of references.json."""
    core = {
        "value": entry["core"],
        "low": None,
        "high": None,
        "partial": entry.get("partial", False),
        "bundle": "core",
        "tasks": entry.get("tasks", []),
    }
    row = replace(
        _empty(),
        kind="reference",
        id=f"ref-{entry['id']}",
        tier_reason="cited from its source; not run, checked or ranked here",
        why_not_ranked=("a published figure, shown for comparison",),
        title=plain(entry["title"], 300),
        submitter=plain(entry["by"], 96),
        total_s=entry.get("total_s"),
        nanochat_s=entry.get("nanochat_s"),
        val_bpb=entry.get("val_bpb"),
    )
    name = "score" if core["partial"] else "core"
    shown = {"name": PARTIAL_SCORE, **core} if core["partial"] else core
    document: Document = to_json(row)
    return {**document, name: shown, "gpu": entry.get("gpu"), "source": entry["source"]}

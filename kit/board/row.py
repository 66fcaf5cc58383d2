"""A submission's row as far as it depends on nothing but its own result."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kit.board.layout import SubmissionPath
from kit.board.ownership import named_account, names_submitter
from kit.core_eval.naming import PARTIAL_SCORE, is_core, score_name
from kit.errors import KitError
from kit.text import plain
from kit.trust.canonical import parse_strict
from kit.trust.sshsig import PublicKey

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


def submission_row(path: SubmissionPath, result: Document, pin: Document) -> Document:
    """The row of a submission whose result fits its schema; what the board adds is still empty.

    Raises:
        KitError, KeyError, …: One of `MALFORMED`, for a fingerprint that is none.
    """
    timing, training, quality = result["timing"], result["training"], result["quality"]
    core, bpb, chat = quality["core"], quality["val_bpb"], quality["chat"]
    before = result["hardware"]["before"] or {}
    recipe = result["recipe"]
    model = pin["model"]
    return {
        "schema_version": 1,
        "kind": "submission",
        "id": path.result_id,
        "path": str(path),
        "state": "listed",
        "tier": None,
        "tier_reason": "",
        "rank": None,
        "rank_in_division": None,
        "ties": 0,
        "why_not_ranked": [],
        "title": title_of(recipe),
        "submitter": path.submitter,
        "key": _fingerprint(result["submitter"]["public_key"]),
        "submitted_at": None,
        "started_at": timing["started_at"],
        "track": plain(recipe["track"], 40),
        "division": plain(recipe["division"], 40),
        "recipe": {"name": plain(recipe["name"], 120), "digest": recipe["digest"]},
        "status": result["claims"]["status"],
        "total_s": timing["total_s"],
        "budget_s": timing["budget_s"],
        "pretrain_s": timing["pretrain_s"],
        "nanochat_s": timing["nanochat_s"],
        "core": _core(core) if is_core(core) else None,
        "score": None if core is None or is_core(core) else _other_score(core),
        "pooled": None,
        "reaches_target": None,
        "standing": None,
        "val_bpb": bpb and bpb["last"],
        "chat": chat and chat["value"],
        "training": {
            name: training.get(name)
            for name in (
                "parameters",
                "tokens",
                "steps",
                "flops",
                "tokens_per_s",
                "mfu",
                "peak_memory_bytes",
            )
        },
        "gpu": _gpu(before),
        "cpu": _text((before.get("host") or {}).get("cpu_model"), 200),
        "kwh": _number(result["energy"]["kwh"]),
        "seed": result["seed"]["value"],
        "kit": plain(result["kit"]["version"], 40),
        "image": _text(result["image"].get("digest"), 200),
        "model": model
        and {"repository": plain(model["repository"], 200), "revision": model["revision"]},
        "verdict": None,
        "checks": {},
        "reproductions": [],
        "statements": [],
        "source": None,
    }


def facts_of(
    path: SubmissionPath, result: Document, pin: Document, row: Document, folder: Path
) -> Facts:
    """What other rows need to know of this one, whose log lies in `folder`."""
    claims, core, score = result["claims"], row["core"], row["score"]
    return Facts(
        id=path.result_id,
        path=path,
        key=result["submitter"]["public_key"],
        recipe_digest=result["recipe"]["digest"],
        track=row["track"],
        division=row["division"],
        group=result["runs"]["group"],
        group_index=result["runs"]["index"],
        group_runs=_registered(folder) if result["runs"]["group"] else None,
        status=claims["status"],
        claimed_ranked=claims["ranked"],
        why_not=tuple(plain(reason, 300) for reason in claims["why_not_ranked"]),
        gpu_class=row["gpu"]["class"] if row["gpu"] else "none",
        gpu_hash=row["gpu"]["hash"] if row["gpu"] else None,
        seed=result["seed"]["value"],
        log_head=result["log"]["head"],
        prints=tuple(_prints(result)),
        val_bpb=row["val_bpb"],
        core=core["value"] if core else None,
        score=core["value"] if core else score["value"] if score else None,
        total_s=row["total_s"],
        has_model=pin["model"] is not None,
        started_s=_seconds_since_1970(result["timing"]["started_at"]),
        bound=names_submitter(pin, result, path.submitter),
        identity=named_account(result),
    )


def _seconds_since_1970(instant: str | None) -> float | None:
    return None if instant is None else datetime.fromisoformat(instant).timestamp()


def _registered(folder: Path) -> int | None:
    """How many runs the group of a run was registered with: its log's header has the document."""
    with (folder / "events.jsonl").open("rb") as file:
        header = parse_strict(file.readline(2**20), name="the log's header")
    runs = header["data"]["group"]["registration"]["runs"]
    return runs if isinstance(runs, int) else None


def _prints(result: Document) -> Iterator[str]:
    """Digests that two different runs do not have in common, and the card's."""
    yield result["log"]["head"]
    for part in ("base", "chat"):
        if artifact := result["checkpoint"][part]:
            yield artifact["digest"]
    for name in ("core", "chat"):
        if section := result["quality"][name]:
            yield section["digest"]
    if result["telemetry"]["digest"]:
        yield result["telemetry"]["digest"]
    for gpu in (result["hardware"]["before"] or {}).get("gpus") or []:
        if isinstance(gpu.get("uuid_hash"), str):
            yield gpu["uuid_hash"]


def title_of(recipe: Document) -> str:
    """The recipe's own title; its name when it has none."""
    return _title(recipe["text"]) or plain(recipe["name"], 300)


@lru_cache(maxsize=256)  # thousands of rows share a recipe
def _title(text: str) -> str:
    try:
        title = tomllib.loads(text).get("title")
    except (tomllib.TOMLDecodeError, RecursionError):
        return ""
    return plain(title, 300) if isinstance(title, str) else ""


@lru_cache(maxsize=1024)
def _fingerprint(public_key: str) -> str:
    return PublicKey.parse(public_key).fingerprint


def _core(core: Document) -> Document:
    low, high = core["interval"] or (None, None)
    tasks = [{**task, "task": plain(task["task"], 80)} for task in core["tasks"]]
    return {
        "value": core["value"],
        "low": low,
        "high": high,
        "partial": core["partial"],
        "bundle": core["bundle"],
        "tasks": tasks,
    }


def _other_score(core: Document) -> Document:
    return {"name": score_name(core), **_core(core)}


def _gpu(before: Document) -> Document | None:
    gpus = before.get("gpus")
    if not gpus:
        return None
    first = gpus[0]
    return {
        "name": _text(first.get("name"), 200),
        "class": plain(before["class"]["name"], 60),
        "count": len(gpus),
        "power_limit_w": _number(first.get("power_limit_w")),
        "hash": first.get("uuid_hash"),
    }


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
    return {
        "schema_version": 1,
        "kind": "reference",
        "id": f"ref-{entry['id']}",
        "path": None,
        "state": "listed",
        "tier": None,
        "tier_reason": "cited from its source; not run, checked or ranked here",
        "rank": None,
        "rank_in_division": None,
        "ties": 0,
        "why_not_ranked": ["a published figure, shown for comparison"],
        "title": plain(entry["title"], 300),
        "submitter": plain(entry["by"], 96),
        "key": None,
        "submitted_at": None,
        "started_at": None,
        "track": None,
        "division": None,
        "recipe": None,
        "status": None,
        "total_s": entry.get("total_s"),
        "budget_s": None,
        "pretrain_s": None,
        "nanochat_s": entry.get("nanochat_s"),
        "core": None if core["partial"] else core,
        "score": {"name": PARTIAL_SCORE, **core} if core["partial"] else None,
        "pooled": None,
        "reaches_target": None,
        "standing": None,
        "val_bpb": entry.get("val_bpb"),
        "chat": None,
        "training": None,
        "gpu": entry.get("gpu"),
        "cpu": None,
        "kwh": None,
        "seed": None,
        "kit": None,
        "image": None,
        "model": None,
        "verdict": None,
        "checks": {},
        "reproductions": [],
        "statements": [],
        "source": entry["source"],
    }

"""Boards for tests of the site: rows as `publish` derives them, without the runs behind them."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from kit.board.layout import Layout, SubmissionPath
from kit.schemas import problems
from kit.trust.board_record import EVENTS_KIND
from kit.trust.chain_writer import ChainWriter
from kit.verify.thresholds import CORE_TASKS

Document = dict[str, Any]
SIGMA = 0.0052
HOSTILE = "<img src=x onerror=alert(1)>\u202egnp.exe\u0007 =cmd|' /C calc'!A0" + "Z\u0335" * 40


def row(number: int, **changes: Any) -> Document:
    """A ranked-track row with plausible figures; `changes` replace fields."""
    rng = random.Random(number)
    core = round(rng.gauss(0.232, 0.012), 6)
    row_id = hashlib.sha256(str(number).encode()).hexdigest()[:16]
    submitter = rng.choice(["ada", "grace", "alan", "katherine", "edsger", "barbara", "donald"])
    hours = rng.uniform(17, 23.9)
    day = 1 + number % 28
    found: Document = {
        "schema_version": 1,
        "kind": "submission",
        "id": row_id,
        "path": f"2026/{submitter}/{row_id}",
        "state": "listed",
        "tier": rng.choice(["T1", "T1", "T1", "T2", "T3", "T4"]),
        "tier_reason": "every check that text allows agrees",
        "rank": 1,
        "rank_in_division": 1,
        "ties": 0,
        "why_not_ranked": [],
        "title": rng.choice(["wider and shorter", "muon, longer warm-down", "GQA with tied heads"]),
        "submitter": submitter,
        "key": "SHA256:" + "k" * 43,
        "submitted_at": f"2026-{1 + number % 11:02d}-{day:02d}T12:00:00Z",
        "started_at": f"2026-{1 + number % 11:02d}-{day:02d}T08:00:00Z",
        "track": "rtx4090-24h",
        "division": rng.choice(["open", "closed"]),
        "recipe": {
            "name": rng.choice(["reference", "d20-wide", "gqa-tied", "muon-long"]),
            "digest": "sha256:" + "a" * 64,
        },
        "status": "complete",
        "total_s": round(3600 * hours, 3),
        "budget_s": 86400.0,
        "pretrain_s": round(3300 * hours, 3),
        "nanochat_s": None,
        "core": {
            "value": core,
            "low": core - 0.007,
            "high": core + 0.007,
            "partial": False,
            "bundle": "core",
            "tasks": [
                {
                    "task": task,
                    "n": n,
                    "accuracy": (accuracy := min(1.0, base / 100 + rng.random() * 0.35)),
                    "centered": (accuracy - base / 100) / (1 - base / 100),
                }
                for task, (n, base) in CORE_TASKS.items()
            ],
        },
        "score": None,
        "pooled": {
            "n": 1,
            "core": core,
            "core_low": core - 1.96 * SIGMA,
            "core_high": core + 1.96 * SIGMA,
            "score": None,
            "score_low": None,
            "score_high": None,
            "total_s": round(3600 * hours, 3),
            "total_s_low": 3400 * hours,
            "total_s_high": 3800 * hours,
            "members": [row_id],
        },
        "reaches_target": False,
        "standing": "single",
        "val_bpb": round(rng.gauss(0.78, 0.01), 4),
        "chat": 0.21,
        "training": {
            "parameters": 560_988_160,
            "tokens": 8_800_000_000,
            "steps": 16_800,
            "flops": 3.1e19,
            "tokens_per_s": 118_000.0,
            "mfu": 0.61,
            "peak_memory_bytes": 22_000_000_000,
        },
        "gpu": {
            "name": "NVIDIA GeForce RTX 4090",
            "class": "4090",
            "count": 1,
            "power_limit_w": 450.0,
            "hash": "sha256:" + "4" * 64,
        },
        "cpu": "AMD Ryzen 9 7950X",
        "kwh": round(0.41 * hours, 4),
        "seed": number,
        "kit": "0.1.0",
        "image": None,
        "model": None,
        "verdict": "consistent",
        "checks": {"V01": "pass", "V02": "pass", "V21": "warn"},
        "reproductions": [],
        "statements": [],
        "source": None,
    }
    found |= changes
    if found["core"] is None or found["track"] != "rtx4090-24h":
        found["pooled"] = changes.get("pooled")
    return found


def unranked(number: int, track: str, **changes: Any) -> Document:
    """A row of another track: shown apart, never ranked."""
    return row(
        number,
        **{
            "track": track,
            "rank": None,
            "rank_in_division": None,
            "standing": None,
            "reaches_target": None,
            "why_not_ranked": [f"track {track} is not ranked"],
            **changes,
        },
    )


def reference(name: str, core: float, hours: float | None, **changes: Any) -> Document:
    """A published figure."""
    return row(
        1,
        **{
            "kind": "reference",
            "id": "ref-" + name.lower().replace(" ", "-"),
            "rank": None,
            "rank_in_division": None,
            "standing": None,
            "reaches_target": None,
            "path": None,
            "tier": None,
            "title": name,
            "submitter": "cited",
            "track": None,
            "division": None,
            "recipe": None,
            "status": None,
            "total_s": None if hours is None else hours * 3600,
            "budget_s": None,
            "pretrain_s": None,
            "gpu": None,
            "cpu": None,
            "kwh": None,
            "key": None,
            "kit": None,
            "seed": None,
            "submitted_at": None,
            "started_at": None,
            "training": None,
            "verdict": None,
            "checks": {},
            "why_not_ranked": ["cited"],
            "pooled": None,
            "core": {
                "value": core,
                "low": None,
                "high": None,
                "partial": False,
                "bundle": "core",
                "tasks": [],
            },
            "source": {"text": "as published", "url": "https://example.org/figure"},
            **changes,
        },
    )


def with_ranks(rows: list[Document]) -> list[Document]:
    """The ranked rows of a list numbered by CORE, rows closer than the noise tied."""
    ranked = sorted((r for r in rows if r["rank"]), key=lambda r: -r["core"]["value"])
    far = 1.645 * SIGMA * 2**0.5
    for one in ranked:
        value = one["core"]["value"]
        one["rank"] = 1 + sum(other["core"]["value"] - value >= far for other in ranked)
        one["ties"] = sum(abs(other["core"]["value"] - value) < far for other in ranked) - 1
    rest = [r for r in rows if not r["rank"]]
    return [*sorted(ranked, key=lambda r: r["rank"]), *rest]


def write_board(root: Path, rows: list[Document], events: list[Document] | None = None) -> Path:
    """A board of these rows; its chain holds a first line and `events`."""
    layout = Layout(root)
    root.mkdir(parents=True, exist_ok=True)
    for one in rows:
        assert problems(one, "leaderboard-row") == [], problems(one, "leaderboard-row")[:3]
    layout.leaderboard.write_text(
        "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
    )
    layout.settings.write_text(
        json.dumps(
            {"schema_version": 1, "name": "test board", "repository": None, "maintainers": []}
        )
    )
    with ChainWriter(layout.events, EVENTS_KIND) as chain:
        first = {
            "at": "2026-11-22T12:00:00Z",
            "ev": "board",
            "id": None,
            "reason": "the board begins",
            "data": {},
        }
        for event in [first, *(events or [])]:
            chain.append(event)
    return root


def add_submission(root: Path, run: Path, found: Document) -> Document:
    """Puts a real run's text behind a row, whose id becomes the run's."""
    import shutil

    from kit.trust.sign import result_id

    result = json.loads((run / "result.json").read_text())
    row_id = result_id(result)
    path = SubmissionPath("2026", found["submitter"], row_id)
    folder = Layout(root).submission(path)
    folder.mkdir(parents=True)
    for name in ("result.json", "events.jsonl", "telemetry.jsonl", "eval"):
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / name)
        elif (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    (folder / "README.md").write_text("a run\n")
    pin = {
        "schema_version": 1,
        "result_id": row_id,
        "submitter": found["submitter"],
        "model": None,
        "files": [],
    }
    (folder / "submission.json").write_text(json.dumps(pin))
    return {**found, "id": row_id, "path": str(path)}

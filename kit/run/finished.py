"""What must never be written again: complete runs, and results that were signed before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kit.errors import KitError, PrerequisiteError
from kit.files import sync_folder
from kit.trust.canonical import parse_strict
from kit.trust.sign import result_id


def refuse_complete(run: Path) -> None:
    """Refuses to resume a run that has its final result.

    Raises:
        PrerequisiteError: RUN/result.json says that the run is complete, or that it has used its
            time budget.
    """
    path = run / "result.json"
    try:
        result = json.loads(path.read_bytes())
        status = result["claims"]["status"]
        timing = result["timing"]
        used_up = timing["total_s"] >= timing["budget_s"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no result, or none that says how the run ended: the log decides
    if status == "complete":
        raise PrerequisiteError(
            f"run {run.name} is complete: there is nothing to resume",
            hint=f"`n4090-kit verify {path}` checks its result; "
            "`n4090-kit run --recipe …` starts a new run.",
        )
    if used_up:
        raise PrerequisiteError(
            f"run {run.name} has used its time budget: the clock went on, nothing can be resumed",
            hint=f"Its result is signed: `n4090-kit verify {path}`. "
            "`n4090-kit run --recipe …` starts a new run.",
        )


def refuse_unfinished(path: Path) -> None:
    """Refuses to judge a run that has no result yet, because it is running or was killed.

    Args:
        path: A run folder, or the result.json that it will have.

    Raises:
        PrerequisiteError: There is an event log, and no result beside it.
    """
    run = path.parent if path.name == "result.json" else path
    log = run / "events.jsonl"
    if (run / "result.json").exists() or not log.is_file():
        return
    if _is_written(log):
        raise PrerequisiteError(
            f"run {run.resolve().name} is not finished: it is running",
            hint=f"`n4090-kit watch {run}` shows it.",
        )
    raise PrerequisiteError(
        f"run {run.resolve().name} is not finished: it was interrupted and has no result",
        hint=f"`n4090-kit run --resume {run}` finishes it.",
    )


def _is_written(log: Path) -> bool:
    """Whether a supervisor holds the log."""
    try:
        import fcntl
    except ImportError:  # no run is made on a system without it
        return False
    with log.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def keep_earlier_result(run: Path) -> Path | None:
    """Renames RUN/result.json to `result-DIGEST.json`, before the run's log grows past it.

    Returns:
        The file's new path, or None if there was no result. DIGEST is the result's id, the first
        16 hex digits of the SHA-256 of its signed bytes; for an unreadable file, of all its bytes.
    """
    path = run / "result.json"
    if not path.is_file():
        return None
    kept = path.with_name(f"result-{_digest(path.read_bytes())}.json")
    path.replace(kept)
    sync_folder(run)
    return kept


def _digest(content: bytes) -> str:
    try:
        document: Any = parse_strict(content, name="result.json")
        if isinstance(document, dict):
            return result_id(document)
    except KitError:
        pass
    return hashlib.sha256(content).hexdigest()[:16]

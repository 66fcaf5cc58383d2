"""A pull request on the board: what it may touch, what it does touch, and what its author is told.

A submission adds files in its author's own folder, and documents in its author's name. Whatever
else a pull request touches refuses it, before any of it is fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kit.board.inspect import Inspection
from kit.board.layout import (
    BOARD_FOLDER,
    MAX_DOCUMENT_BYTES,
    TEXT_LIMITS,
    SubmissionPath,
    document_name,
)
from kit.text import markdown

# What the publisher writes.
DERIVED = ("board-events.jsonl", "leaderboard.jsonl", "leaderboard.parquet")
_HEADER = re.compile(r"^diff --git a/(.+) b/(.+)$", re.MULTILINE)
_MAX_FILES = 20


@dataclass
class PullRequest:
    """One pull request as its diff and its head show it."""

    number: int
    author: str
    status: str
    commit: str
    submission: SubmissionPath | None = None
    files: list[str] = field(default_factory=list)  # below the board
    problem: str | None = None


def may_mirror(relative: str) -> bool:
    """Whether a path below the board is one of a board: nothing else is ever written here."""
    parts = relative.split("/")
    if len(parts) == 1:
        return relative in (*DERIVED, "board.json", "references.json", "revoked_keys")
    return is_submission_file(relative) or is_document(relative)


def is_submission_file(relative: str) -> bool:
    """Whether a path below the board is a file that a submission may hold."""
    parts = relative.split("/")
    path = SubmissionPath.parse("/".join(parts[:3]))
    return path is not None and "/".join(parts[3:]) in TEXT_LIMITS


def is_document(relative: str) -> bool:
    """Whether a path below the board is a reproduction's or statement's."""
    parts = relative.split("/")
    return (
        len(parts) == 3
        and parts[0] in ("reproductions", "statements")
        and re.fullmatch(r"[0-9a-f]{16}", parts[1]) is not None
        and document_name(parts[2]) is not None
    )


def file_limit(relative: str) -> int:
    """Bytes that a file of the board may have; what the publisher writes itself may grow."""
    parts = relative.split("/")
    if is_submission_file(relative):
        return TEXT_LIMITS["/".join(parts[3:])]
    return MAX_DOCUMENT_BYTES if is_document(relative) else 2**31


def touched_by(diff: str) -> set[str]:
    """Paths that a git diff names. Quoted names (odd bytes) stay quoted, and are refused so."""
    return {path for match in _HEADER.finditer(diff) for path in match.groups()} | {
        line for line in re.findall(r'^diff --git "(.+)"$', diff, re.MULTILINE)
    }


def classify(request: PullRequest, touched: set[str], on_main: dict[str, str]) -> None:
    """Sorts what a pull request touches; notes the first thing it may not."""
    taken = {p.split("/")[2]: p for p in on_main if p.endswith("/result.json")}
    if not touched:
        request.problem = "it changes nothing that can be seen"
    elif len(touched) > _MAX_FILES:
        request.problem = f"it touches {len(touched)} files; a submission has at most {_MAX_FILES}"
    for path in sorted(touched):
        relative = path.removeprefix(f"{BOARD_FOLDER}/")
        if path == relative or not (is_submission_file(relative) or is_document(relative)):
            request.problem = f"it touches `{path[:200]}`, which is not part of a submission"
        elif relative in on_main:
            request.problem = f"it changes `{relative[:200]}`, which is on the board already"
        elif is_document(relative):
            who = (document_name(relative.split("/")[2]) or ("",))[0]
            if who != request.author:
                request.problem = f"it adds a document in the name of {who}"
        else:
            folder = SubmissionPath.parse("/".join(relative.split("/")[:3]))
            if folder is None or folder.submitter != request.author:
                request.problem = "it writes into another's folder"
            elif request.submission not in (None, folder):
                request.problem = "it holds more than one submission"
            elif folder.result_id in taken:
                request.problem = f"its result is on the board as `{taken[folder.result_id]}`"
            else:
                request.submission = folder
        if request.problem:
            request.submission = None
            return
        request.files.append(relative)


def comment(
    request: PullRequest,
    found: Inspection | None,
    documents: list[tuple[str, bool, str]],
) -> str:
    """The check table for a pull request. Its text is others'; none of its markup works here."""
    if request.problem:
        return (
            f"Not accepted: {markdown(request.problem, 500)}.\n\nNothing of it was read further. "
            "A submission adds files in its author's own folder and touches nothing else."
        )
    lines = []
    if found:
        word = "Accepted" if found.accepted else "Not accepted"
        lines += [f"{word}: {markdown(found.reason, 1000)}.", ""]
        lines += ["| check | outcome | |", "|---|---|---|"]
        for check in found.report.checks():
            status = found.report.status(check)
            said = [f for f in found.report.of(check) if f.status == status]
            place = f" ({said[0].place})" if said and said[0].place else ""
            message = f"{said[0].message}{place}" if said else ""
            lines.append(f"| {check} | {status} | {markdown(message, 300)} |")
        lines += ["", "`n4090-kit verify` shows the same on your machine."]
    for path, accepted, reason in documents:
        word = "Accepted" if accepted else "Not accepted"
        lines += ["", f"{word}: {markdown(path, 200)}: {markdown(reason, 1000)}."]
    return "\n".join(lines)

"""The mirror of a board on the Hub: what main holds, and what open pull requests bring beside it.

Only what changed is fetched. The mirror remembers in `mirror.json` which blobs of main and which
heads of pull requests it holds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.board.decisions import Decisions
from kit.board.hub import Hub, blob_id
from kit.board.layout import BOARD_FOLDER, SubmissionPath
from kit.board.pull_request import PullRequest, classify, file_limit, may_mirror, touched_by
from kit.errors import KitError
from kit.files import write_bytes, write_json

STATE = "mirror.json"


def mirror_board(hub: Hub, repository: str, mirror: Path) -> Path:
    """The board as it stands on main, in a folder here; judges nothing and sends nothing.

    Args:
        mirror: As of `publish_to_hub`; what that brought of open pull requests stays.
    """
    main = hub.head(repository, "dataset")
    hub.settings(repository, main)
    mirror_main(hub, repository, main, mirror)
    return mirror / BOARD_FOLDER


def mirror_main(hub: Hub, repository: str, main: str, mirror: Path) -> dict[str, str]:
    """Makes the mirror's files those of main; returns their paths below the board with blob ids."""
    from huggingface_hub.hf_api import RepoFile

    root = mirror / BOARD_FOLDER
    root.mkdir(parents=True, exist_ok=True)
    state = mirror_state(mirror)
    entries = hub.ask(
        f"files of {repository}",
        lambda: list(
            hub.api.list_repo_tree(
                repository, BOARD_FOLDER, recursive=True, revision=main, repo_type="dataset"
            )
        ),
    )
    known: dict[str, str] = {}
    for entry in entries:
        relative = entry.path.removeprefix(f"{BOARD_FOLDER}/")
        if not isinstance(entry, RepoFile) or not may_mirror(relative):
            continue
        known[relative] = entry.blob_id
        target = root / relative
        if state["main"].get(relative) == entry.blob_id and target.is_file():
            continue
        limit = file_limit(relative)
        if entry.size > limit:
            raise KitError(f"`{relative}` on main is too large", bytes=entry.size, limit=limit)
        write_bytes(target, hub.read(repository, "dataset", entry.path, main, limit))
    for relative in set(state["main"]) - set(known):
        (root / relative).unlink(missing_ok=True)
    state["main"] = known
    write_json(mirror / STATE, state)
    return known


def mirror_state(mirror: Path) -> dict[str, Any]:
    path = mirror / STATE
    if path.exists():
        state: dict[str, Any] = json.loads(path.read_bytes())
        return state
    return {"main": {}, "requests": {}, "commented": {}}


def pull_requests(
    hub: Hub, repository: str, decisions: Decisions, on_main: dict[str, str], mirror: Path
) -> list[PullRequest]:
    """Open pull requests, and merged ones not yet seen as such, judged by what they touch."""
    state = mirror_state(mirror)
    found = []
    for one in hub.pull_requests(repository):
        if one.status not in ("open", "draft", "merged"):
            _forget(state, one.num, mirror, on_main)
            continue
        status = "merged" if one.status == "merged" else "open"
        ref = f"refs/pr/{one.num}"
        remembered = state["requests"].get(str(one.num))
        if status == "merged" and remembered and remembered["status"] == "merged":
            found.append(_remembered(one.num, remembered))
            continue
        commit = hub.head(repository, "dataset", ref)
        if remembered and remembered["commit"] == commit and remembered["status"] == status:
            found.append(_remembered(one.num, remembered))
            continue
        details = hub.ask(
            f"pull request {one.num}",
            lambda one=one: hub.api.get_discussion_details(  # type: ignore[misc]
                repository, one.num, repo_type="dataset"
            ),
        )
        request = PullRequest(one.num, one.author, status, commit)
        touched = touched_by(details.diff or "")
        classify(request, touched, on_main if status == "open" else {})
        state["requests"][str(one.num)] = {
            "author": request.author,
            "status": status,
            "commit": commit,
            "submission": str(request.submission) if request.submission else None,
            "files": request.files,
            "problem": request.problem,
        }
        found.append(request)
    write_json(mirror / STATE, state)
    return found


def _remembered(number: int, entry: dict[str, Any]) -> PullRequest:
    return PullRequest(
        number,
        entry["author"],
        entry["status"],
        entry["commit"],
        SubmissionPath.parse(entry["submission"] or ""),
        entry["files"],
        entry["problem"],
    )


def mirror_requests(
    hub: Hub,
    repository: str,
    requests: Iterable[PullRequest],
    mirror: Path,
    on_main: dict[str, str],
) -> None:
    """Brings the files of open pull requests into the mirror, each at its head."""
    root = mirror / BOARD_FOLDER
    for one in requests:
        paths = [f"{BOARD_FOLDER}/{relative}" for relative in one.files]
        infos = hub.there(repository, "dataset", paths, one.commit)
        for relative, path in zip(one.files, paths, strict=True):
            info, target = infos.get(path), root / relative
            if info is None or relative in on_main:
                continue
            if info.size > file_limit(relative):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(b"")  # the checks say that it is missing or broken
                continue
            if target.is_file() and blob_id(target.read_bytes()) == info.blob_id:
                continue
            data = hub.read(repository, "dataset", path, one.commit, file_limit(relative))
            write_bytes(target, data)


def _forget(state: dict[str, Any], number: int, mirror: Path, on_main: dict[str, str]) -> None:
    """Takes what a closed pull request had brought out of the mirror again."""
    entry = state["requests"].pop(str(number), None)
    for relative in entry["files"] if entry else ():
        if relative not in on_main:
            (mirror / BOARD_FOLDER / relative).unlink(missing_ok=True)
    if entry and entry["submission"]:
        folder = mirror / BOARD_FOLDER / entry["submission"]
        if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder)

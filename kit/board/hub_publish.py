"""Publishing on the Hub: the board's text mirrored, pull requests judged, the table sent back.

The mirror is a folder that holds what main holds, and the submissions of open pull requests beside
it, so that the rest is the same as for a board in a folder. Only what changed is fetched; a pull
request is refused before any of it is fetched when it touches what is not its author's to touch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.board.decisions import Decisions
from kit.board.hub import Hub, blob_id
from kit.board.hub_mirror import STATE, mirror_main, mirror_requests, mirror_state, pull_requests
from kit.board.layout import (
    BOARD_FOLDER,
    TEXT_LIMITS,
    Layout,
    SubmissionPath,
)
from kit.board.load import read_document
from kit.board.memory import SeenChains
from kit.board.model_code import foreign_code
from kit.board.package import Item
from kit.board.publish import IN_FOLDER, Origin, Published, publish
from kit.board.pull_request import (
    DERIVED,
    PullRequest,
    comment,
    is_document,
)
from kit.board.rescore import Scorer
from kit.board.tree import TreeCache
from kit.errors import KitError
from kit.files import write_bytes, write_json
from kit.trust.digest import sha256_bytes
from kit.verify.evidence import MAX_TELEMETRY_BYTES
from kit.verify.finding import Finding, fail, warn

Tell = Callable[[str], None]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_MAX_SMALL = 16 * 2**20  # a checkpoint's files that git keeps itself


def publish_to_hub(
    hub: Hub,
    repository: str,
    mirror: Path,
    *,
    cache: TreeCache | None = None,
    recheck: bool = False,
    merge: bool = False,
    scorer: Scorer | None = None,
    seen: SeenChains | None = None,
    tell: Tell = lambda text: None,
) -> Published:
    """One pass over the board in the dataset `repository`.

    Args:
        mirror: A folder of this command's own; made when it is not there.
        merge: Also take in the pull requests of which everything was accepted: this pass commits
            the very bytes that it judged, and closes them. One whose head moved meanwhile waits for
            the next pass.
        scorer: Scores the weights of rows that the board has not scored yet.
        seen: Refuses a chain that lost lines since it was seen.
    """
    root = mirror / BOARD_FOLDER
    layout = Layout(root)
    main = hub.head(repository, "dataset")
    hub.settings(repository, main)
    on_main = mirror_main(hub, repository, main, mirror)
    if seen is not None:
        seen.check(repository, layout.events)
    decisions = Decisions.read(layout)
    requests = pull_requests(hub, repository, decisions, on_main, mirror)
    requests = _without_taken_in(hub, repository, requests, decisions, tell)
    bring = [one for one in requests if one.status != "merged" and one.problem is None]
    mirror_requests(hub, repository, bring, mirror, on_main)
    by_path = {str(one.submission): one for one in requests if one.submission}

    def origin(path: SubmissionPath) -> Origin:
        return _origin(hub, layout, path, by_path.get(str(path)), decisions, mirror)

    accounts = _accounts(requests, decisions, tell)
    done = publish(
        root,
        origin=origin,
        cache=cache,
        recheck=recheck,
        scorer=scorer,
        accounts=accounts,
        anchor=main,
        tell=tell,
    )
    taken = _accepted(hub, repository, requests, Decisions.read(layout), tell) if merge else []
    if taken:
        for one in taken:
            one.status = "merged"
        again = publish(
            root, origin=origin, cache=cache, anchor=None if done.events else main, tell=tell
        )
        done.events += again.events
        done.rows, done.moved = again.rows, done.moved + again.moved
    if done.events or _differs(hub, repository, root, on_main):
        items = [Item(f"{BOARD_FOLDER}/{name}", root / name) for name in DERIVED]
        items += [
            Item(f"{BOARD_FOLDER}/{name}", (root / name).read_bytes())
            for one in taken
            for name in one.files
            if (root / name).is_file()
        ]
        message = f"Publish: {len(done.new)} judged, {len(taken)} accepted, {done.rows} rows"
        hub.commit(repository, "dataset", items, message, parent=main)
    if seen is not None:
        after = Decisions.read(layout)
        seen.note(repository, after.count, after.head)
    _comment(hub, repository, done, requests, mirror)
    for one in taken:
        _close(hub, repository, one, tell)
    return done


# --- where a submission came from ---------------------------------------------------------------


def _origin(
    hub: Hub,
    layout: Layout,
    path: SubmissionPath,
    request: PullRequest | None,
    decisions: Decisions,
    mirror: Path,
) -> Origin:
    source = IN_FOLDER
    if request is not None:
        source = {
            "kind": request.status,
            "number": request.number,
            "author": request.author,
            "commit": request.commit,
        }
    decided = decisions.submissions.get(path.result_id)
    if (
        request is None
        and decided is not None
        and decided.source["kind"] == "merged"
        and decided.path == str(path)
    ):
        return Origin(decided.source)  # accepted by an earlier pass
    if decided is not None and decided.source["kind"] == source["kind"]:
        return Origin(source)
    extra, weights = _model_files(hub, layout, path, mirror)
    return Origin(source, extra, tuple(weights))


def _model_files(
    hub: Hub, layout: Layout, path: SubmissionPath, mirror: Path
) -> tuple[dict[str, Path], list[Finding]]:
    """V21 at the pinned commit: the Hub's own digests of the weights are those that were signed.

    Large files are not fetched: the Hub names their SHA-256. Small ones are, and telemetry that was
    too large for the board.
    """
    folder = layout.submission(path)
    try:
        pin = read_document(folder / "submission.json", TEXT_LIMITS["submission.json"])["model"]
        result = read_document(folder / "result.json", TEXT_LIMITS["result.json"])
        if not pin:
            return {}, []
        if not isinstance(pin["revision"], str) or not _COMMIT.fullmatch(pin["revision"]):
            told = "the weights are not pinned to a commit of their repository"
            return {}, [fail(told, "submission.json: model.revision", found=pin["revision"])]
        if not _REPOSITORY.fullmatch(pin["repository"]):
            told = "the weights are in no repository of the Hub"
            return {}, [fail(told, "submission.json: model.repository", found=pin["repository"])]
        wanted = {
            f"{artifact['folder']}/{file['path']}": file["sha256"]
            for artifact in result["checkpoint"].values()
            if artifact
            for file in artifact["files"]
        }
        telemetry = result["telemetry"]["digest"]
    except (KitError, KeyError, TypeError, AttributeError):
        return {}, []
    repository, revision = pin["repository"], pin["revision"]
    extra: dict[str, Path] = {}
    findings: list[Finding] = []
    try:
        infos = hub.there(repository, "model", [*wanted, "telemetry.jsonl"], revision)
        for name, digest in wanted.items():
            found = _remote_digest(hub, repository, revision, name, infos.get(name))
            if found != digest:
                told = "not in the model repository" if found is None else "not the signed file"
                findings.append(fail(told, name, expected=digest, found=found))
        if telemetry and not (folder / "telemetry.jsonl").exists() and "telemetry.jsonl" in infos:
            data = hub.read(repository, "model", "telemetry.jsonl", revision, MAX_TELEMETRY_BYTES)
            extra["telemetry.jsonl"] = mirror / "telemetry" / f"{path.result_id}.jsonl"
            write_bytes(extra["telemetry.jsonl"], data)
        findings += foreign_code(hub, repository, revision)
    except KitError as error:
        if error.facts.get("status") in (401, 403, 404):
            told = f"the model repository is not there for everybody: {error.message}"
            findings.append(fail(told, repository))
            return extra, findings
        findings.append(warn(f"the model repository cannot be read: {error.message}", repository))
    return extra, findings


def _remote_digest(hub: Hub, repository: str, revision: str, name: str, info: Any) -> str | None:
    if info is None:
        return None
    if info.lfs is not None:
        return f"sha256:{info.lfs.sha256}"
    if info.size > _MAX_SMALL:
        return None
    return sha256_bytes(hub.read(repository, "model", name, revision, _MAX_SMALL))


# --- what goes back -----------------------------------------------------------------------------


def _differs(hub: Hub, repository: str, root: Path, on_main: dict[str, str]) -> bool:
    return any(
        name not in on_main or blob_id((root / name).read_bytes()) != on_main[name]
        for name in ("leaderboard.jsonl",)
    )


def _comment(
    hub: Hub,
    repository: str,
    done: Published,
    requests: list[PullRequest],
    mirror: Path,
) -> None:
    """Tells every author what was found, once for each head of the pull request."""
    state = mirror_state(mirror)
    judged = {str(one.path): one for one in done.new}
    documents = {one.path: one for one in done.documents}
    for one in requests:
        if one.status == "merged":
            continue
        found = judged.get(str(one.submission))
        told = [documents[path] for path in one.files if path in documents]
        key = f"{one.number}@{one.commit}"
        if state["commented"].get(str(one.number)) != key and (one.problem or found or told):
            text = comment(one, found, [(d.path, d.judged.accepted, d.judged.reason) for d in told])
            hub.ask(
                f"comment on pull request {one.number}",
                lambda one=one, text=text: hub.api.comment_discussion(  # type: ignore[misc]
                    repository, one.number, text, repo_type="dataset"
                ),
            )
            state["commented"][str(one.number)] = key
            write_json(mirror / STATE, state)


def _accepted(
    hub: Hub, repository: str, requests: list[PullRequest], decisions: Decisions, tell: Tell
) -> list[PullRequest]:
    """The open pull requests of which everything was accepted and whose head is the judged one."""
    taken = []
    for one in requests:
        submission = one.submission and decisions.submissions.get(one.submission.result_id)
        documents = [decisions.documents.get(path) for path in one.files if is_document(path)]
        if (
            one.status == "merged"
            or one.problem
            or (one.submission and not (submission and submission.accepted))
            or not all(document and document.accepted for document in documents)
        ):
            continue
        if one.submission and submission and submission.path != str(one.submission):
            continue  # the result is on the board under another name
        stray = _hidden(hub, repository, one)
        if stray:
            tell(f"pull request {one.number} is not accepted: its tree also has `{stray[:200]}`")
            continue
        if hub.head(repository, "dataset", f"refs/pr/{one.number}") != one.commit:
            tell(f"pull request {one.number} moved while it was judged: it waits for the next pass")
            continue
        taken.append(one)
    return taken


def _close(hub: Hub, repository: str, one: PullRequest, tell: Tell) -> None:
    """Closes a pull request whose judged files are on main."""
    hub.ask(
        f"closing of pull request {one.number}",
        lambda: hub.api.change_discussion_status(
            repository,
            one.number,
            "closed",
            repo_type="dataset",
            comment=f"Accepted: the files of {one.commit[:12]}, as they were judged, are on main.",
        ),
    )
    tell(f"pull request {one.number} accepted")


def _without_taken_in(
    hub: Hub, repository: str, requests: list[PullRequest], decisions: Decisions, tell: Tell
) -> list[PullRequest]:
    """The requests but those that an earlier pass took in and was ended before closing."""
    taken = {
        (decided.source["number"], decided.source["commit"])
        for decided in decisions.submissions.values()
        if decided.accepted and decided.source["kind"] == "merged"
    }
    kept = []
    for one in requests:
        if one.status == "open" and (one.number, one.commit) in taken:
            _close(hub, repository, one, tell)
        else:
            kept.append(one)
    return kept


def _accounts(
    requests: list[PullRequest], decisions: Decisions, tell: Tell
) -> list[dict[str, Any]]:
    """What the Hub shows of authors who bring reproductions; whoever it does not show is told."""
    from kit.trust.identities import Account, fetch_account

    authors = {
        one.author
        for one in requests
        if not one.problem and any(path.startswith("reproductions/") for path in one.files)
    }
    shown = []
    for author in sorted(authors):
        if ("hf", author.casefold()) in decisions.accounts:
            continue
        try:
            shown.append(fetch_account(Account("hf", author)))
        except KitError as error:
            tell(f"{author}: not vouched for, {error.message}")
    return shown


def _hidden(hub: Hub, repository: str, one: PullRequest) -> str | None:
    """A file in a pull request's tree that its diff did not name: a host may cut a long diff."""
    allowed = {f"{BOARD_FOLDER}/{relative}" for relative in one.files}
    allowed |= {f"{BOARD_FOLDER}/{name}" for name in DERIVED}  # ours may be older in its tree
    main = _tree_of(hub, repository, hub.head(repository, "dataset"))
    for path, blob in _tree_of(hub, repository, one.commit).items():
        if path not in allowed and main.get(path) != blob:
            return path
    return None


def _tree_of(hub: Hub, repository: str, commit: str) -> dict[str, str]:
    entries = hub.ask(
        f"files of {repository}",
        lambda: list(
            hub.api.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset")
        ),
    )
    return {entry.path: entry.blob_id for entry in entries if hasattr(entry, "blob_id")}

"""A row that somebody wants to check: its text, and on request its weights, from wherever it lies.

Named by an id on a board (a folder or a dataset on the Hub), by the path of a submission's or run's
folder, or by its address on the Hub. Only files that a submission may hold are fetched, each at one
commit and with its size limited; nothing fetched is ever executed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kit.board.layout import (
    BOARD_FOLDER,
    MAX_DOCUMENT_BYTES,
    REQUIRED,
    TEXT_LIMITS,
    SubmissionPath,
)
from kit.board.load import load_board, read_document
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.files import whole_file, write_bytes
from kit.trust.canonical import parse_strict
from kit.trust.digest import sha256_file
from kit.trust.sign import result_id
from kit.verify.evidence import safe_path

Document = dict[str, Any]
Tell = Callable[[str], None]
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ADDRESS = re.compile(
    rf"(?:hf://|(?P<host>https?://[^/]+)/)datasets/(?P<repository>{_NAME}/{_NAME})"
    rf"(?:/(?:tree|blob|resolve)/(?P<revision>[A-Za-z0-9%._-]+))?/{BOARD_FOLDER}/"
    rf"(?P<path>20\d\d/{_NAME}/[0-9a-f]{{16}})(?:/result\.json)?/?"
)
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_MAX_TABLE_BYTES = 256 * 2**20
# What is scored again; the finetuned weights are not.
_SCORED = ("tokenizer", "base")
_SNAPSHOT = re.compile(r"/snapshots/[^/]+$")


@dataclass(frozen=True)
class Claim:
    """A row's result and the folder that holds its text.

    Attributes:
        submitter: Its name on the board; None for a run folder that is on none.
        model: Where its weights lie, as submission.json says; None when they are not published.
        board: The folder of the board it was found on, for weights that lie there.
        state: The row's, when a board told it.
    """

    result: Document
    folder: Path
    submitter: str | None = None
    model: Document | None = None
    board: Path | None = None
    state: str | None = None

    @property
    def id(self) -> str:
        return result_id(self.result)


def find_claim(name: str, board: str, work: Path, tell: Tell) -> Claim:
    """The row called `name`.

    Args:
        name: An id, the start of one or a path on `board`; a folder or result.json here; or an
            address on the Hub.
        board: A folder, or OWNER/NAME of a dataset on the Hub.
        work: Work folder; what is fetched is kept in its cache.

    Raises:
        PrerequisiteError: There is no such row.
        SchemaError: What lies there is no result.
    """
    address = _ADDRESS.fullmatch(name)
    if address:
        return _from_hub(_host_checked(address), address["path"], _revision(address), work, tell)
    here = Path(name)
    if here.exists():
        return _from_folder(here.parent if here.is_file() else here, board=None)
    if Path(board).is_dir():
        loaded = load_board(Path(board))
        row = loaded.row(name)
        submission = loaded.submission(row)
        claim = _from_folder(submission.folder, board=loaded.layout.root, state=row["state"])
        if claim.id != row["id"]:
            raise SchemaError("the board's folder holds another result than the row's")
        return claim
    if _REPOSITORY.fullmatch(board):
        return _from_hub(board, name, "main", work, tell)
    raise PrerequisiteError(
        f"there is no board `{board[:100]}`",
        hint="--board takes a folder, or OWNER/NAME of a dataset on the Hub",
    )


def _host_checked(address: re.Match[str]) -> str:
    """The repository of an address, when its host is the Hub that is asked anyway."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if address["host"] not in (None, endpoint):
        raise PrerequisiteError(
            f"{address['host']} is not the Hub that is asked",
            hint=f"set HF_ENDPOINT={address['host']} if it is meant",
            asked=endpoint,
        )
    return address["repository"]


def _revision(address: re.Match[str]) -> str:
    """The commit, branch or pull request that an address names."""
    revision = unquote(address["revision"] or "main")
    if not re.fullmatch(r"main|[0-9a-f]{7,40}|refs/pr/[0-9]+", revision):
        raise PrerequisiteError(
            f"`{revision[:80]}` is not a commit, a branch or a pull request of a board"
        )
    return revision


def _from_folder(folder: Path, *, board: Path | None, state: str | None = None) -> Claim:
    result = read_document(folder / "result.json", TEXT_LIMITS["result.json"])
    pin: Document | None = None
    if (folder / "submission.json").is_file():
        pin = read_document(folder / "submission.json", MAX_DOCUMENT_BYTES)
        if board is None and len(folder.resolve().parents) > 3:
            board = folder.resolve().parents[2]
    if pin is None:
        return Claim(result, folder, board=board, state=state)
    return Claim(result, folder, str(pin["submitter"]), pin["model"], board, state)


def _from_hub(repository: str, name: str, revision: str, work: Path, tell: Tell) -> Claim:
    from kit.board.hub import Hub, client

    hub = Hub(client(), tell=tell)
    commit = hub.head(repository, "dataset", revision)
    wanted, state = name.strip("/"), None
    path = SubmissionPath.parse(wanted)
    if path is None:
        path, state = _row_on_hub(hub, repository, wanted, commit)
    names = [f"{BOARD_FOLDER}/{path}/{file}" for file in TEXT_LIMITS]
    there = hub.there(repository, "dataset", names, commit)
    for needed in REQUIRED:
        if f"{BOARD_FOLDER}/{path}/{needed}" not in there:
            raise PrerequisiteError(
                f"{path} lacks `{needed}` on {repository} at {revision}",
                hint="a pending row lies in its pull request: give its address, "
                f"hf://datasets/{repository}/tree/refs%2Fpr%2FN/{BOARD_FOLDER}/{path}",
            )
    folder = work / "cache" / "rows" / path.result_id
    for file, limit in TEXT_LIMITS.items():
        full = f"{BOARD_FOLDER}/{path}/{file}"
        if full in there:
            write_bytes(folder / file, hub.read(repository, "dataset", full, commit, limit))
    tell(f"{path} of {repository} at {commit[:12]}")
    claim = _from_folder(folder, board=None, state=state)
    if claim.id != path.result_id:
        raise SchemaError("the folder's name is not the digest of the result in it")
    # Weights of a row on the Hub lie on the Hub, never in a folder here.
    return Claim(claim.result, folder, claim.submitter, claim.model, None, state)


def _row_on_hub(hub: Any, repository: str, wanted: str, commit: str) -> tuple[SubmissionPath, str]:
    """The path of the row whose id begins so, from the board's own table."""
    table = f"{BOARD_FOLDER}/leaderboard.jsonl"
    if not re.fullmatch(r"[0-9a-f]{4,16}", wanted):
        raise PrerequisiteError(
            f"`{wanted[:80]}` is not a row's id (4 to 16 hex digits)",
            hint="give a row's id, or its path, such as 2026/NAME/ID",
        )
    data = hub.read(repository, "dataset", table, commit, _MAX_TABLE_BYTES)
    rows = [parse_strict(line, name=table) for line in data.splitlines()]
    found = [row for row in rows if str(row["id"]).startswith(wanted)]
    path = SubmissionPath.parse(found[0]["path"] or "") if len(found) == 1 else None
    if path is None:
        raise PrerequisiteError(
            f"`{wanted}` {'fits several rows' if found else 'is not a row'} of {repository}"
        )
    return path, str(found[0]["state"])


def with_weights(claim: Claim, work: Path, tell: Tell, *, snapshots: bool = False) -> Claim:
    """The claim in a folder that holds its tokenizer and base weights too.

    Their digests are checked by whoever reads them (V22, V26).

    Args:
        snapshots: Also the weights that were kept along the way, for a replay.

    Raises:
        PrerequisiteError: They are not published, or not there any more.
    """
    paths = [
        path for path in _weight_paths(claim.result) if snapshots or not _SNAPSHOT.search(path)
    ]
    if all((claim.folder / path).is_file() for path in paths):
        return claim
    if claim.model is None:
        raise PrerequisiteError(
            "the row's weights are not published, so they cannot be scored again",
            hint="run its recipe instead: the same command without --check-only",
        )
    folder = work / "cache" / "rows" / claim.id
    for name in TEXT_LIMITS:
        if (claim.folder / name).is_file() and claim.folder != folder:
            write_bytes(folder / name, (claim.folder / name).read_bytes())
    repository, revision = str(claim.model["repository"]), claim.model["revision"]
    if repository.startswith("models/"):
        if claim.board is None:
            raise PrerequisiteError("the weights lie in another board's folder")
        _copy_weights(claim.board / repository, folder, paths)
    else:
        _download_weights(repository, revision, folder, paths, tell)
    return Claim(claim.result, folder, claim.submitter, claim.model, claim.board, claim.state)


def _weight_paths(result: Document) -> list[str]:
    """Files to fetch, by the signed result; names that lead elsewhere are refused."""
    paths = []
    for part in _SCORED:
        artifact = result["checkpoint"][part]
        if artifact is None:
            raise PrerequisiteError("the run left no checkpoint")
        paths += [f"{artifact['folder']}/{file['path']}" for file in artifact["files"]]
    for path in paths:
        if not safe_path(path):
            raise KitError(f"the checkpoint names `{path[:80]}`, which leads out of its folder")
    return paths


def _copy_weights(source: Path, folder: Path, paths: list[str]) -> None:
    for path in paths:
        there, here = source / path, folder / path
        if there.is_symlink() or not there.is_file():
            raise PrerequisiteError(f"`{path}` is not in the board's `models/` any more")
        if here.is_file() and sha256_file(here) == sha256_file(there):
            continue
        with whole_file(here) as temporary:
            shutil.copyfile(there, temporary)


def _download_weights(
    repository: str, revision: str | None, folder: Path, paths: list[str], tell: Tell
) -> None:
    from kit.board.hub import Hub, client

    if revision is None:
        raise PrerequisiteError("the weights are not pinned to a commit of their repository")
    hub = Hub(client(), tell=tell)
    for path in paths:
        tell(f"fetching {path}")
        hub.ask(
            f"`{path}`",
            lambda path=path: hub.api.hf_hub_download(  # type: ignore[misc]
                repository, path, revision=revision, local_dir=folder
            ),
        )

"""Where `prepare` takes files from: the Hub, a mirror of it, or a folder of the same files.

A source says what a dataset repository holds (`snapshot`) and hands over one file whole and checked
(`obtain`). The Hub's files land in a pool under the work folder, laid out like the Hub's own cache
but of plain files: recipes share what is in it, and another machine can use it with `--mirror`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.files import has_ending
from kit.network import check_endpoint, check_settings, not_json
from kit.prepare.transfer import Expected, Transfer, download, patiently, refused
from kit.trust.digest import sha256_file

if TYPE_CHECKING:
    import httpx2

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; what the source does not state is None."""

    path: str
    bytes: int
    sha256: str | None = None
    blob_id: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A dataset repository at one commit. A fact that is None has its reason beside it."""

    repository: str
    revision: str  # as asked
    commit: str | None
    commit_reason: str | None
    licence: str | None
    licence_reason: str | None
    files: tuple[RemoteFile, ...] = ()


class Obtained(NamedTuple):
    path: Path
    digest: str


class Source(Protocol):
    """Where files come from."""

    name: str
    copies: bool  # what `obtain` returns belongs to someone else, so it has to be copied

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        """Files, commit and licence of a dataset repository. Raises `PrerequisiteError`."""

    def have_bytes(self, snapshot: Snapshot, file: RemoteFile) -> int:
        """Bytes of `file` that need not be fetched any more."""

    def obtain(self, snapshot: Snapshot, file: RemoteFile) -> Obtained:
        """A local copy of `file`, whole and with the digest that `file` states."""


class Hub:
    """The Hugging Face Hub, or a server that speaks like it.

    Args:
        endpoint: None: the one huggingface_hub uses (HF_ENDPOINT, or huggingface.co).
        anonymous: Send no login. A mirror named on the command line is not told the person's token.
    """

    copies = False

    def __init__(
        self,
        pool: Path,
        transfer: Transfer,
        *,
        endpoint: str | None = None,
        anonymous: bool = False,
    ) -> None:
        check_settings(needed=False)  # an offline switch matters only when something is missing
        check_endpoint(endpoint or "", "--mirror")
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.name = self.endpoint
        self._pool = pool
        self._token = False if anonymous else None
        headers = build_hf_headers(token=self._token, library_name="n4090-kit")
        self._transfer = replace(transfer, headers=headers)

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        from huggingface_hub import HfApi, errors

        api = HfApi(endpoint=self.endpoint, token=self._token, library_name="n4090-kit")
        try:
            info = patiently(
                lambda: api.dataset_info(repository, revision=revision, timeout=_TIMEOUT_S),
                self.endpoint,
                self._transfer,
            )
            commit = info.sha or ""
            if not _COMMIT.fullmatch(commit):
                raise SchemaError(f"{self.endpoint} names no commit for {repository} at {revision}")
            files = tuple(self._listing(repository, commit))
        except errors.GatedRepoError as error:
            raise PrerequisiteError(
                f"dataset {repository} asks for an agreement before it can be read",
                hint=f"Accept its terms at {self.endpoint}/datasets/{repository}, then log in: "
                "`hf auth login`.",
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise PrerequisiteError(
                f"{self.endpoint} has no dataset {repository}, or does not show it to you",
                hint="Check data.repo and data.sft in the recipe; a private one needs a login: "
                "`hf auth login`.",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise PrerequisiteError(
                f"dataset {repository} has no revision {revision}",
                hint="Check data.revision in the recipe: a commit, branch or tag.",
            ) from error
        except errors.OfflineModeIsEnabled as error:
            raise PrerequisiteError(
                "HF_HUB_OFFLINE is set: huggingface_hub does not download",
                hint="Unset HF_HUB_OFFLINE, or take the files from a folder: --mirror DIR.",
            ) from error
        except errors.HfHubHTTPError as error:
            raise refused(error.response) from error
        except errors.HFValidationError as error:
            raise SchemaError(f"{repository!r} is not a repository name: {error}") from error
        except json.JSONDecodeError as error:
            raise not_json(self.endpoint) from error
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(
                f"{self.endpoint} does not answer like the Hub: {error!r}",
                hint="Check the address given with --mirror or HF_ENDPOINT.",
            ) from error
        licence = _licence(info.card_data)
        return Snapshot(
            repository=repository,
            revision=revision,
            commit=commit,
            commit_reason=None,
            licence=licence,
            licence_reason=None if licence else "the dataset card states none",
            files=files,
        )

    def _listing(self, repository: str, commit: str) -> Iterator[RemoteFile]:
        """Every file of a commit. (HfApi.list_repo_tree waits without end for a silent server.)"""
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        transfer = self._transfer

        def ask(url: str) -> httpx2.Response:
            response = transfer.client.get(url, headers=transfer.headers, timeout=_TIMEOUT_S)
            hf_raise_for_status(response)
            return response

        url = f"{self.endpoint}/api/datasets/{repository}/tree/{commit}?recursive=true"
        while url:
            page = patiently(functools.partial(ask, url), self.endpoint, transfer)
            for entry in page.json():
                if entry["type"] == "file" and _inside(entry["path"]):
                    lfs = entry.get("lfs")
                    yield RemoteFile(
                        path=entry["path"],
                        bytes=entry["size"],
                        sha256=f"sha256:{lfs['oid']}" if lfs else None,
                        blob_id=None if lfs else entry["oid"],
                    )
            url = page.links.get("next", {}).get("url", "")

    def have_bytes(self, snapshot: Snapshot, file: RemoteFile) -> int:
        path = self._path(snapshot, file)
        for candidate in (path, path.with_name(path.name + ".part")):
            if candidate.is_file():
                return min(candidate.stat().st_size, file.bytes)
        return 0

    def obtain(self, snapshot: Snapshot, file: RemoteFile) -> Obtained:
        from huggingface_hub import hf_hub_url

        path = self._path(snapshot, file)
        if path.is_file():
            found = sha256_file(path, progress=self._transfer.progress.advance)
            if found == file.sha256 or file.sha256 is None:
                return Obtained(path, found)
            # Only whole and checked files get this name, so the disk or a person changed it.
            self._transfer.progress.note(
                f"{path.name} in {self._pool} has changed, downloading it again"
            )
            self._transfer.progress.advance(-path.stat().st_size)
            path.unlink()
        url = hf_hub_url(
            snapshot.repository,
            file.path,
            repo_type="dataset",
            revision=snapshot.commit,
            endpoint=self.endpoint,
        )
        expected = Expected(file.bytes, file.sha256, file.blob_id)
        return Obtained(path, download(url, path, expected, self._transfer))

    def _path(self, snapshot: Snapshot, file: RemoteFile) -> Path:
        assert snapshot.commit is not None
        folder = f"datasets--{snapshot.repository.replace('/', '--')}"
        return self._pool / folder / "snapshots" / snapshot.commit / file.path


class Folder:
    """A folder with the files of each repository under OWNER/NAME, datasets/OWNER/NAME, or as the
    Hub's cache lays them out (datasets--OWNER--NAME/snapshots/COMMIT).
    """

    copies = True

    def __init__(self, root: Path, transfer: Transfer) -> None:
        self.root = root
        self.name = str(root)
        self._transfer = transfer

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        folder, commit = self._find(repository, revision)
        licence, reason = _licence_of_folder(folder)
        return Snapshot(
            repository=repository,
            revision=revision,
            commit=commit,
            commit_reason=None if commit else "copied from a folder that does not state it",
            licence=licence,
            licence_reason=reason,
            files=tuple(
                RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size)
                for path in sorted(_visible_files(folder))
            ),
        )

    def have_bytes(self, snapshot: Snapshot, file: RemoteFile) -> int:
        return 0

    def obtain(self, snapshot: Snapshot, file: RemoteFile) -> Obtained:
        folder, _ = self._find(snapshot.repository, snapshot.commit or snapshot.revision)
        path = (folder / file.path).resolve()  # the Hub's cache is made of links
        found = sha256_file(path, progress=self._transfer.progress.advance)
        if file.sha256 not in (None, found):
            raise KitError(
                f"{file.path} of {snapshot.repository} in {self.root} is not the file that the "
                "lock names",
                hint="Take the commit that the lock names, or remove dataset.lock.json to lock "
                "this folder's files instead.",
                expected=file.sha256,
                found=found,
            )
        return Obtained(path, found)

    def _find(self, repository: str, revision: str) -> tuple[Path, str | None]:
        cache = self.root / f"datasets--{repository.replace('/', '--')}"
        reference = cache / "refs" / revision
        if _inside(revision) and reference.is_file():
            revision = reference.read_text().strip()
        snapshots = sorted(path for path in cache.glob("snapshots/*") if path.is_dir())
        for folder in snapshots:
            if folder.name == revision or (len(snapshots) == 1 and not _COMMIT.fullmatch(revision)):
                return folder, folder.name if _COMMIT.fullmatch(folder.name) else None
        candidates = [self.root / repository, self.root / "datasets" / repository]
        for folder in candidates:
            if folder.is_dir():
                return folder, None
        raise PrerequisiteError(
            f"{self.root} has no files of dataset {repository}"
            + (f" at {revision}" if snapshots else ""),
            hint=f"Looked for {repository}/, datasets/{repository}/ and {cache.name}/snapshots/; "
            f"`hf download --repo-type dataset {repository} --local-dir …/{repository}` makes one.",
        )


def _inside(path: str) -> bool:
    """Whether a path from outside stays in the folder it is put under."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and path.isprintable()


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and not has_ending(path, ".part"):
            yield path


def _licence(card: Any) -> str | None:
    stated = getattr(card, "license", None)
    if isinstance(stated, list):
        return ", ".join(str(item) for item in stated) or None
    return str(stated) if stated else None


def _licence_of_folder(folder: Path) -> tuple[str | None, str | None]:
    from huggingface_hub import DatasetCard

    readme = folder / "README.md"
    if not readme.is_file():
        return None, "the folder has no dataset card (README.md)"
    try:
        licence = _licence(DatasetCard.load(readme).data)
    except Exception as error:  # what a YAML header can do wrong has no common base
        return None, f"its dataset card cannot be read: {str(error).splitlines()[0]}"
    return licence, None if licence else "the dataset card states none"

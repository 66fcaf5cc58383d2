"""The Hub, as the board needs it: huggingface_hub's client, patient, and plain about failures.

Every call here can be made again: what is there already is found and left alone. So a broken
connection, a 429 or a 5xx costs a wait, and a command that was killed goes on where it stopped when
it is given again. Large files go up one by one; each is asked for before it is sent, so one that
arrived is not sent twice (with Xet, not even its pieces).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from kit.board.layout import BOARD_FOLDER, Settings
from kit.board.package import Item
from kit.errors import KitError, PrerequisiteError
from kit.files import has_ending
from kit.network import check_settings, no_connection, not_json
from kit.prepare.transfer import (
    RETRY_STATUS,
    UNREACHED,
    Line,
    Retry,
    explain,
    is_final,
    retry_after_s,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
Tell = Callable[[str], None]
_FILES_A_COMMIT = 90
_LARGE = (".safetensors", ".parquet")
_LARGE_BYTES = 10 * 2**20


def client() -> HfApi:
    """The Hub's client, with the token it finds itself (HF_TOKEN or `hf auth login`).

    Raises:
        PrerequisiteError: The package is not installed, or is told to stay offline.
        SchemaError: A variable of the network holds what no request can be made with.
    """
    check_settings()
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
    except ImportError:
        raise PrerequisiteError(
            "huggingface_hub is not installed", hint="in the checkout: pip install '.[board]'"
        ) from None
    # Uploads draw their bars in many threads, which the thread that watches over bars can stumble
    # over (tqdm issue 481). None of them needs it.
    tqdm.monitor_interval = 0
    # The endpoint as it is now, not as it was when the package was imported.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="n4090-kit")


@dataclass
class Hub:
    """One Hub, asked patiently."""

    api: HfApi
    retry: Retry = field(default_factory=Retry)
    line: Line = field(default_factory=Line)
    tell: Tell = lambda text: None

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """What `call` returns; 429, 5xx and broken connections are waited out.

        Raises:
            KitError: An answer that no retry changes, told with its remedy.
        """
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        failures = unreached = 0
        while True:
            self.line.wait()
            asked_s: float | None = None
            try:
                return call()
            except Exception as error:
                cause = _cause(error)
                if isinstance(cause, HfHubHTTPError):
                    status = cause.response.status_code
                    if status not in RETRY_STATUS:
                        raise refusal(what, cause) from error
                    asked_s = retry_after_s(cause.response.headers)
                    reason = f"the server answers {status}"
                elif isinstance(cause, httpx2.TransportError):
                    reason = explain(cause)
                    unreached += isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
                    if is_final(cause) or unreached >= UNREACHED:
                        raise no_connection(
                            self.api.endpoint, f"{reason} (asking for {what})"
                        ) from error
                elif isinstance(cause, json.JSONDecodeError):
                    raise not_json(self.api.endpoint) from error
                else:
                    raise
                failures += 1
                if failures >= self.retry.attempts:
                    raise PrerequisiteError(
                        f"{what}: {reason}, {failures} times in a row",
                        hint="run the command again later: it resumes where it stopped",
                    ) from error
                pause = asked_s if asked_s is not None else self.retry.delay_s(failures)
                self.tell(f"{what}: {reason}; trying again in {pause:.0f} s")
                self.line.hold_for(pause)

    def who(self) -> str:
        """The account that the token belongs to.

        Raises:
            PrerequisiteError: There is no token, it is wrong, or it may not write.
        """
        from huggingface_hub.errors import LocalTokenNotFoundError

        try:
            told = self.ask("the token's account", self.api.whoami)
        except LocalTokenNotFoundError:
            raise PrerequisiteError(
                "no access token for the Hugging Face Hub was found",
                hint="run `hf auth login`, or set HF_TOKEN to a token with write access. "
                "`--dry-run` and `--board DIR` need no token",
            ) from None
        role = ((told.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise PrerequisiteError(
                "this token may only read",
                hint="make one with write access in the Hub's settings, then `hf auth login`",
            )
        return str(told["name"])

    # --- reading ------------------------------------------------------------------------------

    def head(self, repository: str, kind: str, revision: str = "main") -> str:
        """The commit that a revision names."""
        info = self.ask(
            f"{kind} {repository}",
            lambda: self.api.repo_info(repository, repo_type=kind, revision=revision),
        )
        return str(info.sha)

    def there(
        self, repository: str, kind: str, paths: Sequence[str], revision: str
    ) -> dict[str, Any]:
        """What the repository knows of these files: path -> RepoFile; absent ones are left out."""
        found = {}
        for start in range(0, len(paths), 500):
            some = list(paths[start : start + 500])
            infos = self.ask(
                f"files of {repository}",
                lambda some=some: self.api.get_paths_info(  # type: ignore[misc]
                    repository, some, repo_type=kind, revision=revision
                ),
            )
            found.update({info.path: info for info in infos if hasattr(info, "size")})
        return found

    def read(self, repository: str, kind: str, path: str, revision: str, limit: int) -> bytes:
        """A small file's bytes, at most `limit`."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(
            repository, path, repo_type=kind, revision=revision, endpoint=self.api.endpoint
        )
        headers = build_hf_headers(token=self.api.token, library_name="n4090-kit")

        def get() -> bytes:
            with get_session().stream("GET", url, headers=headers, follow_redirects=True) as answer:
                if not answer.is_success:
                    answer.read()
                    hf_raise_for_status(answer)
                data = bytearray()
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > limit:
                        raise KitError(f"`{path}` is too large", limit=limit)
                return bytes(data)

        return self.ask(f"`{path}`", get)

    def settings(self, repository: str, revision: str) -> Settings:
        """The settings of the board there; refuses one that is newer than this kit."""
        path = f"{BOARD_FOLDER}/board.json"
        if not self.there(repository, "dataset", [path], revision):
            return Settings(repository, repository, {})
        return Settings.from_bytes(self.read(repository, "dataset", path, revision, 2**18))

    # --- writing ------------------------------------------------------------------------------

    def make_model_repository(self, repository: str) -> None:
        """Makes the repository unless it is there."""
        self.ask(
            f"model repository {repository}",
            lambda: self.api.create_repo(repository, repo_type="model", exist_ok=True),
        )

    def commit(
        self,
        repository: str,
        kind: str,
        items: Iterable[Item],
        message: str,
        *,
        description: str = "",
        create_pr: bool = False,
        parent: str | None = None,
        found: Callable[[], Any] | None = None,
    ) -> Any:
        """One commit of `items`; large ones are sent beforehand, one by one.

        Args:
            found: Looks whether the commit was made after all: a reply can get lost. Asked before
                every attempt but the first; what it returns, unless None, is the answer.

        Returns:
            huggingface_hub's CommitInfo, or what `found` found.
        """
        from huggingface_hub import CommitOperationAdd

        waiting = list(items)
        if len(waiting) > _FILES_A_COMMIT:
            raise KitError("too many files for one commit", files=len(waiting))
        attempts = 0

        def additions() -> list[Any]:
            return [
                CommitOperationAdd(
                    item.path, item.source if isinstance(item.source, bytes) else str(item.source)
                )
                for item in waiting
            ]

        # What the Hub keeps beside git goes one by one, so that each arrives for good.
        large = {
            i.path for i in waiting if has_ending(i.path, *_LARGE) or i.size_bytes > _LARGE_BYTES
        }
        for addition in additions():
            if create_pr or addition.path_in_repo not in large:
                continue
            self.ask(
                f"`{addition.path_in_repo}`",
                lambda addition=addition: self.api.preupload_lfs_files(  # type: ignore[misc]
                    repository, [addition], repo_type=kind, num_threads=1, free_memory=False
                ),
            )

        def attempt() -> Any:
            nonlocal attempts
            attempts += 1
            if attempts > 1 and found is not None and (known := found()) is not None:
                return known
            return self.api.create_commit(
                repository,
                additions(),
                commit_message=message,
                commit_description=description,
                repo_type=kind,
                create_pr=create_pr,
                parent_commit=parent,
            )

        return self.ask(f"commit to {repository}", attempt)

    def tag(self, repository: str, name: str, revision: str) -> None:
        self.ask(
            f"tag {name}",
            lambda: self.api.create_tag(repository, tag=name, revision=revision, exist_ok=True),
        )

    def pull_requests(self, repository: str, *, author: str | None = None) -> list[Any]:
        """All pull requests of a dataset, whatever their state."""
        return self.ask(
            f"pull requests of {repository}",
            lambda: list(
                self.api.get_repo_discussions(
                    repository, repo_type="dataset", discussion_type="pull_request", author=author
                )
            ),
        )


def same(info: Any, item: Item) -> bool:
    """Whether the file the Hub describes is `item`, by the digest it keeps of it."""
    if info.lfs is not None:
        return f"sha256:{info.lfs.sha256}" == item.digest
    return bool(info.size == item.size_bytes and info.blob_id == blob_id(item.read()))


def blob_id(data: bytes) -> str:
    """Git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _cause(error: BaseException) -> BaseException:
    """The error below those that huggingface_hub wraps around it."""
    if type(error) is RuntimeError and error.__cause__ is not None:
        return _cause(error.__cause__)
    return error


def refusal(what: str, error: Any) -> KitError:
    """An answer that no retry changes."""
    response = error.response
    said = ""
    with suppress(Exception):
        said = response.headers.get("X-Error-Message") or response.json().get("error", "")
    hints = {
        401: "the token is wrong or has expired: `hf auth login`",
        403: "this account has no rights there; a fine-grained token needs write access to the "
        "repository, and the right to open pull requests on the board",
        404: "check the name; a private repository looks the same to those who may not see it",
        409: "that name is taken; choose another with --repo",
        412: "the repository moved on in the meantime: run the command again",
        413: "too large for the Hub: shorten the log, or submit without what is large",
    }
    status = response.status_code
    return PrerequisiteError(
        f"{what}: the Hub answers {status}" + (f" ({str(said)[:300]})" if said else ""),
        status=status,
        hint=hints.get(status, "the Hub's status page may know more; the command can be repeated"),
    )

"""One file over HTTP: resumed where it broke off, checked, under its final name only when whole.

Why not huggingface_hub's own download: in 2.4 it resumes only within one call (its temporary file
gets a random name and is removed when the call fails, so a killed process starts at byte 0), it
compares sizes but no digests, deletes an older file before it has a new one, and does not retry a
5xx answer to the GET. Its client, headers, addresses and errors are used; Xet transfers are not, as
they cannot be resumed either.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from kit.errors import KitError, PrerequisiteError
from kit.files import sync_folder
from kit.network import no_connection, web_page
from kit.trust.digest import sha256_file

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
_TIMEOUT_S = 30.0
_CONNECT_S = 10.0  # a server that exists accepts in less
_LONGEST_WAIT_S = 900.0  # three of the Hub's rate windows


class Progress(Protocol):
    """Who is told how a transfer goes. Called from several threads."""

    def advance(self, count: int) -> None:
        """`count` more bytes are here; negative when some have to come again."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Interrupted(Exception):
    """Another transfer failed or the person stopped; what is there is kept for the next time."""


UNREACHED = 3  # tries before a server that no connection reaches counts as out of reach


@dataclass(frozen=True)
class Retry:
    """How long to keep trying: `attempts` in a row without a byte received."""

    attempts: int = 8
    base_s: float = 1.0
    cap_s: float = 60.0

    def delay_s(self, failures: int) -> float:
        return min(self.cap_s, self.base_s * 2.0 ** (failures - 1)) * random.uniform(0.75, 1.0)


@dataclass
class Line:
    """What all transfers share: when to stop, and until when to leave the server alone.

    A server that answers 429 means all of them, not only the one that asked.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hold_for(self, seconds: float) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + seconds)

    def wait(self, seconds: float = 0.0) -> None:
        """Waits for `seconds`, and for as long as the server asked.

        Raises:
            Interrupted: The transfers are to stop.
        """
        with self._lock:
            until = max(time.monotonic() + seconds, self._free_at)
        if self.stop.wait(max(0.0, until - time.monotonic())):
            raise Interrupted


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is here."""

    bytes: int | None = None
    sha256: str | None = None  # "sha256:…"
    blob_id: str | None = (
        None  # git's SHA-1; the Hub states it for small files instead of a SHA-256
    )


@dataclass(frozen=True)
class Transfer:
    """How to fetch: client, headers, patience, and who is told."""

    client: httpx2.Client
    headers: Mapping[str, str]
    progress: Progress
    line: Line = field(default_factory=Line)
    retry: Retry = field(default_factory=Retry)


def download(url: str, target: Path, expected: Expected, transfer: Transfer) -> str:
    """Fetches `url` into `target`; an unfinished `target.part` is continued.

    Returns:
        The file's digest.

    Raises:
        KitError: What came is not what was promised; both digests are shown.
        PrerequisiteError: The server cannot be reached or does not have it, or the disk is full.
        Interrupted: See `Line.wait`.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    try:
        if resumed:
            transfer.progress.advance(part.stat().st_size)
        while True:
            _fill(url, part, expected.bytes, transfer)
            found = sha256_file(part)
            problem = _difference(part, found, expected)
            if problem is None:
                break
            transfer.progress.advance(-part.stat().st_size)
            part.unlink()
            if not resumed:
                raise KitError(
                    f"{target.name} is not the file that was announced",
                    hint="The file changed on the way or at its source: run the command again, or "
                    "take another source (--mirror).",
                    source=url.split("?")[0],
                    **problem,
                )
            # What an earlier process left may have been of another file: once more from byte 0.
            transfer.progress.note(
                f"{target.name}: the partial file did not match, downloading it again"
            )
            resumed = False
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise disk_error(target, error) from error
    return found


def disk_error(path: Path, error: OSError) -> PrerequisiteError:
    """`error` in writing `path`, as a message. The Hub's own offline error is an OSError too."""
    if type(error).__name__ == "OfflineModeIsEnabled":
        return PrerequisiteError(
            "HF_HUB_OFFLINE is set: huggingface_hub does not download",
            hint="Unset HF_HUB_OFFLINE, or take the files from a folder: --mirror DIR.",
        )
    return PrerequisiteError(
        f"{path} cannot be written: {error.strerror or error}",
        hint="Free some space or name another folder with --work DIR, then run the command again; "
        "it resumes where it stopped.",
    )


def git_blob_id(path: Path) -> str:
    """The SHA-1 under which git keeps a file of these bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _difference(path: Path, found: str, expected: Expected) -> dict[str, str] | None:
    if expected.sha256 is not None:
        if found != expected.sha256:
            return {"expected": expected.sha256, "found": found}
    elif expected.blob_id is not None and (blob_id := git_blob_id(path)) != expected.blob_id:
        return {
            "expected": f"git blob {expected.blob_id}",
            "found": f"git blob {blob_id} ({found})",
        }
    return None


def _fill(url: str, part: Path, size: int | None, transfer: Transfer) -> None:
    """Requests what is missing of `part` until nothing is."""
    import httpx2

    failures, received, unreached = 0, False, 0
    timeout = httpx2.Timeout(_TIMEOUT_S, connect=_CONNECT_S)
    while True:
        before = part.stat().st_size if part.exists() else 0
        if size is not None and before > size:
            part.unlink()
            transfer.progress.advance(-before)
            before = 0
        if size is not None and before == size and part.exists():
            return
        transfer.line.wait()
        asked_s: float | None = None
        try:
            with transfer.client.stream(
                "GET", url, headers=_headers(transfer.headers, before), timeout=timeout
            ) as response:
                if response.status_code in RETRY_STATUS:
                    asked_s = retry_after_s(response.headers)
                    reason = f"the server answers {response.status_code}"
                else:
                    if _receive(response, part, before, size, transfer):
                        return
                    reason = "the connection ended early"
        except httpx2.TransportError as error:
            reason = explain(error)
            if is_final(error):
                raise no_connection(url, reason) from error
            unreached += isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        # A server that hands over a little each time is slow, not broken.
        after = part.stat().st_size if part.exists() else 0
        failures, received = (1, True) if after > before else (failures + 1, received)
        # A machine without network is told so in seconds; a download under way waits longer.
        offline = unreached >= UNREACHED and not received
        if failures >= transfer.retry.attempts or offline:
            raise no_connection(url, f"{reason}, {failures} times in a row")
        _pause(part, reason, asked_s, failures, transfer)


def _pause(
    part: Path, reason: str, asked_s: float | None, failures: int, transfer: Transfer
) -> None:
    if asked_s is None:
        delay_s = transfer.retry.delay_s(failures)
        if delay_s >= 1:  # nobody should wait without knowing for what
            transfer.progress.note(f"{part.stem}: {reason}; trying again in {delay_s:.0f} s")
        transfer.line.wait(delay_s)
        return
    if asked_s > _LONGEST_WAIT_S:
        raise PrerequisiteError(
            f"{reason} and asks to come back in {asked_s / 60:.0f} minutes",
            hint="Run the command again then; it resumes where it stopped. Logged in "
            "(`hf auth login`) the Hub allows more.",
        )
    if asked_s >= 1:
        transfer.progress.note(f"{part.stem}: {reason}; waiting {asked_s:.0f} s as it asks")
    transfer.line.hold_for(asked_s)
    transfer.line.wait()


def _headers(headers: Mapping[str, str], have: int) -> dict[str, str]:
    # Bytes as they are: a range of a compressed stream would be of no use.
    request = {**headers, "Accept-Encoding": "identity"}
    if have:
        request["Range"] = f"bytes={have}-"
    return request


def _receive(
    response: httpx2.Response, part: Path, have: int, size: int | None, transfer: Transfer
) -> bool:
    """Appends the body to `part`; whether the file is whole then."""
    if response.status_code == 416:
        if response.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink(missing_ok=True)
        transfer.progress.advance(-have)
        return False
    if not response.is_success:
        raise refused(response)
    page = web_page(str(response.url), response.headers.get("Content-Type", ""))
    if page is not None:
        raise page
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    if have and not (response.status_code == 206 and begins):
        transfer.progress.advance(-have)  # the server sends it all, whatever was asked
        have = 0
    with part.open("ab" if have else "wb") as file:
        # Unbuffered pieces: what has arrived when the connection breaks is on the disk.
        for piece in response.iter_raw():
            file.write(piece)
            have += len(piece)
            transfer.progress.advance(len(piece))
            if size is not None and have > size:
                raise KitError(
                    f"{part.stem} is longer than announced",
                    hint="The file changed at its source: see `n4090-kit prepare --check`.",
                    expected=f"{size} bytes",
                    found=f"at least {have} bytes",
                )
            if transfer.line.stop.is_set():
                raise Interrupted
    return size is None or have == size


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long a server asks to be left alone: its rate window, or Retry-After in either form."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        parse_ratelimit_headers,
    )

    window = parse_ratelimit_headers(headers)
    if window is not None and window.remaining == 0:
        return float(window.reset_in_seconds)
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def refused(response: httpx2.Response) -> PrerequisiteError:
    """An answer that no retry changes."""
    said = response.headers.get("X-Error-Message", "")
    hint = {
        401: "It needs a login: `hf auth login`.",
        403: "Your account may not read it: accept its terms on its page, then `hf auth login`.",
        404: "Check the name in the recipe, or the mirror.",
        407: "The proxy wants a login: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT.",
        511: "The network wants a login: open any address in a browser.",
    }.get(response.status_code, "Try again later, or take another source (--mirror).")
    return PrerequisiteError(
        f"{str(response.url).split('?')[0]} answers {response.status_code}"
        + (f": {said}" if said else ""),
        hint=hint,
    )


def is_final(error: Exception) -> bool:
    """Whether a transport error is one that no retry changes: a proxy's refusal, a certificate."""
    import httpx2

    refusal = isinstance(error, httpx2.ProxyError | httpx2.UnsupportedProtocol)
    return refusal or "CERTIFICATE" in str(error).upper()


def explain(error: Exception) -> str:
    """A transport error in a few words."""
    import httpx2

    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    words = str(error) or type(error).__name__
    return words.splitlines()[0]


def patiently(ask: Callable[[], T], url: str, transfer: Transfer) -> T:
    """What `ask` (a call of huggingface_hub) returns; 429 and 5xx are waited out."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    failures = 0
    while True:
        transfer.line.wait()
        asked_s: float | None = None
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code not in RETRY_STATUS:
                raise
            asked_s = retry_after_s(error.response.headers)
            reason = f"the server answers {error.response.status_code}"
        except httpx2.TransportError as error:
            reason = explain(error)
            if is_final(error) or isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise no_connection(url, reason) from error
        failures += 1
        if failures >= transfer.retry.attempts:
            raise no_connection(url, f"{reason}, {failures} times in a row")
        _pause(Path("the file listing"), reason, asked_s, failures, transfer)

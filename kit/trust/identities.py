"""Whose key it is: accounts that show it in public, and the day that was looked up.

`github`: the signing and login keys of an account, which anyone may read. `hf`: the file `keys.pub`
in the account's own dataset repository `n4090-keys`; only the account can write there. Both change,
so what was found is kept as a snapshot with its date. A snapshot that a submitter made is a claim;
one that a verifier fetched is evidence. Nothing here is fetched unless somebody asks for it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kit.errors import KitError, PrerequisiteError, SchemaError, SignatureError
from kit.files import write_json
from kit.schemas import problems
from kit.timing import utc_now
from kit.trust import sshsig
from kit.trust.canonical import parse_strict

Service = Literal["github", "hf"]
SNAPSHOT_NAME = "identities.json"
MAX_ANSWER_BYTES = 2**20
_TIMEOUT_S = 20.0
_USER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
# Where each service answers; the variables point tests and mirrors elsewhere.
_HOSTS = {
    "github": ("N4090_GITHUB", "https://github.com"),
    "github-api": ("N4090_GITHUB_API", "https://api.github.com"),
    "hf": ("HF_ENDPOINT", "https://huggingface.co"),
}


class Account(NamedTuple):
    service: Service
    user: str


def fetch_snapshot(accounts: Iterable[Account]) -> dict[str, Any]:
    """What the accounts show now: {"schema_version", "accounts": [{service, user, keys, …}]}.

    Raises:
        PrerequisiteError: A service does not answer, or has no such account.
    """
    found = [
        {
            "service": account.service,
            "user": account.user,
            "fetched_at": utc_now(),
            "keys": sorted(_keys_of(account)),
        }
        for account in accounts
    ]
    return {"schema_version": 1, "accounts": found}


def fetch_account(account: Account) -> dict[str, Any]:
    """What a service shows of one account: {service, user, created_at, keys}.

    Raises:
        PrerequisiteError: The service does not answer, has no such account, or tells no age.
    """
    keys = sorted(_keys_of(account))
    if account.service == "hf":
        data = _get("hf", f"/api/users/{account.user}/overview", "Check the account's name.")
        name = "createdAt"
    else:
        data = _get("github-api", f"/users/{account.user}", "Check the account's name.")
        name = "created_at"
    try:
        created = datetime.fromisoformat(json.loads(data)[name]).astimezone(UTC)
    except (ValueError, KeyError, TypeError) as error:
        raise PrerequisiteError(
            f"{account.service} does not tell when the account {account.user} was made",
            hint="Vouch for the person by their account on the other service.",
        ) from error
    return {
        "service": account.service,
        "user": account.user,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "keys": keys[:200],
    }


def read_snapshot(path: Path) -> dict[str, Any]:
    """A snapshot that `keys identify` wrote.

    Raises:
        SchemaError: It is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SchemaError(f"`{path.name}` cannot be read: {error.strerror}") from error
    document = parse_strict(data, max_bytes=4 * MAX_ANSWER_BYTES, name=path.name)
    found = problems(document, "identities")
    if found:
        raise SchemaError(f"`{path.name}` is not a snapshot of identities: {found[0]}")
    assert isinstance(document, dict)
    return document


def merge_snapshot(path: Path, snapshot: dict[str, Any]) -> None:
    """Writes a snapshot to `path`, over what it had of the same accounts."""
    kept = read_snapshot(path)["accounts"] if path.exists() else []
    new = {(entry["service"], entry["user"]) for entry in snapshot["accounts"]}
    kept = [entry for entry in kept if (entry["service"], entry["user"]) not in new]
    write_json(path, {"schema_version": 1, "accounts": [*kept, *snapshot["accounts"]]})


def claimed_identities(keys_dir: Path, public_key: str) -> dict[str, Any]:
    """What a run says of its submitter: the accounts of the work folder that showed the key."""
    path = keys_dir / SNAPSHOT_NAME
    if not path.exists():
        return {}
    return {
        entry["service"]: {"user": entry["user"], "fetched_at": entry["fetched_at"]}
        for entry in read_snapshot(path)["accounts"]
        if public_key in entry["keys"]
    }


def _keys_of(account: Account) -> set[str]:
    if not _USER.fullmatch(account.user):
        raise PrerequisiteError(f"{account.user!r} is not the name of an account")
    if account.service == "hf":
        path = f"/datasets/{account.user}/n4090-keys/resolve/main/keys.pub"
        hint = "Make a dataset repository `n4090-keys` with your public keys in `keys.pub`."
        return _key_lines(_get("hf", path, hint))
    hint = "Check the name; add the key under Settings, SSH and GPG keys, as a signing key."
    keys = _key_lines(_get("github", f"/{account.user}.keys", hint))
    answer = _get("github-api", f"/users/{account.user}/ssh_signing_keys", hint)
    try:
        listed = json.loads(answer)
        lines = "\n".join(str(entry["key"]) for entry in listed)
    except (ValueError, KeyError, TypeError) as error:
        raise KitError(f"GitHub's answer about {account.user} cannot be read ({error})") from error
    return keys | _key_lines(lines.encode())


def _key_lines(data: bytes) -> set[str]:
    """The keys in lines of OpenSSH public keys; comments and kinds we do not know are left out."""
    found = set()
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            found.add(sshsig.PublicKey.parse(line).line)
        except SignatureError:
            continue
    return found


def _get(service: str, path: str, hint: str) -> bytes:
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    variable, host = _HOSTS[service]
    url = os.environ.get(variable, host).rstrip("/") + path
    if not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        raise PrerequisiteError(f"{variable} must be an https address", found=url)
    try:
        with urlopen(
            Request(url, headers={"User-Agent": "n4090-kit"}), timeout=_TIMEOUT_S
        ) as answer:
            data = bytes(answer.read(MAX_ANSWER_BYTES + 1))
    except HTTPError as error:
        raise PrerequisiteError(f"{url}: answered {error.code}", hint=hint) from error
    except (URLError, OSError) as error:
        raise PrerequisiteError(
            f"{url}: no answer ({error})", hint="This command needs a network; nothing else does."
        ) from error
    if len(data) > MAX_ANSWER_BYTES:
        raise KitError(f"{url}: the answer is too long for a list of keys")
    return data

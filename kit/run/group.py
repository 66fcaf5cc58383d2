"""Registered groups: N runs announced before the first one, with seeds that nobody could choose.

An announcement is binding: a registered run that is never shown counts as failed. The registration
is a small signed document. Each run of the group takes the next free number, carries the
registration in its log's header, and derives its seed from (challenge, key, number). A challenge
from somebody else (a board, a public beacon) rules out that the owner tried seeds beforehand. A
challenge of the owner's own is allowed and marked as such.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import KitError, PrerequisiteError, SignatureError
from kit.files import write_json
from kit.recipe import Recipe
from kit.schemas import problems
from kit.timing import utc_now
from kit.trust import sshsig
from kit.trust.canonical import parse_strict
from kit.trust.keys import Signer
from kit.trust.sign import result_id, sign_document, signed_bytes

REGISTER_NAMESPACE = "register@n4090-kit"
MAX_REGISTRATION_BYTES = 64 * 1024
_FILE = "registration.json"


def challenge_seed(challenge: str, public_key: str, index: int) -> int:
    """The seed of run `index` of a registered group: 31 bits nobody could choose."""
    text = json.dumps([challenge, public_key, index], separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) >> 1


@dataclass(frozen=True)
class Group:
    """A registration and the folder that counts its runs."""

    folder: Path
    document: dict[str, Any]

    @property
    def id(self) -> str:
        return result_id(self.document)

    def seed(self, index: int) -> int:
        challenge = self.document["challenge"]["value"]
        return challenge_seed(challenge, self.document["public_key"], index)

    def claim(self, run: str) -> int:
        """Takes the next free number for `run`; a number is used once, however its run ends.

        Raises:
            PrerequisiteError: All numbers are taken.
        """
        for index in range(self.document["runs"]):
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                descriptor = os.open(self.folder / f"run-{index}", flags, 0o644)
            except FileExistsError:
                continue
            with os.fdopen(descriptor, "w") as file:
                file.write(run + "\n")
            return index
        raise PrerequisiteError(
            f"all {self.document['runs']} runs of group {self.id} have been made",
            hint="Register a new group; more runs cannot be added to one.",
        )


def register(
    work: Path, recipe: Recipe, runs: int, signer: Signer, challenge: str | None = None
) -> Group:
    """Announces `runs` runs of `recipe`.

    Args:
        challenge: Text that its maker could not know before, from a board or a public beacon;
            None: drawn here.
    """
    document = sign_document(
        {
            "schema_version": 1,
            "recipe": {"name": recipe.name, "track": recipe.track, "digest": recipe.digest},
            "runs": runs,
            "challenge": {
                "value": challenge if challenge is not None else secrets.token_hex(32),
                "source": "own" if challenge is None else "given",
            },
            "public_key": signer.public_key,
            "registered_at": utc_now(),
            "signatures": [],
        },
        signer,
        REGISTER_NAMESPACE,
    )
    group = Group(work / "groups" / result_id(document), document)
    write_json(group.folder / _FILE, document)
    return group


def open_group(work: Path, name: str) -> Group:
    """The group with this id, folder or registration file.

    Raises:
        KitError: It cannot be read, or is not a registration that its key signed.
    """
    path = Path(name)
    if not path.exists():
        path = work / "groups" / name
    path = path / _FILE if path.is_dir() else path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PrerequisiteError(
            f"group `{name}` cannot be read ({error.strerror})",
            hint="`n4090-kit register --recipe NAME --runs N` opens one and prints its id.",
        ) from error
    document = parse_strict(data, max_bytes=MAX_REGISTRATION_BYTES, name=path.name)
    problem = registration_problem(document)
    if problem:
        raise KitError(f"{path.name} is not a valid registration: {problem}")
    return Group(path.resolve().parent, document)


def registration_problem(document: Any) -> str | None:
    """What is wrong with a registration: its form, or its one signature."""
    found = problems(document, "registration")
    if found:
        return str(found[0])
    [entry] = document["signatures"]
    if entry["namespace"] != REGISTER_NAMESPACE:
        return f"signed for {entry['namespace']}"
    try:
        key = sshsig.verify(signed_bytes(document), entry["signature"], REGISTER_NAMESPACE)
    except SignatureError as error:
        return error.message
    if not key.line == entry["public_key"] == document["public_key"]:
        return "signed with a different key than the one it names"
    return None

"""V02 and V03: who signed, and whose key that is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.errors import SignatureError
from kit.timing import wall_ms
from kit.trust import sshsig
from kit.trust.allowed_signers import read_allowed_signers
from kit.trust.identities import read_snapshot
from kit.trust.keys import revoked_keys
from kit.trust.sign import signed_bytes
from kit.typed import to_json
from kit.verify.evidence import Evidence
from kit.verify.finding import Check, Finding, fail, missing, ok, skip, warn


def name_of(document: dict[str, Any]) -> str:
    """The result's id: 16 hex digits of the digest of the signed bytes."""
    return hashlib.sha256(signed_bytes(document)).hexdigest()[:16]


def signature(evidence: Evidence) -> Iterator[Finding]:
    """Every signature is over these bytes, for this purpose, by the key it names."""
    signatures = evidence.result.signatures
    if not signatures:
        yield fail("the result is not signed", "signatures")
        return
    message = signed_bytes(evidence.document)
    keys: list[str] = []
    for index, entry in enumerate(signatures):
        place = f"signatures[{index}]"
        if entry.namespace != sshsig.RESULT_NAMESPACE:
            yield fail(
                "the signature is for another purpose",
                place,
                expected=sshsig.RESULT_NAMESPACE,
                found=entry.namespace,
            )
            continue
        try:
            key = sshsig.verify(message, entry.signature, sshsig.RESULT_NAMESPACE)
        except SignatureError as error:
            yield fail(
                error.message,
                place,
                expected=error.facts.get("expected"),
                found=error.facts.get("found"),
            )
            continue
        if key.line != entry.public_key:
            yield fail(
                "signed by another key than the entry names",
                place,
                expected=entry.public_key,
                found=key.line,
            )
            continue
        keys.append(key.line)
    submitter = evidence.result.submitter.public_key
    if len(keys) == len(signatures):
        if submitter not in keys:
            yield fail(
                "the submitter's key did not sign",
                "submitter.public_key",
                expected=submitter,
                found=", ".join(keys),
            )
        else:
            fingerprints = ", ".join(sshsig.PublicKey.parse(key).fingerprint for key in keys)
            yield ok(f"{len(keys)} valid: {fingerprints}")


def owner(evidence: Evidence) -> Iterator[Finding]:
    """The key is not revoked, the run was made with it, and it belongs to whom it says."""
    options, submitter = evidence.options, evidence.result.submitter
    keys = [entry.public_key for entry in evidence.result.signatures] or [submitter.public_key]
    began = evidence.header.signer
    for logged, stated in (
        (began.public_key, submitter.public_key),
        (began.created, submitter.key_created_for_this_work_folder),
        (began.identities, to_json(submitter.identities)),
    ):
        if logged != stated:
            yield fail(
                "the run was begun with another key than the submitter's",
                "submitter",
                expected=logged,
                found=stated,
            )
            return
    if (path := evidence.revoked) is not None:
        revoked = revoked_keys(path)
        for key in keys:
            if key in revoked:
                yield fail("the key was revoked by its owner", "signatures", found=key)
                return
    identities = to_json(submitter.identities)
    if options.allowed_signers is not None:
        yield from _allowed(options.allowed_signers, keys)
        return
    if identities and options.identities is not None:
        yield from _accounts(identities, options.identities, submitter.public_key)
    elif identities:
        named = ", ".join(f"{where}:{who['user']}" for where, who in sorted(identities.items()))
        yield warn(
            f"claims to be {named[:200]}, which was not checked: give --identities",
            "submitter.identities",
        )
    elif submitter.key_created_for_this_work_folder:
        yield ok("no identity: the kit generated this key, so it only links results signed with it")
    else:
        yield skip("no account is named; the key speaks for itself")


def _accounts(identities: dict[str, Any], path: Path, key: str) -> Iterator[Finding]:
    """Each claimed account showed the key when the verifier's own snapshot was made."""
    seen = {(e["service"], e["user"]): e for e in read_snapshot(path)["accounts"]}
    good = []
    for service, claim in sorted(identities.items()):
        place = f"submitter.identities.{service}"
        entry = seen.get((service, claim["user"]))
        if entry is None:
            yield missing(f"the snapshot does not hold {service}:{claim['user']}")
        elif key not in entry["keys"]:
            yield fail(
                f"{service}:{claim['user']} did not show this key on {entry['fetched_at'][:10]}",
                place,
                expected=f"one of {len(entry['keys'])} keys",
                found=key,
            )
        else:
            good.append(f"{service}:{claim['user']} on {entry['fetched_at'][:10]}")
    if len(good) == len(identities):
        yield ok(f"the key was shown by {', '.join(good)}")


def _allowed(path: Path, keys: list[str]) -> Iterator[Finding]:
    """Who, in an OpenSSH allowed-signers file, may sign results with one of `keys` today."""
    names: set[str] = set()
    objections: list[str] = []
    for signer in read_allowed_signers(path):
        if signer.key is None or signer.key.line not in keys:
            continue
        why = signer.objection(sshsig.RESULT_NAMESPACE, wall_ms() / 1000)
        if why:
            objections.append(f"line {signer.line}: {why}")
        else:
            names.update(name for name in signer.principals if not name.startswith("!"))
    if names:
        yield ok(f"signed by {', '.join(sorted(names))}")
        return
    yield fail(
        "no allowed signer holds this key",
        "signatures",
        expected="; ".join(objections)[:400] or None,
        found=", ".join(keys),
    )


CHECKS = (
    Check(
        "V02",
        "Signature",
        "Edits after signing, and signatures borrowed from another purpose or made with SHA-1.",
        "signatures[] over the canonical form of everything else",
        signature,
    ),
    Check(
        "V03",
        "Signer",
        "Impersonation, and keys that their owner has given up.",
        "submitter, --allowed-signers, --identities, --revoked",
        owner,
    ),
)

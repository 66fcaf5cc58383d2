"""Signing a JSON document in itself: what is signed is its canonical form without `signatures`."""

from __future__ import annotations

import hashlib
from typing import Any

from kit.trust.canonical import canonical_bytes
from kit.trust.keys import Signer
from kit.trust.sshsig import RESULT_NAMESPACE


def signed_bytes(document: dict[str, Any]) -> bytes:
    """The bytes that the signatures of `document` are over."""
    return canonical_bytes({key: value for key, value in document.items() if key != "signatures"})


def sign_document(
    document: dict[str, Any], signer: Signer, namespace: str = RESULT_NAMESPACE
) -> dict[str, Any]:
    """`document` with one more signature in `signatures`; those already there stay."""
    signature = {
        "format": "sshsig",
        "namespace": namespace,
        "public_key": signer.public_key,
        "signature": signer.sign(signed_bytes(document), namespace),
    }
    return {**document, "signatures": [*document.get("signatures", []), signature]}


def result_id(document: dict[str, Any]) -> str:
    """The result's name on a board: 16 hex digits of the digest of the signed bytes."""
    return hashlib.sha256(signed_bytes(document)).hexdigest()[:16]

"""Signed documents about rows: reproductions, disputes, withdrawals, rescores, resolutions.

Each is one small JSON file, signed in itself in a namespace of its own, named by whoever signed it
and by the digest of what was signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit.board.layout import (
    MAX_DOCUMENT_BYTES,
    REPRODUCTION_NAMESPACE,
    STATEMENT_NAMESPACE,
    Layout,
    document_name,
    is_name,
    refuse_newer,
)
from kit.board.load import read_document
from kit.errors import KitError, SchemaError, SignatureError
from kit.schemas import problems
from kit.trust import sshsig
from kit.trust.keys import Signer
from kit.trust.sign import result_id as document_id
from kit.trust.sign import sign_document, signed_bytes

Document = dict[str, Any]
NAMESPACES = {"reproduction": REPRODUCTION_NAMESPACE, "statement": STATEMENT_NAMESPACE}


def now() -> str:
    """This instant as documents and events write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_statement(
    kind: str,
    result_id: str,
    *,
    name: str,
    signer: Signer,
    reason: str,
    evidence: tuple[str, ...] = (),
    dispute: str | None = None,
    upheld: bool | None = None,
    figures: Mapping[str, float] | None = None,
) -> Document:
    """A signed statement about a row.

    Raises:
        SchemaError: It does not fit its schema; says where.
    """
    if not is_name(name):
        raise SchemaError(
            f"`{name[:60]}` cannot be a name here",
            hint="letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
        )
    document = {
        "schema_version": 1,
        "kind": kind,
        "result_id": result_id,
        "by": {"name": name, "public_key": signer.public_key},
        "at": now(),
        "reason": reason,
        "evidence": list(evidence),
        "dispute": dispute,
        "upheld": upheld,
        "figures": dict(figures) if figures else None,
    }
    signed = sign_document(document, signer, STATEMENT_NAMESPACE)
    if found := problems(signed, "statement"):
        raise SchemaError(f"the statement does not fit its schema: {found[0]}")
    return signed


def kind_of(document: Document) -> str:
    """`reproduction` or `statement`, by its form.

    Raises:
        SchemaError: Neither.
    """
    if "claimed" in document and "found" in document:
        return "reproduction"
    if "reason" in document and "evidence" in document:
        return "statement"
    raise SchemaError(
        "neither a result, a reproduction nor a statement",
        hint="give result.json, a run folder, or what `reproduce` or `board dispute` wrote",
    )


def about(document: Document) -> str:
    """The row a document is about."""
    return str(document["result_id"] if "reason" in document else document["of"]["result_id"])


def relative_path(document: Document) -> str:
    """Where a document lies below the board."""
    folder = f"{kind_of(document)}s"
    name = f"{document['by']['name']}-{document_id(document)}.json"
    return f"{folder}/{about(document)}/{name}"


def check_document(document: Document, schema: str) -> None:
    """Refuses a document that does not fit its schema, or whose signer is not who it names.

    Raises:
        SchemaError, SignatureError: What is wrong with it.
    """
    refuse_newer(document, f"the {schema}")
    if found := problems(document, schema):
        raise SchemaError(f"does not fit its schema: {found[0]}")
    namespace = NAMESPACES[schema]
    message = signed_bytes(document)
    signers = set()
    for entry in document["signatures"]:
        if entry["namespace"] != namespace:
            raise SignatureError(f"signed for another purpose ({entry['namespace'][:40]})")
        key = sshsig.verify(message, entry["signature"], namespace)
        if key.line != entry["public_key"]:
            raise SignatureError("signed by another key than the entry names")
        signers.add(key.line)
    if document["by"]["public_key"] not in signers:
        raise SignatureError("the key it names did not sign it")


def read_checked(path: Path, layout: Layout) -> Document:
    """The document at `path` of the board, when its form, name, place and signatures are right.

    Raises:
        KitError: What is wrong with it.
    """
    document = read_document(path, MAX_DOCUMENT_BYTES)
    schema = path.relative_to(layout.root).parts[0].removesuffix("s")
    check_document(document, schema)
    parsed = document_name(path.name)
    who, named = parsed or ("", "")
    if named != document_id(document):
        raise KitError("its name is not the digest of what is signed")
    if who != document["by"]["name"]:
        signer = document["by"]["name"]
        raise KitError(f"the file is named after {who!r} and signed by {signer!r}")
    if about(document) != path.parent.name:
        raise KitError("it is about another row than the one it lies under")
    return document

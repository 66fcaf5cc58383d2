"""V02 and V03: the signature, and who signed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tamper
from cryptography.hazmat.primitives.asymmetric import rsa
from tamper import Draft

from kit.trust import sshsig
from kit.trust.sign import signed_bytes
from kit.verify import Options
from mutations.registry import edit_json, mutation


@mutation("no signature", "V01", kind="file")
def _(folder: Path) -> None:
    edit_json(folder, lambda result: result.update(signatures=[]))


@mutation("one digit changed after signing", "V02 V07", kind="file")
def _(folder: Path) -> None:
    edit_json(
        folder, lambda result: result["timing"].update(total_s=result["timing"]["total_s"] - 1)
    )


@mutation("CORE changed after signing", "V02 V07 V29", kind="file")
def _(folder: Path) -> None:
    edit_json(folder, lambda result: result["quality"]["core"].update(value=0.26))


@mutation("signed for another purpose", "V02", kind="draft")
def _(draft: Draft) -> None:
    draft.namespace = "file"


@mutation("signed for another purpose, called a result", "V02", kind="file")
def _(folder: Path) -> None:
    def change(result: dict[str, Any]) -> None:
        entry = result["signatures"][0]
        entry["signature"] = sshsig.sign(signed_bytes(result), "git", tamper.KEY)

    edit_json(folder, change)


@mutation("signature of another result", "V02", kind="file")
def _(folder: Path) -> None:
    other = sshsig.sign(b"{}", sshsig.RESULT_NAMESPACE, tamper.KEY)
    edit_json(folder, lambda result: result["signatures"][0].update(signature=other))


@mutation("signed by another key under the submitter's name", "V02", kind="file")
def _(folder: Path) -> None:
    def change(result: dict[str, Any]) -> None:
        armored = sshsig.sign(signed_bytes(result), sshsig.RESULT_NAMESPACE, tamper.OTHER_KEY)
        result["signatures"][0]["signature"] = armored

    edit_json(folder, change)


@mutation("SHA-1 signature", "V02", kind="file")
def _(folder: Path) -> None:
    import base64
    import hashlib
    import struct

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    key = rsa.generate_private_key(65537, 2048)

    def wire(*fields: bytes) -> bytes:
        return b"".join(struct.pack(">I", len(f)) + f for f in fields)

    def change(result: dict[str, Any]) -> None:
        digest = hashlib.sha512(signed_bytes(result)).digest()
        names = (sshsig.RESULT_NAMESPACE.encode(), b"", b"sha512")
        raw = key.sign(b"SSHSIG" + wire(*names, digest), padding.PKCS1v15(), hashes.SHA1())
        public = sshsig.public_key(key)
        blob = b"SSHSIG\0\0\0\1" + wire(public.blob, *names, wire(b"ssh-rsa", raw))
        text = base64.b64encode(blob).decode()
        result["signatures"][0]["signature"] = (
            f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n"
        )

    edit_json(folder, change)


@mutation("signature cut short", "V02", kind="file")
def _(folder: Path) -> None:
    edit_json(
        folder,
        lambda result: result["signatures"][0].update(
            signature=result["signatures"][0]["signature"][:-60] + "-----END SSH SIGNATURE-----\n"
        ),
    )


@mutation("a second, bad signature beside the good one", "V02", kind="file")
def _(folder: Path) -> None:
    def change(result: dict[str, Any]) -> None:
        bad = sshsig.sign(b"{}", sshsig.RESULT_NAMESPACE, tamper.OTHER_KEY)
        line = sshsig.public_key(tamper.OTHER_KEY).line
        result["signatures"].append(
            {**result["signatures"][0], "public_key": line, "signature": bad}
        )

    edit_json(folder, change)


@mutation("somebody else's run under one's own key", "V03", kind="draft")
def _(draft: Draft) -> None:
    draft.key = tamper.OTHER_KEY
    line = sshsig.public_key(tamper.OTHER_KEY).line
    draft.result_edits.append(lambda result: result["submitter"].update(public_key=line))


def with_list(name: str, content: str) -> Callable[[Path], Options]:
    def options(folder: Path) -> Options:
        path = folder.with_name(folder.name + "-list")
        path.write_text(content)
        return Options(**{name: path})

    return options


def accounts() -> Callable[[Path], Options]:
    """A verifier who looked up what alice shows: another key."""

    def options(folder: Path) -> Options:
        path = folder.with_name(folder.name + "-accounts")
        entry = {"service": "github", "user": "alice", "keys": [OTHER_LINE]}
        entry["fetched_at"] = "2026-11-01T00:00:00Z"
        path.write_text(json.dumps({"schema_version": 1, "accounts": [entry]}))
        return Options(identities=path)

    return options


HONEST_LINE, OTHER_LINE = (sshsig.public_key(key).line for key in (tamper.KEY, tamper.OTHER_KEY))
mutation(
    "revoked key", "V03", kind="file", options=with_list("revoked", f"# lost\n{HONEST_LINE}\n")
)(lambda folder: None)
mutation(
    "nobody's key where a signer is asked for",
    "V03",
    kind="file",
    options=with_list("allowed_signers", f"mallory {OTHER_LINE}\n"),
)(lambda folder: None)

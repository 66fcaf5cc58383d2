"""Whose run it is: the key that signed the result also names the submitter.

A signed run is public, so anybody can copy it into a folder of their own. Only who holds the run's
key can sign the `submission.json` that names the submitter; a result may also name its account on
the Hub in its own signed bytes.
"""

from __future__ import annotations

from typing import Any

from kit.errors import KitError
from kit.result_form import Submitter
from kit.trust import sshsig
from kit.trust.keys import Signer
from kit.trust.sign import sign_document, signed_bytes

Document = dict[str, Any]
SUBMISSION_NAMESPACE = "submission@n4090-kit"


def sign_submission(pin: Document, signer: Signer) -> Document:
    """submission.json, signed by the key of its run."""
    return sign_document({**pin, "signatures": []}, signer, SUBMISSION_NAMESPACE)


def named_account(submitter: Submitter) -> str | None:
    """The account on the Hub that the signed result names, case-folded."""
    account = submitter.identities.hf
    return account.user.casefold() if account else None


def names_submitter(pin: Document, owner: Submitter, submitter: str) -> bool:
    """Whether the run's key names `submitter`: by a signed submission.json, or in the result."""
    if named_account(owner) == submitter.casefold():
        return True
    for entry in pin.get("signatures", ()):
        try:
            found = sshsig.verify(signed_bytes(pin), entry["signature"], SUBMISSION_NAMESPACE)
        except KitError:
            continue
        if found.line == owner.public_key and pin["submitter"] == submitter:
            return True
    return False

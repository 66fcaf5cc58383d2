"""Allowed-signers files, against `ssh-keygen -Y verify` itself."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kit.errors import SchemaError, SignatureError
from kit.trust import sshsig
from kit.trust.allowed_signers import matches, read_allowed_signers

KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"signer").digest())
OTHER = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"other").digest())
LINE, OTHER_LINE = (sshsig.public_key(key).line for key in (KEY, OTHER))
MESSAGE = b"{}"
NOW = 1_790_000_000.0

# Whether `alice` may sign results with KEY by this file.
FILES: dict[str, tuple[bytes, bool]] = {
    "plain": (f"alice {LINE}\n".encode(), True),
    "with a comment": (f"alice {LINE} alice@laptop\n".encode(), True),
    "several names": (f"bob,alice,carol {LINE}\n".encode(), True),
    "a pattern": (f"al* {LINE}\n".encode(), True),
    "a quoted name": (f'"alice" {LINE}\n'.encode(), True),
    "leading blanks and a carriage return": (f"\t alice {LINE}\r\n".encode(), True),
    "a comment line before": (f"# alice\n\nalice {LINE}\n".encode(), True),
    "the namespace": (f'alice namespaces="result@n4090-kit" {LINE}\n'.encode(), True),
    "a namespace pattern": (f'alice NAMESPACES="git,*@n4090-kit" {LINE}\n'.encode(), True),
    "another namespace": (f'alice namespaces="git" {LINE}\n'.encode(), False),
    "a namespace excluded": (f'alice namespaces="*,!result@*" {LINE}\n'.encode(), False),
    "valid since 2001": (f'alice valid-after="20010101" {LINE}\n'.encode(), True),
    "valid until 2001": (f'alice valid-before="20010101" {LINE}\n'.encode(), False),
    "valid from 2090": (f'alice valid-after="20900101000000Z" {LINE}\n'.encode(), False),
    "a certificate authority": (f"alice cert-authority {LINE}\n".encode(), False),
    "the key in a comment": (f"alice {OTHER_LINE} {LINE}\n".encode(), False),
    "the key in a comment line": (f"# alice {LINE}\n".encode(), False),
    "the key behind a line separator": (
        f"alice {OTHER_LINE} x\u2028alice {LINE}\n".encode(),
        False,
    ),
    "the key behind a form feed": (f"alice {OTHER_LINE} x\x0calice {LINE}\n".encode(), False),
    "the key behind a carriage return": (f"alice {OTHER_LINE} x\ralice {LINE}\n".encode(), False),
    "an unknown option": (f'alice no-touch="yes" {LINE}\n'.encode(), False),
    "options that end in a comma": (f"alice cert-authority, {LINE}\n".encode(), False),
    "no names": (f"{LINE}\n".encode(), False),
    "two namespaces clauses": (
        f'alice namespaces="git",namespaces="result@n4090-kit" {LINE}\n'.encode(),
        False,
    ),
}


def allowed(path: Path) -> bool:
    """The verdict of this module."""
    try:
        signers = read_allowed_signers(path)
    except SchemaError:
        return False
    return any(
        signer.key is not None
        and signer.key.line == LINE
        and matches("alice", ",".join(signer.principals))
        and not signer.objection(sshsig.RESULT_NAMESPACE, NOW)
        for signer in signers
    )


@pytest.mark.parametrize("name", FILES)
def test_a_file_allows_what_openssh_allows(tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    path = tmp_path / "allowed"
    path.write_bytes(content)
    assert allowed(path) == expected
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed: no second opinion")
    signature = tmp_path / "signature"
    signature.write_text(sshsig.sign(MESSAGE, sshsig.RESULT_NAMESPACE, KEY))
    command = ["ssh-keygen", "-Y", "verify", "-f", str(path), "-I", "alice"]
    command += ["-n", sshsig.RESULT_NAMESPACE, "-s", str(signature)]
    done = subprocess.run(command, input=MESSAGE, capture_output=True, check=False)
    assert (done.returncode == 0) == expected, done.stderr


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "allowed"
    for content in (f"alice {LINE}\nbob\n", f"\ufeffalice {LINE}\n", f"bob valid-after=1 {LINE}\n"):
        path.write_text(content)
        with pytest.raises(SchemaError, match=r"line [12]"):
            read_allowed_signers(path)


SMALL_ORDER = (
    "01" + 31 * "00",
    "ec" + 30 * "ff" + "7f",
    32 * "00",
    31 * "00" + "80",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    # The same points in encodings that are not canonical.
    "ee" + 30 * "ff" + "7f",
    "ed" + 30 * "ff" + "7f",
    "01" + 30 * "00" + "80",
)


@pytest.mark.parametrize("point", SMALL_ORDER)
@pytest.mark.parametrize("kind", ["ssh-ed25519", "sk-ssh-ed25519@openssh.com"])
def test_a_key_of_small_order_is_refused(point: str, kind: str) -> None:
    def field(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    blob = field(kind.encode()) + field(bytes.fromhex(point))
    with pytest.raises(SignatureError, match=r"small order|canonical|cannot be read"):
        sshsig.PublicKey.from_blob(blob + (field(b"ssh:") if kind.startswith("sk-") else b""))

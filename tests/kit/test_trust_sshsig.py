"""SSH signatures, against the real `ssh-keygen` and the independent `sshsig` library."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import PrerequisiteError, SignatureError
from kit.trust import keys, sshsig

NAMESPACE = sshsig.RESULT_NAMESPACE
MESSAGE = b'{"a":1}'

needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed"
)

KINDS = {
    "ed25519": ["-t", "ed25519"],
    "ecdsa-256": ["-t", "ecdsa", "-b", "256"],
    "ecdsa-384": ["-t", "ecdsa", "-b", "384"],
    "ecdsa-521": ["-t", "ecdsa", "-b", "521"],
    "rsa": ["-t", "rsa", "-b", "2048"],
}


@pytest.fixture(scope="module")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One key of each kind, as ssh-keygen makes it."""
    folder = tmp_path_factory.mktemp("ssh")
    files = {}
    for name, options in KINDS.items():
        path = folder / name
        run("ssh-keygen", "-q", *options, "-N", "", "-C", "someone@somewhere", "-f", str(path))
        files[name] = path
    return files


def run(*command: str, stdin: bytes = b"", ok: bool = True) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if ok:
        assert done.returncode == 0, done.stderr
    return done


def openssh_accepts(tmp_path: Path, public_key: str, armored: str, namespace: str) -> bool:
    (tmp_path / "allowed").write_text(f"alice {public_key}\n")
    (tmp_path / "sig").write_text(armored)
    command = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "allowed"), "-I", "alice"]
    command += ["-n", namespace, "-s", str(tmp_path / "sig")]
    return run(*command, stdin=MESSAGE, ok=False).returncode == 0


@needs_ssh_keygen
@pytest.mark.parametrize("kind", KINDS)
def test_ssh_keygen_accepts_our_signature(
    tmp_path: Path, key_files: dict[str, Path], kind: str
) -> None:
    signer = keys.load_signer(key_files[kind])
    assert signer.origin == "file" and not signer.created
    armored = signer.sign(MESSAGE, NAMESPACE)
    assert openssh_accepts(tmp_path, signer.public_key, armored, NAMESPACE)
    assert not openssh_accepts(tmp_path, signer.public_key, armored, "file")
    assert sshsig.verify(MESSAGE, armored, NAMESPACE).line == signer.public_key
    printed = run("ssh-keygen", "-l", "-f", str(key_files[kind]) + ".pub").stdout.decode()
    assert signer.fingerprint in printed


@needs_ssh_keygen
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_we_accept_the_signature_of_ssh_keygen(
    tmp_path: Path, key_files: dict[str, Path], kind: str, hash_name: str
) -> None:
    file = tmp_path / "message"
    file.write_bytes(MESSAGE)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key_files[kind]), "-n", NAMESPACE]
    run(*command, "-O", f"hashalg={hash_name}", str(file))
    armored = file.with_name("message.sig").read_text()
    public = sshsig.verify(MESSAGE, armored, NAMESPACE)
    written = key_files[kind].with_name(kind + ".pub").read_text()
    assert written.startswith(public.line)
    with pytest.raises(SignatureError, match="does not match"):
        sshsig.verify(MESSAGE + b" ", armored, NAMESPACE)
    with pytest.raises(SignatureError, match="purpose"):
        sshsig.verify(MESSAGE, armored, "file")


@needs_ssh_keygen
def test_ed25519_signature_is_byte_for_byte_that_of_ssh_keygen(
    tmp_path: Path, key_files: dict[str, Path]
) -> None:
    file = tmp_path / "message"
    file.write_bytes(MESSAGE)
    run("ssh-keygen", "-q", "-Y", "sign", "-f", str(key_files["ed25519"]), "-n", "n", str(file))
    ours = keys.load_signer(key_files["ed25519"]).sign(MESSAGE, "n")
    assert ours == file.with_name("message.sig").read_text()


def test_the_sshsig_library_accepts_our_signature() -> None:
    library = pytest.importorskip("sshsig", reason="the sshsig package is not installed")
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())):
        armored = sshsig.sign(MESSAGE, NAMESPACE, key)
        line = sshsig.public_key(key).line
        if not line.startswith("ssh-ed25519"):
            continue
        public = library.ssh_public_key.PublicKey.from_openssh_str(line)
        library.sshsig.verify(MESSAGE, armored, [public], namespace=NAMESPACE)
        with pytest.raises(library.sshsig.InvalidSignature):
            library.sshsig.verify(b"other", armored, [public], namespace=NAMESPACE)


# --- keys in an agent, with a passphrase, made by the kit -------------------------------------


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is not installed")
    socket = tmp_path / "agent"
    process = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(500):
        if socket.exists():
            break
        subprocess.run(["sleep", "0.01"], check=True)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    yield
    process.terminate()
    process.wait()


@needs_ssh_keygen
def test_a_key_in_the_agent_signs_by_its_public_half(
    tmp_path: Path, agent: None, key_files: dict[str, Path]
) -> None:
    run("ssh-add", "-q", str(key_files["ed25519"]))
    public = tmp_path / "only.pub"
    public.write_text(key_files["ed25519"].with_name("ed25519.pub").read_text())
    signer = keys.load_signer(public)
    assert signer.origin == "ssh-keygen"
    armored = signer.sign(MESSAGE, NAMESPACE)
    assert sshsig.verify(MESSAGE, armored, NAMESPACE).line == signer.public_key
    run("ssh-add", "-q", "-D")
    with pytest.raises(SignatureError, match="did not sign"):
        signer.sign(MESSAGE, NAMESPACE)


@needs_ssh_keygen
def test_a_key_with_a_passphrase_signs_through_ssh_keygen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "locked"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path))
    helper = tmp_path / "ask"
    helper.write_text("#!/bin/sh\necho secret\n")
    helper.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(helper))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    signer = keys.load_signer(path)
    assert signer.origin == "ssh-keygen"
    armored = signer.sign(MESSAGE, NAMESPACE)
    assert sshsig.verify(MESSAGE, armored, NAMESPACE).line == signer.public_key


def test_without_a_key_one_is_made_once_and_said_so(tmp_path: Path) -> None:
    first = keys.load_or_create_signer(tmp_path / "keys")
    again = keys.load_or_create_signer(tmp_path / "keys")
    assert (first.created, again.created) == (True, False)
    assert first.origin == again.origin == "made"
    assert first.public_key == again.public_key
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.path.parent.stat().st_mode) & 0o077 == 0 or os.getuid() == 0
    assert not keys.make_key(first.path)
    assert [path.name for path in sorted(first.path.parent.iterdir())] == [
        keys.MADE_NAME,
        keys.MADE_NAME + ".pub",
    ]


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys.make_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(PrerequisiteError, match="read by others"):
        keys.load_signer(tmp_path / "key")


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN OPENSSH PRIVATE KEY-----\nxx\n"])
def test_what_is_no_key_is_said_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(SignatureError, match="no private key"):
        keys.load_signer(tmp_path / "key")
    with pytest.raises(PrerequisiteError, match="does not exist"):
        keys.load_signer(tmp_path / "missing")


@needs_ssh_keygen
def test_revoked_keys_are_listed_as_ssh_keygen_reads_them(tmp_path: Path) -> None:
    signer = keys.load_or_create_signer(tmp_path)
    path = keys.revoke(tmp_path, signer.public_key, "lost\nlaptop")
    keys.revoke(tmp_path, signer.public_key)
    assert keys.revoked_keys(path) == {signer.public_key}
    assert keys.revoked_keys(tmp_path / "none") == frozenset()
    armored = signer.sign(MESSAGE)
    (tmp_path / "allowed").write_text(f"alice {signer.public_key}\n")
    (tmp_path / "sig").write_text(armored)
    command = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "allowed"), "-I", "alice"]
    command += ["-n", NAMESPACE, "-s", str(tmp_path / "sig")]
    assert run(*command, stdin=MESSAGE, ok=False).returncode == 0
    assert run(*command, "-r", str(path), stdin=MESSAGE, ok=False).returncode != 0


# --- what must be refused ----------------------------------------------------------------------


def wire(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def armor(blob: bytes) -> str:
    text = base64.b64encode(blob).decode()
    return f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n"


def dearmor(armored: str) -> bytes:
    return base64.b64decode("".join(armored.splitlines()[1:-1]))


def mpint(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


def test_rsa_with_sha_1_is_refused() -> None:
    key = rsa.generate_private_key(65537, 2048)
    public = sshsig.public_key(key).blob
    to_sign = b"SSHSIG" + wire(NAMESPACE.encode(), b"", b"sha512", hashlib.sha512(MESSAGE).digest())
    raw = key.sign(to_sign, padding.PKCS1v15(), hashes.SHA1())
    blob = b"SSHSIG" + struct.pack(">I", 1)
    blob += wire(public, NAMESPACE.encode(), b"", b"sha512", wire(b"ssh-rsa", raw))
    with pytest.raises(SignatureError, match="SHA-1"):
        sshsig.verify(MESSAGE, armor(blob), NAMESPACE)


def test_hash_sha_1_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    to_sign = b"SSHSIG" + wire(NAMESPACE.encode(), b"", b"sha1", hashlib.sha1(MESSAGE).digest())
    inner = wire(b"ssh-ed25519", key.sign(to_sign))
    blob = b"SSHSIG" + struct.pack(">I", 1)
    blob += wire(sshsig.public_key(key).blob, NAMESPACE.encode(), b"", b"sha1", inner)
    with pytest.raises(SignatureError, match="hash is not accepted"):
        sshsig.verify(MESSAGE, armor(blob), NAMESPACE)


def test_small_rsa_and_dsa_keys_are_refused() -> None:
    small = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    blob = wire(b"ssh-rsa", mpint(small.e), mpint(small.n))
    with pytest.raises(SignatureError, match="size"):
        sshsig.PublicKey.from_blob(blob)
    numbers = dsa.generate_private_key(1024).public_key().public_numbers()
    parts = numbers.parameter_numbers
    blob = wire(b"ssh-dss", *(mpint(n) for n in (parts.p, parts.q, parts.g, numbers.y)))
    with pytest.raises(SignatureError, match="kind of key is not accepted"):
        sshsig.PublicKey.from_blob(blob)


@pytest.mark.parametrize("touched", [True, False])
@pytest.mark.parametrize("curve", [False, True])
def test_security_key_signatures_need_the_owners_touch(touched: bool, curve: bool) -> None:
    application = b"ssh:"
    flags = bytes([1 if touched else 0])
    to_sign = b"SSHSIG" + wire(NAMESPACE.encode(), b"", b"sha512", hashlib.sha512(MESSAGE).digest())
    data = hashlib.sha256(application).digest() + flags + b"\0\0\0\7"
    data += hashlib.sha256(to_sign).digest()
    if curve:
        ecdsa = ec.generate_private_key(ec.SECP256R1())
        point = ecdsa.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        kind = b"sk-ecdsa-sha2-nistp256@openssh.com"
        public = wire(kind, b"nistp256", point, application)
        r, s = decode_dss_signature(ecdsa.sign(data, ec.ECDSA(hashes.SHA256())))
        raw = wire(mpint(r), mpint(s))
    else:
        key = ed25519.Ed25519PrivateKey.generate()
        kind = b"sk-ssh-ed25519@openssh.com"
        public = wire(kind, key.public_key().public_bytes_raw(), application)
        raw = key.sign(data)
    blob = b"SSHSIG" + struct.pack(">I", 1)
    inner = wire(kind, raw) + flags + b"\0\0\0\7"
    armored = armor(blob + wire(public, NAMESPACE.encode(), b"", b"sha512", inner))
    if touched:
        assert sshsig.verify(MESSAGE, armored, NAMESPACE).blob == public
    else:
        with pytest.raises(SignatureError, match="touch"):
            sshsig.verify(MESSAGE, armored, NAMESPACE)


def test_a_signature_has_one_form_only() -> None:
    armored = sshsig.sign(MESSAGE, NAMESPACE, ed25519.Ed25519PrivateKey.generate())
    blob = dearmor(armored)
    for changed in (
        armor(blob + b"\0"),
        armor(blob[:-1]),
        armor(b"SSHSIX" + blob[6:]),
        armor(blob[:6] + struct.pack(">I", 2) + blob[10:]),
        armored.replace("SSH SIGNATURE", "PGP SIGNATURE"),
        armored.replace("\n", "!\n", 2),
        armored + "more",
        "",
        "x" * 100_000,
        # lengths that point past the end
        armor(blob[:10] + b"\xff\xff\xff\xff" + blob[14:]),
    ):
        with pytest.raises(SignatureError):
            sshsig.verify(MESSAGE, changed, NAMESPACE)


def test_another_key_in_the_blob_does_not_match() -> None:
    first, second = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))
    blob = dearmor(sshsig.sign(MESSAGE, NAMESPACE, first))
    swapped = blob.replace(sshsig.public_key(first).blob, sshsig.public_key(second).blob)
    with pytest.raises(SignatureError, match="does not match"):
        sshsig.verify(MESSAGE, armor(swapped), NAMESPACE)


FUZZED = dearmor(
    sshsig.sign(MESSAGE, NAMESPACE, ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32))
)


@given(at=st.integers(0, len(FUZZED)), cut=st.integers(0, 40), data=st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_blob_is_accepted_only_unchanged(at: int, cut: int, data: bytes) -> None:
    changed = FUZZED[:at] + data + FUZZED[at + cut :]
    try:
        sshsig.verify(MESSAGE, armor(changed), NAMESPACE)
    except SignatureError:
        return
    # `reserved` and the rest are signed; nothing else may be accepted.
    assert changed == FUZZED


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_is_no_public_key_or_one_never_a_traceback(text: str) -> None:
    for line in (
        text,
        f"ssh-ed25519 {text}",
        f"ssh-rsa {base64.b64encode(text.encode()).decode()}",
    ):
        try:
            sshsig.PublicKey.parse(line)
        except SignatureError:
            continue

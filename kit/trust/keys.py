"""Keys that sign results: from a file, an agent or a security key, or made by the kit.

A key that can be read without a passphrase signs in this process. Every other (a passphrase, an
agent, a security key) signs through `ssh-keygen -Y sign`, which asks its owner. With no key given,
one is made in the work folder; `Signer.origin` says so and results repeat it, because such a key
belongs to nobody yet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from kit.errors import PrerequisiteError, SignatureError
from kit.trust import sshsig

MADE_NAME = "n4090_ed25519"
REVOKED_NAME = "revoked_keys"

Origin = Literal["made", "file", "ssh-keygen"]


@dataclass(frozen=True)
class Signer:
    """Signs messages with one key.

    Attributes:
        public_key: `<kind> <base64>`, without the comment (it often holds a host name).
        created: This call made the key.
        origin: `made` by the kit (now or earlier), a `file`, or `ssh-keygen` (agent, security key,
            passphrase).
        path: The key's file.
    """

    public_key: str
    created: bool
    origin: Origin
    path: Path
    _private: sshsig.PrivateKey | None = None

    @property
    def private_key(self) -> sshsig.PrivateKey | None:
        """The key itself, when it is in this process."""
        return self._private

    @property
    def fingerprint(self) -> str:
        return sshsig.PublicKey.parse(self.public_key).fingerprint

    def sign(self, message: bytes, namespace: str = sshsig.RESULT_NAMESPACE) -> str:
        """An armored SSHSIG of `message`.

        Raises:
            SignatureError: The agent, the security key or its owner refused.
        """
        if self._private is not None:
            return sshsig.sign(message, namespace, self._private)
        armored = _sign_with_ssh_keygen(message, namespace, self.path)
        if sshsig.verify(message, armored, namespace).line != self.public_key:
            raise SignatureError("ssh-keygen signed with another key", expected=self.public_key)
        return armored


def load_or_create_signer(keys_dir: Path, key: Path | None = None) -> Signer:
    """The signer of `key`, or of the kit's own key in `keys_dir`, made when there is none.

    Args:
        key: A private key in any form OpenSSH reads, or the `.pub` file of one in an agent.

    Raises:
        PrerequisiteError: `key` cannot be read, or needs `ssh-keygen` and there is none.
        SignatureError: Its kind is not accepted.
    """
    if key is not None:
        return load_signer(key)
    made = keys_dir / MADE_NAME
    created = False
    if not made.exists():
        created = make_key(made)
    signer = load_signer(made)
    return Signer(signer.public_key, created, "made", made, signer.private_key)


def make_key(path: Path, comment: str = "n4090-kit") -> bool:
    """Writes a new Ed25519 key (mode 0600) and its `.pub`; False when one was there first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    private = ed25519.Ed25519PrivateKey.generate()
    encoded = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    # Whole under its final name or not there at all; `link` refuses to replace a key.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        Path(temporary).unlink()
    public = path.with_name(path.name + ".pub")
    public.write_text(f"{sshsig.public_key(private).line} {comment}\n")
    return True


def load_signer(path: Path) -> Signer:
    """The signer of the key file `path` (private, or `.pub` with the private half in an agent)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise PrerequisiteError(
            f"key `{path.name}` does not exist",
            hint="make one with `n4090-kit keys make`, or name a private key file with --key",
        ) from error
    except OSError as error:
        raise PrerequisiteError(
            f"key `{path.name}` cannot be read: {error.strerror}",
            hint="name another private key file with --key",
        ) from error
    if _is_public(data):
        line = sshsig.PublicKey.parse(data.decode("ascii", "replace")).line
        return Signer(line, False, "ssh-keygen", path)
    _refuse_open_permissions(path)
    private = _load_private(data)
    if private is not None:
        return Signer(sshsig.public_key(private).line, False, "file", path, private)
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        raise PrerequisiteError(
            f"key `{path.name}` needs its owner, and `{public.name}` is not beside it",
            hint=f"write it with `ssh-keygen -y -f {path.name} > {public.name}`",
        )
    line = sshsig.PublicKey.parse(public.read_text(errors="replace")).line
    return Signer(line, False, "ssh-keygen", path)


def _is_public(data: bytes) -> bool:
    return data.lstrip().startswith((b"ssh-", b"ecdsa-", b"sk-"))


def _refuse_open_permissions(path: Path) -> None:
    facts = path.stat()
    if facts.st_uid == os.getuid() and facts.st_mode & 0o077:
        raise PrerequisiteError(
            f"key `{path.name}` can be read by others (mode {facts.st_mode & 0o777:04o})",
            hint=f"run `chmod 600 {path.name}`",
        )


def _load_private(data: bytes) -> sshsig.PrivateKey | None:
    """The private key in `data`; None when it is one that only `ssh-keygen` can use."""
    loaders = (serialization.load_ssh_private_key, serialization.load_pem_private_key)
    for load in loaders:
        try:
            loaded = load(data, password=None)
        except TypeError:  # it has a passphrase
            return None
        except UnsupportedAlgorithm:  # a security key
            return None
        except ValueError:
            continue
        if isinstance(
            loaded, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        ):
            return loaded
        raise SignatureError(
            f"a key of type {type(loaded).__name__} cannot make SSH signatures",
            hint="Use an Ed25519, ECDSA or RSA key.",
        )
    raise SignatureError("no private key that OpenSSH reads")


def _sign_with_ssh_keygen(message: bytes, namespace: str, key: Path) -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise PrerequisiteError(
            "this key signs through `ssh-keygen`, which is not installed",
            hint="install the OpenSSH client, or use a key file without a passphrase",
        )
    with tempfile.TemporaryDirectory(prefix="n4090-sign-") as folder:
        blob = Path(folder) / "message"
        blob.write_bytes(message)
        # Its questions (passphrase, touch) go to the terminal by themselves.
        done = subprocess.run(
            [program, "-Y", "sign", "-f", str(key), "-n", namespace, str(blob)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        signature = blob.with_name("message.sig")
        if done.returncode != 0 or not signature.exists():
            reason = (done.stderr or "").strip().splitlines()
            raise SignatureError(
                "ssh-keygen did not sign",
                hint="is the key in the agent (`ssh-add -l`) or its device plugged in?",
                reason=reason[-1] if reason else "",
            )
        return signature.read_text(encoding="utf-8")


def revoke(keys_dir: Path, public_key: str, reason: str = "") -> Path:
    """Adds `public_key` to the folder's list of revoked keys.

    The list is one public key a line, which `ssh-keygen -Y verify -r` reads as it is.
    """
    key = sshsig.PublicKey.parse(public_key)
    path = keys_dir / REVOKED_NAME
    if key.line in revoked_keys(path):
        return path
    keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    day = datetime.now(UTC).date().isoformat()
    note = " ".join(reason.split())[:200]
    with path.open("a") as file:
        file.write(f"# revoked {day}{': ' + note if note else ''}\n{key.line}\n")
    return path


class Revoked(NamedTuple):
    """A list of revoked keys. `problems`: sentences about its lines that are not keys."""

    keys: frozenset[str]
    problems: tuple[str, ...]


def read_revoked(path: Path) -> Revoked:
    """The keys (`<kind> <base64>`) in a list of revoked ones; none when there is no list.

    A byte-order mark, blanks before a comment and a comment after a key are allowed. A line that is
    not a key is named and revokes nothing; the other lines still hold.
    """
    keys: set[str] = set()
    problems: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            try:
                keys.add(sshsig.PublicKey.parse(text).line)
            except SignatureError as error:
                problems.append(f"{path.name}, line {number} revokes nothing: {error.message}")
    return Revoked(frozenset(keys), tuple(problems))


def revoked_keys(path: Path) -> frozenset[str]:
    """The keys in a list of revoked ones; see `read_revoked`."""
    return read_revoked(path).keys

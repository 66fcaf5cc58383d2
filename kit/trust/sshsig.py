"""OpenSSH signatures (SSHSIG): signed here, checked by `ssh-keygen -Y verify`, and the reverse.

Accepted: Ed25519, ECDSA on the NIST curves, RSA of 2048 bits or more with SHA-2, and the first two
on security keys (FIDO). Everything with SHA-1 and every certificate is refused, and a blob must be
exactly what an OpenSSH program writes: no bytes too many, no integer with leading zeros.

References:
    OpenSSH PROTOCOL.sshsig and PROTOCOL.u2f; RFC 4253, 5656, 8332, 8709
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from kit.errors import SignatureError

RESULT_NAMESPACE = "result@n4090-kit"
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 16384  # checking costs time
MAX_ARMOR_BYTES = 64 * 1024

_MAGIC = b"SSHSIG"
_BEGIN = "-----BEGIN SSH SIGNATURE-----"
_END = "-----END SSH SIGNATURE-----"
_HASHES = {"sha256": hashlib.sha256, "sha512": hashlib.sha512}
_CURVES: dict[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    "nistp256": (ec.SECP256R1(), hashes.SHA256()),
    "nistp384": (ec.SECP384R1(), hashes.SHA384()),
    "nistp521": (ec.SECP521R1(), hashes.SHA512()),
}
_RSA_HASHES: dict[str, hashes.HashAlgorithm] = {
    "rsa-sha2-256": hashes.SHA256(),
    "rsa-sha2-512": hashes.SHA512(),
}
_USER_PRESENT = 0x01
# The y coordinates of edwards25519's eight points of small order (both signs of x). A signature by
# such a key can be made for every message without any secret.
_FIELD = 2**255 - 19
_ORDER_EIGHT_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD - 1, _ORDER_EIGHT_Y, _FIELD - _ORDER_EIGHT_Y})

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class PublicKey:
    """A public key in OpenSSH's wire form."""

    kind: str
    blob: bytes

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """The key in an authorized-keys line (`<kind> <base64> [comment]`)."""
        fields = line.split()
        if len(fields) < 2:
            raise SignatureError("no OpenSSH public key", found=line[:80])
        return cls.from_blob(_base64(fields[1], "public key"), expected_kind=fields[0])

    @classmethod
    def from_blob(cls, blob: bytes, expected_kind: str | None = None) -> PublicKey:
        kind = _Reader(blob, "public key").text()
        if expected_kind is not None and kind != expected_kind:
            raise SignatureError(
                "public key is of another kind than its line says",
                expected=expected_kind,
                found=kind,
            )
        _load_public(blob)
        return cls(kind, blob)

    @property
    def line(self) -> str:
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"

    @property
    def fingerprint(self) -> str:
        """`SHA256:…` as `ssh-keygen -l` prints it."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True)
class Signature:
    """What an armored SSHSIG holds."""

    public_key: PublicKey
    namespace: str
    reserved: bytes
    hash_name: str
    kind: str
    blob: bytes

    def signed_bytes(self, message: bytes) -> bytes:
        return _to_be_signed(message, self.namespace, self.hash_name, self.reserved)


def sign(message: bytes, namespace: str, key: PrivateKey) -> str:
    """An armored signature of `message`, hashed with SHA-512 as `ssh-keygen -Y sign` does."""
    public = public_key(key)
    data = _to_be_signed(message, namespace, "sha512", b"")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        kind, raw = "ssh-ed25519", key.sign(data)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        kind = public.kind
        _, algorithm = _CURVES[kind.removeprefix("ecdsa-sha2-")]
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(algorithm)))
        raw = _mpint(r) + _mpint(s)
    else:
        kind = "rsa-sha2-512"
        raw = key.sign(data, padding.PKCS1v15(), hashes.SHA512())
    blob = (
        _MAGIC
        + struct.pack(">I", 1)
        + _string(public.blob)
        + _string(namespace.encode())
        + _string(b"")
        + _string(b"sha512")
        + _string(_string(kind.encode()) + _string(raw))
    )
    text = base64.b64encode(blob).decode()
    lines = [text[i : i + 70] for i in range(0, len(text), 70)]
    return "\n".join([_BEGIN, *lines, _END]) + "\n"


def public_key(key: PrivateKey) -> PublicKey:
    """The public half of `key`.

    Raises:
        SignatureError: Its kind is not accepted.
    """
    try:
        encoded = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    except (ValueError, UnsupportedAlgorithm, AttributeError) as error:
        raise SignatureError(f"this kind of key cannot sign here: {error}") from error
    return PublicKey.parse(encoded.decode())


def parse(armored: str) -> Signature:
    """The signature in an armored text.

    Raises:
        SignatureError: It is not one, or of a version, hash or kind that is not accepted.
    """
    if len(armored) > MAX_ARMOR_BYTES:
        raise SignatureError("signature is too long", limit=MAX_ARMOR_BYTES)
    text = armored.strip("\r\n ")
    if not text.startswith(_BEGIN) or not text.endswith(_END):
        raise SignatureError("no armored SSH signature")
    body = text[len(_BEGIN) : -len(_END)]
    reader = _Reader(_base64("".join(body.split()), "signature"), "signature")
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise SignatureError("no SSH signature: wrong first bytes")
    version = reader.uint32()
    if version != 1:
        raise SignatureError("SSH signature of an unknown version", expected=1, found=version)
    key = PublicKey.from_blob(reader.string())
    namespace = reader.text()
    reserved = reader.string()
    hash_name = reader.text()
    inner = _Reader(reader.string(), "signature")
    reader.end()
    if not namespace:
        raise SignatureError("SSH signature without a namespace")
    if hash_name not in _HASHES:
        raise SignatureError("hash is not accepted", expected="sha256 or sha512", found=hash_name)
    kind = inner.text()
    expected = ("rsa-sha2-256", "rsa-sha2-512") if key.kind == "ssh-rsa" else (key.kind,)
    if kind not in expected:
        raise SignatureError(
            "signature of a kind that its key does not make or that uses SHA-1",
            expected=" or ".join(expected),
            found=kind,
        )
    return Signature(key, namespace, reserved, hash_name, kind, inner.rest())


def verify(message: bytes, armored: str, namespace: str) -> PublicKey:
    """The key that signed `message` in this namespace.

    Raises:
        SignatureError: The signature cannot be read, is for another namespace, or does not match.
    """
    signature = parse(armored)
    if signature.namespace != namespace:
        raise SignatureError(
            "signature is for another purpose (namespace)",
            expected=namespace,
            found=signature.namespace,
        )
    try:
        _check(signature, signature.signed_bytes(message))
    except InvalidSignature:
        raise SignatureError(
            "signature does not match the signed bytes",
            key=signature.public_key.fingerprint,
        ) from None
    return signature.public_key


def _check(signature: Signature, data: bytes) -> None:
    kind = signature.kind
    security_key = kind.startswith("sk-")
    reader = _Reader(signature.blob, "signature")
    raw = reader.string()
    if security_key:
        flags, counter = reader.take(1), reader.take(4)
        if not flags[0] & _USER_PRESENT:
            raise SignatureError("security key signed without its owner's touch")
        application = _application(signature.public_key.blob)
        data = (
            hashlib.sha256(application).digest() + flags + counter + hashlib.sha256(data).digest()
        )
    reader.end()
    public = _load_public(signature.public_key.blob)
    if isinstance(public, ed25519.Ed25519PublicKey):
        public.verify(raw, data)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        numbers = _Reader(raw, "signature")
        r, s = numbers.mpint(), numbers.mpint()
        numbers.end()
        if not (r > 0 and s > 0):
            raise InvalidSignature
        _, algorithm = _CURVES[_curve_name(kind)]
        public.verify(encode_dss_signature(r, s), data, ec.ECDSA(algorithm))
    else:
        if len(raw) != (public.key_size + 7) // 8:
            raise InvalidSignature
        public.verify(raw, data, padding.PKCS1v15(), _RSA_HASHES[kind])


def _load_public(
    blob: bytes,
) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """The key in a wire blob.

    Raises:
        SignatureError: Its kind is not accepted, or the bytes are no key.
    """
    reader = _Reader(blob, "public key")
    kind = reader.text()
    try:
        if kind in ("ssh-ed25519", "sk-ssh-ed25519@openssh.com"):
            edwards = _edwards(reader.string())
            if kind.startswith("sk-"):
                reader.string()
            reader.end()
            return edwards
        if kind.startswith(("ecdsa-sha2-", "sk-ecdsa-sha2-")) and _curve_name(kind) in _CURVES:
            name = reader.text()
            if name != _curve_name(kind):
                raise SignatureError("public key names two curves", expected=kind, found=name)
            point = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[name][0], reader.string())
            if kind.startswith("sk-"):
                reader.string()
            reader.end()
            return point
        if kind == "ssh-rsa":
            exponent, modulus = reader.mpint(), reader.mpint()
            reader.end()
            bits = modulus.bit_length()
            if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
                raise SignatureError(
                    "RSA key of a size that is not accepted",
                    expected=f"{MIN_RSA_BITS} to {MAX_RSA_BITS} bits",
                    found=bits,
                )
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"public key cannot be read: {error}") from error
    raise SignatureError(
        "kind of key is not accepted",
        expected="Ed25519, ECDSA on a NIST curve, RSA, or a security key of the first two",
        found=kind,
    )


def _edwards(point: bytes) -> ed25519.Ed25519PublicKey:
    """An Ed25519 key of large order, in its one encoding."""
    key = ed25519.Ed25519PublicKey.from_public_bytes(point)
    y = int.from_bytes(point, "little") & (2**255 - 1)
    if y >= _FIELD:
        raise SignatureError("Ed25519 key is not in its canonical encoding")
    if y in _SMALL_ORDER_Y:
        raise SignatureError("Ed25519 key is a point of small order: anyone can sign with it")
    return key


def _curve_name(kind: str) -> str:
    return kind.removeprefix("sk-").removeprefix("ecdsa-sha2-").removesuffix("@openssh.com")


def _application(blob: bytes) -> bytes:
    reader = _Reader(blob, "public key")
    kind = reader.text()
    reader.string()
    if "ecdsa" in kind:
        reader.string()
    return reader.string()


def _to_be_signed(message: bytes, namespace: str, hash_name: str, reserved: bytes) -> bytes:
    return (
        _MAGIC
        + _string(namespace.encode())
        + _string(reserved)
        + _string(hash_name.encode())
        + _string(_HASHES[hash_name](message).digest())
    )


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _mpint(value: int) -> bytes:
    return _string(value.to_bytes(value.bit_length() // 8 + 1, "big") if value else b"")


def _base64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise SignatureError(f"{what} is not base64") from None
    if not hmac.compare_digest(base64.b64encode(data), text.encode("ascii")):
        raise SignatureError(f"{what} is base64 with bits too many")
    return data


class _Reader:
    """Takes SSH wire fields from bytes; what does not fit is a SignatureError."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise SignatureError(f"{self._what} is cut short")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def uint32(self) -> int:
        return int(struct.unpack(">I", self.take(4))[0])

    def string(self) -> bytes:
        return self.take(self.uint32())

    def text(self) -> str:
        try:
            return self.string().decode("ascii")
        except UnicodeDecodeError:
            raise SignatureError(f"{self._what} holds a name that is not ASCII") from None

    def mpint(self) -> int:
        data = self.string()
        if data and (data[0] & 0x80 or (data[0] == 0 and not (len(data) > 1 and data[1] & 0x80))):
            raise SignatureError(f"{self._what} holds an integer that is not in its shortest form")
        return int.from_bytes(data, "big")

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise SignatureError(f"{self._what} has bytes too many")

"""Allowed-signers files, read as `ssh-keygen -Y verify` reads them.

One line a signer: `principal[,principal…] [option[,option…]] key-type base64 [comment]`. Lines end
with a line feed and with nothing else, so no other separator can hide a second line in a comment.
Only the key in its own place counts: a key quoted in a comment names nobody. A key listed with
`cert-authority` signs certificates only, and the kit accepts no certificate.

References:
    ssh-keygen(1), ALLOWED SIGNERS; OpenSSH sshsig.c, parse_principals_key_and_options
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit.errors import SchemaError, SignatureError
from kit.trust.sshsig import PublicKey

MAX_BYTES = 4 * 2**20
_BLANKS = " \t"
_TIMES = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
# Key types that OpenSSH knows and whose signatures the kit refuses: their lines name nobody here.
_UNUSED_TYPE = re.compile(r"ssh-dss|ssh-xmss\S*|webauthn-sk-\S+|\S+-cert-v0[01](@openssh\.com)?")
_KEY_TYPE = re.compile(r"(ssh-(rsa|ed25519)|ecdsa-sha2-nistp\d+|sk-\S+@openssh\.com)")


@dataclass(frozen=True)
class AllowedSigner:
    """One line: whose key it is, and for what and when it counts.

    Attributes:
        principals: Patterns of names; one that begins with `!` excludes a name.
        key: None where the line's key is of a type that the kit does not accept.
        valid_after, valid_before: Seconds since 1970; None without a limit.
    """

    line: int
    principals: tuple[str, ...]
    key: PublicKey | None
    authority: bool = False
    namespaces: str | None = None
    valid_after: float | None = None
    valid_before: float | None = None

    def objection(self, namespace: str, now: float) -> str:
        """Why this line does not allow a signature in `namespace` at `now`; empty if it does."""
        if self.authority:
            return "the key is a certificate authority's and signs certificates only"
        if self.namespaces is not None and not matches(namespace, self.namespaces):
            return f"the key is not allowed for namespace {namespace}"
        if self.valid_after is not None and now < self.valid_after:
            return "the key is not valid yet"
        if self.valid_before is not None and now > self.valid_before:
            return "the key is not valid any more"
        return ""


def read_allowed_signers(path: Path) -> list[AllowedSigner]:
    """The signers in the file at `path`.

    Raises:
        SchemaError: It cannot be read, or a line of it is malformed; the line is named.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SchemaError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise SchemaError(f"{path.name} is larger than an allowed-signers file", limit=MAX_BYTES)
    found = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            signer = _parse(raw.decode("utf-8", "surrogateescape"), number)
        except (SignatureError, ValueError) as error:
            raise SchemaError(
                f"{path.name}, line {number}: {error}",
                hint="One line a signer: NAME[,NAME] [OPTIONS] KEY-TYPE BASE64 [COMMENT]; "
                "`man ssh-keygen`, ALLOWED SIGNERS.",
            ) from error
        if signer is not None:
            found.append(signer)
    return found


def matches(name: str, patterns: str) -> bool:
    """Whether a comma-separated OpenSSH pattern list (`*`, `?`, `!`) takes `name`."""
    taken = False
    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        expression = "".join(
            {"*": ".*", "?": "."}.get(character, re.escape(character))
            for character in pattern.removeprefix("!")
        )
        if re.fullmatch(expression, name, re.DOTALL):
            if negated:
                return False
            taken = True
    return taken


def _parse(line: str, number: int) -> AllowedSigner | None:
    """One line; None for a blank one and for a comment.

    Raises:
        SignatureError, ValueError: It is malformed.
    """
    rest = line.rstrip("\r").lstrip(_BLANKS)
    if not rest or rest.startswith("#"):
        return None
    if "\0" in rest:
        raise ValueError("holds a NUL byte")
    if rest.startswith("\ufeff"):
        raise ValueError("begins with a byte-order mark; save the file without one")
    names, rest = _word(rest)
    options = ""
    if not _is_key(rest):
        options, rest = _options(rest)
        if not _is_key(rest):
            raise ValueError("holds no public key after its names and options")
    fields = rest.split()
    key = None if _UNUSED_TYPE.fullmatch(fields[0]) else _key(fields)
    return AllowedSigner(number, tuple(names.split(",")), key, **_read_options(options))


def _key(fields: list[str]) -> PublicKey | None:
    try:
        return PublicKey.parse(" ".join(fields[:2]))
    except SignatureError as error:
        if "not accepted" in error.message or "small order" in error.message:
            return None  # too weak for the kit; no reason to refuse the other lines
        raise


def _is_key(text: str) -> bool:
    fields = text.split()
    return len(fields) >= 2 and bool(
        _KEY_TYPE.fullmatch(fields[0]) or _UNUSED_TYPE.fullmatch(fields[0])
    )


def _word(text: str) -> tuple[str, str]:
    """The first word, which may be quoted, and what follows it."""
    if text.startswith('"'):
        word, quote, rest = text[1:].partition('"')
        if not quote:
            raise ValueError("a quote is not closed")
        return word, rest.lstrip(_BLANKS)
    found = re.match(r"[^ \t]+", text)
    assert found is not None
    return found[0], text[found.end() :].lstrip(_BLANKS)


def _options(text: str) -> tuple[str, str]:
    """The options at the beginning of `text`, quotes respected, and what follows them."""
    quoted, index = False, 0
    while index < len(text) and (quoted or text[index] not in _BLANKS):
        if text[index : index + 2] == '\\"':
            index += 1
        elif text[index] == '"':
            quoted = not quoted
        index += 1
    if quoted:
        raise ValueError("a quote is not closed")
    return text[:index], text[index:].lstrip(_BLANKS)


def _read_options(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in _split_options(text):
        match name.lower():
            case "cert-authority" if value is None:
                found["authority"] = True
            case "namespaces" if value is not None and "namespaces" not in found:
                found["namespaces"] = value
            case "valid-after" if value is not None and "valid_after" not in found:
                found["valid_after"] = _time(value)
            case "valid-before" if value is not None and "valid_before" not in found:
                found["valid_before"] = _time(value)
            case _:
                raise ValueError(f"option {name[:40]!r} is unknown or given twice")
    after, before = found.get("valid_after"), found.get("valid_before")
    if after is not None and before is not None and before <= after:
        raise ValueError("valid-before is not after valid-after")
    return found


def _split_options(text: str) -> Iterator[tuple[str, str | None]]:
    pattern = re.compile(r'([A-Za-z-]+)(?:="((?:[^"\\]|\\.)*)")?(,|$)')
    at = 0
    while at < len(text):
        found = pattern.match(text, at)
        if found is None or (found[3] == "," and found.end() == len(text)):
            raise ValueError(f"options cannot be read from {text[at : at + 40]!r} on")
        yield found[1], None if found[2] is None else found[2].replace('\\"', '"')
        at = found.end()


def _time(text: str) -> float:
    """YYYYMMDD[HHMM[SS]][Z]: local time, or UTC with the Z."""
    digits = text.removesuffix("Z")
    if len(digits) not in _TIMES or not digits.isascii() or not digits.isdigit():
        raise ValueError(f"{text[:40]!r} is not a time as YYYYMMDD[HHMM[SS]][Z]")
    moment = datetime.strptime(digits, _TIMES[len(digits)])  # noqa: DTZ007
    return (moment.replace(tzinfo=UTC) if text.endswith("Z") else moment.astimezone()).timestamp()

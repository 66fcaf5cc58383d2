"""A run before it is chained and signed, so that it can be changed as its owner could change it.

Who owns the machine has the source, too: everything that the kit writes can be written by hand.
The tamper suite and benchmarks/verify.py make their runs with this.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kit import events as kit_events
from kit.errors import SchemaError
from kit.result import build_result
from kit.run_log import LOG_KIND, RunLog
from kit.telemetry_summary import TELEMETRY_KIND, Summary
from kit.trust import sshsig
from kit.trust.canonical import canonical_bytes
from kit.trust.chain import chain_seed, read_chain
from kit.trust.digest import FileDigest, manifest_digest, sha256_bytes
from kit.trust.sign import signed_bytes

Event = dict[str, Any]
# Nobody's key: anyone can compute it.
KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"honest").digest())


def chain_lines(records: list[dict[str, Any]], kind: str) -> bytes:
    """The records as a chain file: what a forger with the source can always write."""
    head, lines = chain_seed(kind), []
    for seq, record in enumerate(records):
        line = canonical_bytes({**record, "seq": seq, "prev": head})
        head = sha256_bytes(line)
        lines.append(line + b"\n")
    return b"".join(lines)


@dataclass
class Draft:
    """A run that can still be changed."""

    events: list[Event]
    telemetry: list[Event]
    recipe: str
    files: dict[str, bytes]
    key: Any = KEY
    namespace: str = sshsig.RESULT_NAMESPACE
    summary_edits: dict[str, Any] = field(default_factory=dict)
    result_edits: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)

    def copy(self) -> Draft:
        return copy.deepcopy(self, {id(self.key): self.key})

    def of(self, ev: str, stage: str | None = None) -> list[Event]:
        """Events of a kind; of one stage, when given."""
        found, current = [], None
        for event in self.events:
            if event["ev"] == "stage_start":
                current = event["data"]["stage"]
            if event["ev"] == ev and (stage is None or current == stage):
                found.append(event)
        return found

    def header(self) -> dict[str, Any]:
        data: dict[str, Any] = self.events[0]["data"]
        return data

    def fingerprints(self) -> list[dict[str, Any]]:
        return [event["data"]["fingerprint"] for event in self.of("fingerprint")]

    def write(self, folder: Path) -> Path:
        """Chains, builds, signs; returns the result's path."""
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(self.recipe)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        telemetry = chain_lines(self.telemetry, TELEMETRY_KIND)
        if self.telemetry:
            (folder / "telemetry.jsonl").write_bytes(telemetry)
        self._fill(telemetry)
        (folder / "events.jsonl").write_bytes(chain_lines(self.events, LOG_KIND))
        result = build_result(folder, self._readable_log(folder)).to_json()
        for edit in self.result_edits:
            edit(result)
        return write_signed(folder, result, self.key, self.namespace)

    def _readable_log(self, folder: Path) -> RunLog:
        """The log with the events that are none left out: a forger's result is built from it."""
        chain = read_chain(folder / "events.jsonl", LOG_KIND)
        readable = []
        for record in chain.records:
            with contextlib.suppress(SchemaError):
                readable.append(kit_events.Event.from_json(record))
        return RunLog.from_events(readable, chain)

    def _fill(self, telemetry: bytes) -> None:
        """Digests and sums that the supervisor takes from files."""
        for event in self.events:
            data = event["data"]
            if event["ev"] == "telemetry" and data.get("count") is None:
                summary = Summary()
                for record in self.telemetry:
                    summary.add(record)
                lines = telemetry.splitlines()
                event["data"] = {
                    **summary.to_json(),
                    "lost": 0,
                    "core_share": 0.001,
                    "head": sha256_bytes(lines[-1]) if lines else None,
                    "count": len(lines),
                    "bytes": len(telemetry),
                    **self.summary_edits,
                }
            elif event["ev"] == "artifacts" and "files" not in data:
                folder = data["folder"]
                names = data.pop("names", None)
                files = [
                    FileDigest(name.removeprefix(folder + "/"), len(content), sha256_bytes(content))
                    for name, content in sorted(self.files.items())
                    if name.startswith(folder + "/")
                    and (names is None or name.removeprefix(folder + "/") in names)
                ]
                data["digest"] = manifest_digest(files)
                data["files"] = [
                    {"path": f.path, "bytes": f.bytes, "sha256": f.digest} for f in files
                ]


def write_signed(
    folder: Path,
    result: dict[str, Any],
    key: Any = KEY,
    namespace: str = sshsig.RESULT_NAMESPACE,
) -> Path:
    """Writes result.json with one signature by `key`."""
    result = {**result, "signatures": []}
    result["signatures"] = [
        {
            "format": "sshsig",
            "namespace": namespace,
            "public_key": sshsig.public_key(key).line,
            "signature": sshsig.sign(signed_bytes(result), namespace, key),
        }
    ]
    path = folder / "result.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return path

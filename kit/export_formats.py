"""A result in other people's formats: DSSE with an in-toto statement, an MLPerf log.

Each is derived from a verified run folder and says so; the signed result stays the original.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

from kit.errors import PrerequisiteError
from kit.events import Eval, Event, RunStart, RunStop, Step
from kit.run_log import RunLog
from kit.trust.canonical import canonical_bytes
from kit.trust.keys import Signer

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://n4090-kit/result/v1"

Document = dict[str, Any]


def statement(result: Document) -> Document:
    """The in-toto statement: the checkpoint's files are its subjects, the result its predicate."""
    subjects = [
        {
            "name": f"{part['folder']}/{file['path']}",
            "digest": {"sha256": file["sha256"].removeprefix("sha256:")},
        }
        for part in result["checkpoint"].values()
        if part is not None
        for file in part["files"]
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": result,
    }


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What DSSE signs: type and payload with their lengths."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def dsse(result: Document, signer: Signer) -> Document:
    """A DSSE envelope of the result's statement.

    Raises:
        PrerequisiteError: The key signs only through `ssh-keygen`, which cannot make a DSSE
            signature.
    """
    key = signer.private_key
    if key is None:
        raise PrerequisiteError(
            "DSSE wants a bare signature, and this key signs only through ssh-keygen",
            hint="export with a key file that needs no passphrase; the result keeps its own",
        )
    payload = canonical_bytes(statement(result))
    message = pre_authentication(PAYLOAD_TYPE, payload)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = key.sign(message)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = hashes.SHA384() if key.curve.name == "secp384r1" else hashes.SHA256()
        raw = key.sign(message, ec.ECDSA(algorithm))
    else:
        raw = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": signer.fingerprint, "sig": base64.b64encode(raw).decode()}],
    }


def public_pem(signer: Signer) -> str:
    """The signer's public key in PEM, as DSSE's readers take it."""
    loaded = serialization.load_ssh_public_key(signer.public_key.encode())
    return loaded.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def mllog(folder: Path, result: Document, benchmark: str = "n4090") -> Iterator[str]:
    """The run as MLPerf's `:::MLLOG` lines, in the vocabulary of its training rules 5.1.

    Args:
        benchmark: MLPerf's checker only knows its own names; ours is not among them.
    """
    log = RunLog.read(folder)
    batch = 0

    def line(event: Event[Any], key: str, value: Any, kind: str, **metadata: Any) -> str:
        body = {
            "namespace": "",
            "time_ms": event.wall_ms,
            "event_type": kind,
            "key": key,
            "value": value,
            "metadata": {"file": "events.jsonl", "lineno": event.line, **metadata},
        }
        return ":::MLLOG " + json.dumps(body)

    point, start, stop = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"
    header, samples = log.events[0], 0
    gpu = ((result["hardware"]["before"] or {}).get("class") or {}).get("name", "none")
    yield line(header, "submission_org", result["submitter"]["public_key"][-16:], point)
    yield line(header, "submission_platform", f"1x{gpu}", point)
    yield line(header, "submission_division", "open", point)
    yield line(header, "submission_status", "research", point)
    yield line(header, "submission_benchmark", benchmark, point)
    yield line(header, "seed", result["seed"]["value"], point)
    yield line(header, "cache_clear", True, point)
    yield line(header, "init_start", None, start)
    steps = log.of("pretrain", Step)
    if len(steps) > 1:
        batch = steps[1].data.tokens - steps[0].data.tokens
    begun = stopped = False
    for event in log.events:
        data = event.data
        if isinstance(data, RunStart):
            yield line(event, "init_stop", None, stop)
            yield line(event, "run_start", None, start)
            yield line(event, "global_batch_size", batch, point)
            yield line(event, "train_samples", result["training"]["tokens"], point)
            yield line(event, "eval_samples", _eval_samples(result), point)
            yield line(event, "block_start", None, start, samples_count=0, epoch_num=0)
            begun = True
        elif isinstance(data, Step):
            samples = data.tokens
        elif isinstance(data, Eval) and data.name == "val_bpb" and begun and not stopped:
            where = {"samples_count": samples, "epoch_num": samples}
            yield line(event, "eval_start", None, start, **where)
            yield line(event, "eval_accuracy", data.value, point, **where)
            yield line(event, "eval_stop", None, stop, **where)
        elif isinstance(data, RunStop):
            where = {"samples_count": samples, "first_epoch_num": 0}
            yield line(event, "block_stop", None, stop, **where)
            status = "success" if data.status == "complete" else "aborted"
            yield line(event, "run_stop", None, stop, status=status, **where)
            stopped = True


def _eval_samples(result: Document) -> int:
    core = result["quality"]["core"]
    return sum(task["n"] for task in core["tasks"]) if core else 0

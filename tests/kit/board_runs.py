"""Runs of different people on different cards, for boards to be filled with."""

import copy
import functools
import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tamper
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.synthetic import core_document

from kit.board.layout import REPRODUCTION_NAMESPACE, Layout, SubmissionPath
from kit.board.rescore import CannotScore, Scored
from kit.board.sample import compare_answers, draw_items
from kit.board.statistics import figures_of
from kit.schemas import problems
from kit.trust import sshsig
from kit.trust.keys import Signer
from kit.trust.sign import result_id, sign_document


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def signer_of(name: str) -> Signer:
    key = key_of(name)
    return Signer(sshsig.public_key(key).line, False, "file", Path(name), key)


def _number(*parts: object) -> int:
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


@functools.cache
def day(seed: int = 1) -> tamper.Draft:
    """The day that runs of `gpu_run` are copies of; one seed gives the same noise."""
    return tamper.gpu_run(seed=seed, steps=24)


def gpu_run(
    folder: Path,
    who: str = "alice",
    *,
    seed: int = 11,
    bpb: float = 0.8412,
    card: str = "",
    recipe: str | None = None,
    notes: tuple[str, ...] = (),
    days: float = 0,
    changes: Any = None,
) -> Path:
    """A signed, consistent run of `who` on their own 4090; returns its folder.

    `days` moves it to a later day. `changes` is called with the draft before it is chained and
    signed.
    """
    # Noise of its own: two runs with the same power samples are copies.
    draft = day(1 + _number(who, seed) % 100_000).copy()
    card_hash = "sha256:" + hashlib.sha256((card or f"card of {who}").encode()).hexdigest()
    rng = random.Random(_number(who, seed))
    header = draft.header()
    header["signer"]["public_key"] = sshsig.public_key(key_of(who)).line
    header["seed"]["value"] = seed
    for fingerprint in draft.fingerprints():
        fingerprint["gpus"][0]["uuid_hash"] = card_hash
    for record in draft.telemetry:
        if "gpu_uuid_hash" in record:
            record["gpu_uuid_hash"] = card_hash
        if "load" in record:
            record["load"] = round(rng.uniform(1, 3), 2)
    for name in draft.files:
        if name.endswith(".safetensors"):
            draft.files[name] = tamper.safetensors(_number(name, who, seed))
    tamper.score(draft, core_document(rng))
    chat = json.loads(draft.files["eval/chat.json"])
    for task in chat["tasks"].values():
        rng.shuffle(task["outcomes"])
    draft.files["eval/chat.json"] = json.dumps(chat).encode()
    for event in draft.of("step"):
        event["data"]["loss"] = round(event["data"]["loss"] + rng.gauss(0, 0.02), 6)
    draft.of("eval", "pretrain")[-1]["data"]["value"] = bpb
    for text in notes:
        place = draft.events.index(draft.of("memory")[0])
        note = {**copy.deepcopy(draft.events[place]), "ev": "note", "data": {"text": text}}
        draft.events.insert(place, note)
    if recipe is not None:
        draft.recipe = recipe
        digest = "sha256:" + hashlib.sha256(recipe.encode()).hexdigest()
        header["recipe"] = {**header["recipe"], "digest": digest}
    draft.key = key_of(who)
    for record in (*draft.events, *draft.telemetry):
        if "wall_ms" in record:
            record["wall_ms"] += round(days * 86_400_000)
    if changes is not None:
        changes(draft)
    draft.write(folder)
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
    return document


def figures(run: Path) -> dict[str, Any]:
    """A run's figures as statements compare them."""
    return figures_of(result_of(run))


def reproduction(claim: Path, own: Path | None, who: str, **changes: Any) -> dict[str, Any]:
    """A signed statement of `who` about `claim`: from a run of their own, or a new scoring."""
    of, found = result_of(claim), result_of(own or claim)
    document = {
        "schema_version": 1,
        "kind": "run" if own else "check",
        "of": {
            "result_id": result_id(of),
            "recipe_digest": of["recipe"]["digest"],
            "image": of["image"]["digest"],
        },
        "by": {"name": who, "public_key": signer_of(who).public_key},
        "at": "2026-10-01T00:00:00Z",
        "kit": {"version": "0.1.0", "code": None},
        "result_id": result_id(found) if own else None,
        "claimed": figures_of(of),
        "found": figures_of(found),
        "checks": [
            {
                "name": "val_bpb",
                "status": "pass",
                "message": "fine",
                "claimed": 1,
                "found": 1,
                "limit": 0.1,
            }
        ],
        "verdict": "confirmed",
        "notes": [],
        **changes,
    }
    signer = signer_of(who)
    signed = sign_document(document, signer, REPRODUCTION_NAMESPACE)
    assert not problems(signed, "reproduction")
    return signed


@dataclass(frozen=True)
class AnswersScorer:
    """Scores rows without their weights: the answers are the submitted ones, or all turned.

    Args:
        turned: Rows whose weights answer otherwise.
        broken: Rows whose weights cannot be scored.
    """

    root: Path
    turned: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    items: int = 200

    def score(self, path: SubmissionPath, seed: str) -> Scored:
        if path.result_id in self.broken:
            raise CannotScore("its weights are of another shape")
        file = Layout(self.root).submission(path) / "eval" / "core.json"
        tasks = json.loads(file.read_bytes())["tasks"]
        stated = {task["label"]: task["outcomes"] for task in tasks}
        drawn = draw_items(seed, {task: len(text) for task, text in stated.items()}, self.items)
        found = {
            task: "".join(self._answer(path, stated[task][place]) for place in places)
            for task, places in drawn.items()
        }
        baselines = {task["label"]: task["baseline"] for task in tasks}
        return Scored(found, compare_answers(stated, found, drawn, baselines), 10)

    def _answer(self, path: SubmissionPath, stated: str) -> str:
        return stated if path.result_id not in self.turned else "10"[int(stated)]


def account(who: str, *, created: str = "2020-01-01T00:00:00Z", **changes: Any) -> dict[str, Any]:
    """What the Hub would show of the account of `who`."""
    keys = [signer_of(who).public_key]
    return {"service": "hf", "user": who, "created_at": created, "keys": keys, **changes}

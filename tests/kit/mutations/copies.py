"""V25: the run of somebody else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tamper
from tamper import Draft, gpu_run

from kit.verify import Options
from mutations.registry import mutation
from mutations.signature import HONEST_LINE, OTHER_LINE


def copy_mutation(name: str, change: Callable[[Draft, Draft], Any], **other: Any) -> None:
    """`change` gets the run and another row, of another seed, key and day."""

    def options(folder: Path) -> Options:
        return Options(against=(folder.with_name(folder.name + "-board"),))

    def write_row(folder: Path) -> None:
        draft = row()
        draft.write(folder.with_name(folder.name + "-board") / "row")

    def row() -> Draft:
        draft = gpu_run(seed=88, steps=90, **other)
        draft.header()["seed"]["value"] = 88
        draft.header()["signer"]["public_key"] = OTHER_LINE
        draft.key = tamper.OTHER_KEY
        draft.header()["run"] = "d20-20260920-120000-0000"
        for found in draft.fingerprints():
            found["gpus"][0]["uuid_hash"] = "sha256:" + "8" * 64
        draft.telemetry[0]["gpu_uuid_hash"] = "sha256:" + "8" * 64
        return draft

    @mutation(
        name, "V25", kind="draft", base="long", options=lambda f: (write_row(f), options(f))[1]
    )
    def apply(draft: Draft) -> None:
        change(draft, row())


def same_weights(draft: Draft, other: Draft) -> None:
    for name, content in other.files.items():
        if name.startswith("checkpoints/pretrain"):
            draft.files[name] = content


def same_answers(draft: Draft, other: Draft) -> None:
    draft.files["eval/core.json"] = other.files["eval/core.json"]
    for mine, theirs in zip(draft.of("eval", "core"), other.of("eval", "core"), strict=True):
        mine["data"] = theirs["data"]


def same_losses(draft: Draft, other: Draft, noise: float = 0.0) -> None:
    rng = random.Random(4)
    for mine, theirs in zip(
        draft.of("step", "pretrain"), other.of("step", "pretrain"), strict=True
    ):
        loss = theirs["data"]["loss"]
        mine["data"]["loss"] = loss + (rng.gauss(0, noise) if mine["data"]["step"] else 0.0)


def same_telemetry(draft: Draft, other: Draft) -> None:
    """The row's whole machine, telemetry included, under another recipe of the day."""
    draft.events, draft.telemetry, draft.files = other.events, other.telemetry, other.files
    draft.header()["signer"]["public_key"] = HONEST_LINE
    for event in draft.of("step", "pretrain")[1:]:
        event["data"]["loss"] *= 1.01
    draft.files = {
        name: tamper.safetensors(5) if name.endswith("safetensors") else content + b" "
        for name, content in draft.files.items()
    } | {"eval/core.json": other.files["eval/core.json"]}


copy_mutation("another row's weights", same_weights)
copy_mutation("another row's answers", same_answers)
copy_mutation("another row's losses", same_losses)
copy_mutation(
    "another row's losses with noise of one's own",
    lambda draft, other: same_losses(draft, other, 0.012),
)
copy_mutation("another row's telemetry", same_telemetry)

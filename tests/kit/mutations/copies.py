"""V25: the run of somebody else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tamper
from tamper import Draft, gpu_run

from kit.trust.digest import sha256_bytes
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


def moved_losses(draft: Draft, other: Draft) -> None:
    """The row's noise, seven steps later, on one's own curve."""
    theirs = [event["data"]["loss"] for event in other.of("step", "pretrain")]
    for at, event in enumerate(draft.of("step", "pretrain")[8:], start=8):
        around = (theirs[at - 8] + theirs[(at - 6) % len(theirs)]) / 2
        event["data"]["loss"] = round(5.0 - 0.02 * at + theirs[at - 7] - around, 6)


def mirrored_losses(draft: Draft, other: Draft) -> None:
    """The row's noise upside down."""
    theirs = [event["data"]["loss"] for event in other.of("step", "pretrain")]
    for at, event in enumerate(draft.of("step", "pretrain")[:-1]):
        if at:
            near = theirs[max(0, at - 4) : at + 5]
            noise = theirs[at] - sum(near) / len(near)
            event["data"]["loss"] = round(7.0 - 0.04 * at - noise, 6)


def same_step_times(draft: Draft, other: Draft) -> None:
    for mine, theirs in zip(
        draft.of("step", "pretrain"), other.of("step", "pretrain"), strict=True
    ):
        mine["data"].update(dt_s=theirs["data"]["dt_s"], cuda_s=theirs["data"]["cuda_s"])


def same_power(draft: Draft, other: Draft) -> None:
    """The row's power, five seconds later; its counter goes on from one's own."""
    theirs = [r["gpu_power_w"] for r in other.telemetry if r["ev"] == "sample"]
    mine = [r for r in draft.telemetry if r["ev"] == "sample"]
    for record, watts in zip(mine[5:], theirs, strict=False):
        record["gpu_power_w"] = watts
    joules = 1e6
    for record in mine:
        joules += record["gpu_power_w"]
        record["gpu_energy_j"] = round(joules, 3)


def nearly_same_answers(draft: Draft, other: Draft) -> None:
    rng = random.Random(9)
    document = json.loads(other.files["eval/core.json"])
    for task in document["tasks"]:
        task["outcomes"] = "".join(
            "10"[int(o)] if rng.random() < 0.01 else o for o in task["outcomes"]
        )
    tamper.score(draft, document)


def same_seed(change: Callable[[Draft, Draft], Any]) -> Callable[[Draft, Draft], Any]:
    """The same with the row's own seed, under another title."""

    def apply(draft: Draft, other: Draft) -> None:
        change(draft, other)
        draft.header()["seed"]["value"] = 88
        draft.recipe = draft.recipe.replace("a run as", "another run as")
        draft.header()["recipe"]["digest"] = sha256_bytes(draft.recipe.encode())

    return apply


copy_mutation("another row's losses, moved by seven steps", moved_losses)
copy_mutation("another row's losses upside down", mirrored_losses)
copy_mutation("another row's step times", same_step_times)
copy_mutation("another row's power, moved by five seconds", same_power)
copy_mutation("another row's answers, one in a hundred changed", nearly_same_answers)
copy_mutation("another row's losses under its own seed", same_seed(same_losses))
copy_mutation("another row's step times under its own seed", same_seed(same_step_times))

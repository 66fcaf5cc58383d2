"""V09 and V10: other software, data or evaluation than was said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tamper import Draft

from kit.core_eval.statistics import TaskOutcomes, normal_interval
from kit.trust.digest import FileDigest, manifest_digest
from mutations.registry import mutation, typed

# --- V09: software ---

typed("another recipe's text", "V09", "recipe", "text", value=lambda text: text + "# another\n")
typed("typed kit version", "V09", "kit", "version", value="9.9")
typed("typed code digest", "V09", "kit", "code", value="sha256:" + "0" * 64)
typed("typed image digest", "V09", "image", "digest", value="sha256:" + "0" * 64)
typed("typed torch version", "V09", "software", "torch", value="2.99")
typed("the track of another recipe", "V09", "recipe", "track", value="open")
typed("the division of another recipe", "V09", "recipe", "division", value="open")
typed("another recipe's name", "V09", "recipe", "name", value="other")


@mutation("a stage of the recipe left out", "V09 V27", kind="draft")
def _(draft: Draft) -> None:
    inside = False
    for event in list(draft.events):
        if event["ev"] == "stage_start":
            inside = event["data"]["stage"] == "sft"
        if inside:
            draft.events.remove(event)
        if event["ev"] == "stage_stop":
            inside = False


# --- V10: data ---

typed("typed data digest", "V10", "data", "data", "digest", value="sha256:" + "0" * 64)
typed("typed data size", "V10", "data", "sft", "bytes", value=1)


@mutation("an input's files changed in the log", "V10", kind="draft")
def _(draft: Draft) -> None:
    draft.of("inputs")[0]["data"]["data"]["files"][0]["sha256"] = "sha256:" + "0" * 64


@mutation("the validation shard among the training shards", "V10", kind="draft")
def _(draft: Draft) -> None:
    part = draft.of("inputs")[0]["data"]["data"]
    part["files"][0]["sha256"] = part["files"][-1]["sha256"]
    files = [FileDigest(f["path"], f["bytes"], f["sha256"]) for f in part["files"]]
    part["digest"] = manifest_digest(files)


@mutation("tokens that were not seen", "V10", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step", "pretrain"):
        event["data"]["tokens"] += 524288 * 7


@mutation("tokens that stand still", "V10", kind="draft")
def _(draft: Draft) -> None:
    steps = draft.of("step", "pretrain")
    steps[30]["data"]["tokens"] = steps[29]["data"]["tokens"]


def core_mutation(name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """CORE's file changed before it was counted, so that every digest is right."""

    @mutation(name, "V10 V29", kind="draft")
    def apply(draft: Draft) -> None:
        document = json.loads(draft.files["eval/core.json"])
        change(document)
        tasks = [
            TaskOutcomes(t["label"], t["file"], t["baseline"], t["outcomes"])
            for t in document["tasks"]
        ]
        low, high, _ = normal_interval(tasks)
        document["interval"] = {"low": low, "high": high}
        draft.files["eval/core.json"] = json.dumps(document).encode()


def easier(document: dict[str, Any]) -> None:
    document["tasks"][3]["outcomes"] = document["tasks"][3]["outcomes"].replace("0", "")


core_mutation("only the easy examples of a task", easier)
core_mutation("a kinder baseline", lambda document: document["tasks"][20].update(baseline=25))
core_mutation("the worst task left out", lambda document: document["tasks"].pop(20))
core_mutation("a good task twice", lambda document: document["tasks"].append(document["tasks"][0]))
core_mutation("a task of one's own", lambda document: document["tasks"][0].update(label="easy"))
core_mutation(
    "another bundle called CORE",
    lambda document: document["bundle"].update(digest="sha256:" + "1" * 64),
)


def chat_mutation(name: str, **fields: Any) -> None:
    @mutation(name, "V10", kind="draft")
    def apply(draft: Draft) -> None:
        document = json.loads(draft.files["eval/chat.json"])
        document["tasks"]["mmlu"].update(fields)
        draft.files["eval/chat.json"] = json.dumps(document).encode()


chat_mutation("chat answers worth more than one", outcomes=[0] * 190 + [2] * 10)
chat_mutation("chat answers better than wrong", outcomes=[0.9] * 200)
chat_mutation("a guess that is never right", baseline=-1.0)

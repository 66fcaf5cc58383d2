"""V17 to V20: losses and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tamper
from tamper import Draft, gpu_run

from kit.trust.digest import sha256_bytes
from kit.verify import Options
from mutations.registry import mutation, typed
from mutations.signature import accounts


@mutation("a pre-trained start", "V17", kind="draft")
def _(draft: Draft) -> None:
    draft.of("step", "pretrain")[0]["data"]["loss"] = 3.9


@mutation("a loss below zero", "V17 V30", kind="draft")
def _(draft: Draft) -> None:
    draft.of("step", "pretrain")[-1]["data"]["loss"] = -0.1


@mutation("better than the card can be", "V17 V30", kind="draft")
def _(draft: Draft) -> None:
    draft.of("eval", "pretrain")[-1]["data"]["value"] = 0.55


@mutation("a trainer that does not say what it began with", "V18", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("model"):
        del event["data"]["initial_weights"]


@mutation("other weights after a resume", "V18", kind="draft", base="resumed")
def _(draft: Draft) -> None:
    draft.of("model")[-1]["data"]["initial_weights"] = sha256_bytes(b"better ones")


@mutation("initial weights that are no digest", "V18", kind="draft")
def _(draft: Draft) -> None:
    draft.of("model")[0]["data"]["initial_weights"] = "from scratch, honestly"


typed("typed seed", "V19", "seed", "value", value=7)
typed("typed source of the seed", "V19", "seed", "source", value="recipe")


@mutation("a lucky seed called the recipe's", "V19", kind="draft", base="cpu")
def _(draft: Draft) -> None:
    draft.header()["seed"] = {"value": 4711, "source": "recipe"}


@mutation("a seed that its challenge does not give", "V19", kind="draft")
def _(draft: Draft) -> None:
    tamper.enrol(draft, 0)
    draft.header()["seed"]["value"] = 4711


@mutation("a challenge seed without a group", "V19", kind="draft")
def _(draft: Draft) -> None:
    draft.header()["seed"]["source"] = "challenge"


def group_mutation(name: str, expected: str = "V20", others: Any = None, **enrolment: Any) -> None:
    """Run 0 of a group; `others` are (index, change) of the results shown beside it."""

    def options(folder: Path) -> Options:
        paths = []
        for place, (index, change) in enumerate(others):
            draft = tamper.enrol(gpu_run(seed=70 + place, steps=24), index)
            if change:
                change(draft)
            paths.append(draft.write(folder.with_name(f"{folder.name}-other{place}")))
        return Options(group=tuple(paths))

    extra = {"options": options} if others is not None else {}

    @mutation(name, expected, kind="draft", **extra)
    def apply(draft: Draft) -> None:
        tamper.enrol(draft, enrolment.pop("index", 0), enrolment.get("document"))


def lucky(draft: Draft) -> None:
    draft.header()["seed"]["value"] = 4711


def strangers(draft: Draft) -> None:
    draft.key = tamper.OTHER_KEY


def forged_registration() -> dict[str, Any]:
    """One more run than was signed for."""
    return {**tamper.registration(), "runs": 4}


group_mutation("the last run of the group not shown", others=[(1, None)])
group_mutation("a run in the middle of the group not shown", others=[(2, None)])
group_mutation("a lucky seed among the group's runs", others=[(1, lucky), (2, None)])
group_mutation("two results for one registered run", others=[(1, None), (1, None), (2, None)])
group_mutation("a stranger's run among the group's", others=[(1, strangers), (2, None)])
group_mutation("a registration changed after signing", document=forged_registration())
group_mutation(
    "somebody else's registration", "V19 V20", document=tamper.registration(tamper.OTHER_KEY)
)
group_mutation(
    "registered for another recipe",
    document=tamper.registration(recipe=tamper.RECIPE.replace("d20", "d21")),
)
group_mutation(
    "registered after the run", document=tamper.registration(registered_at="2027-01-01T00:00:00Z")
)
group_mutation("a run past the registered ones", index=3)
typed("typed group", "V07", "runs", "group", value="0123456789abcdef")


@mutation("an account that does not show the key", "V03", kind="draft", options=accounts())
def _(draft: Draft) -> None:
    claim = {"github": {"user": "alice", "fetched_at": "2026-09-01T12:00:00Z"}}
    draft.header()["signer"]["identities"] = claim


typed(
    "an account typed into the result",
    "V03",
    "submitter",
    "identities",
    value={"hf": {"user": "alice", "fetched_at": "2026-09-01T12:00:00Z"}},
)

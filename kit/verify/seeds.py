"""V19 and V20: the seed was not chosen for its outcome, and no run of a group is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from kit.trust.canonical import parse_strict
from kit.verify.evidence import MAX_RESULT_BYTES, Evidence, Irrelevant
from kit.verify.finding import Check, Finding, fail, ok, warn
from kit.verify.numbers import differences


def challenge_seed(challenge: str, public_key: str, index: int) -> int:
    """The seed of run `index` of a registered group: 31 bits nobody could choose."""
    text = json.dumps([challenge, public_key, index], separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) >> 1


def seed(evidence: Evidence) -> Iterator[Finding]:
    """The seed is the log's, and comes from where it says."""
    document, header = evidence.document, evidence.header
    problems = 0
    stated: dict[str, Any] = document["seed"]
    for place, expected, found in differences(header["seed"], stated, "seed"):
        problems += 1
        yield fail("differs from the log's header", place, expected=expected, found=found)
    policy = evidence.recipe.section("seed")
    if stated["source"] == "recipe":
        if policy["policy"] != "fixed" or policy["value"] != stated["value"]:
            problems += 1
            yield fail(
                "the seed is not the recipe's",
                "seed.value",
                expected=f"{policy['policy']} {policy['value']}",
                found=stated["value"],
            )
    elif stated["source"] == "challenge":
        challenge = stated.get("challenge") or header["seed"].get("challenge")
        index = document["runs"]["index"]
        if not isinstance(challenge, str) or not isinstance(index, int):
            problems += 1
            yield fail("a challenge seed without its challenge or index", "seed")
        else:
            expected = challenge_seed(challenge, document["submitter"]["public_key"], index)
            if expected != stated["value"]:
                problems += 1
                yield fail(
                    "the seed is not the one the challenge gives",
                    "seed.value",
                    expected=expected,
                    found=stated["value"],
                )
    elif stated["source"] == "command line" and evidence.track == "rtx4090-24h":
        problems += 1
        yield warn("the seed was typed in: register a group to rule out choosing", "seed.source")
    if not problems:
        yield ok(f"seed {stated['value']} from {stated['source']}")


def group(evidence: Evidence) -> Iterator[Finding]:
    """Every registered run is there, each with a seed of its own."""
    document = evidence.document
    name, index = document["runs"]["group"], document["runs"]["index"]
    if name is None:
        raise Irrelevant("the run belongs to no registered group")
    if not evidence.options.group:
        raise Irrelevant("the other results of the group were not given (--group)")
    others: list[dict[str, Any]] = []
    for path in evidence.options.group:
        data = path.read_bytes()
        others.append(parse_strict(data, max_bytes=MAX_RESULT_BYTES, name=path.name))
    members = [other for other in others if other["runs"]["group"] == name]
    problems = 0
    seeds = {index: document["seed"]["value"]}
    for other in members:
        number, value = other["runs"]["index"], other["seed"]["value"]
        if number == index:
            continue
        if value in seeds.values():
            problems += 1
            yield fail("two runs of the group have one seed", "seed.value", found=value)
        seeds[number] = value
    present = sorted(number for number in seeds if isinstance(number, int))
    if present != list(range(len(present))):
        problems += 1
        yield fail(
            "runs of the group are missing",
            "runs.index",
            expected=f"0 to {max(present)}",
            found=", ".join(map(str, present)),
        )
    if not problems:
        yield ok(f"{len(present)} runs, each with its own seed")


CHECKS = (
    Check(
        "V19",
        "Seed",
        "Seed grinding: trying seeds and showing the lucky one.",
        "seed, the log's header, the recipe's policy",
        seed,
    ),
    Check(
        "V20",
        "Group",
        "Cherry-picking: runs that were registered and not shown.",
        "runs, --group",
        group,
    ),
)

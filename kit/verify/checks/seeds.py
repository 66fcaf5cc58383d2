"""V19 and V20: the seed was not chosen for its outcome, and no run of a group is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kit.errors import SignatureError
from kit.run.group import challenge_seed, registration_problem
from kit.schemas import problems as schema_problems
from kit.tracks import is_ranked
from kit.trust import sshsig
from kit.trust.sign import signed_bytes
from kit.typed import to_json
from kit.verify.checks.identity import name_of
from kit.verify.checks.numbers import unequal
from kit.verify.evidence import Evidence, Irrelevant, read_result
from kit.verify.finding import Check, Finding, conclude, fail, ok, skip, warn


def seed(evidence: Evidence) -> Iterator[Finding]:
    """The seed is the log's, and comes from where it says."""
    header = evidence.header
    stated = evidence.result.seed
    yield from unequal(to_json(header.seed), to_json(stated), "seed", "the log's header")
    policy = evidence.recipe.section("seed")
    if stated.source == "recipe":
        if policy["policy"] != "fixed" or policy["value"] != stated.value:
            yield fail(
                "the seed is not the recipe's",
                "seed.value",
                expected=f"{policy['policy']} {policy['value']}",
                found=stated.value,
            )
    elif stated.source == "challenge":
        member = header.group
        if member is None:
            yield fail("a challenge seed without a registered group", "seed")
        else:
            registration = member.registration
            challenge = registration["challenge"]["value"]
            key = evidence.result.submitter.public_key
            expected = challenge_seed(challenge, key, member.index)
            if expected != stated.value:
                yield fail(
                    "the seed is not the one the challenge gives",
                    "seed.value",
                    expected=expected,
                    found=stated.value,
                )
            if is_ranked(evidence.track):
                yield from _challenge(evidence, registration)
    elif stated.source == "command line" and is_ranked(evidence.track):
        say = fail if evidence.recipe.division == "closed" else warn
        yield say(
            "the seed was entered by hand: register a group to show that it was not chosen",
            "seed.source",
        )
    yield conclude(f"seed {stated.value} from {stated.source}", unless="skip")


def _challenge(evidence: Evidence, registration: dict[str, Any]) -> Iterator[Finding]:
    """Whether the challenge could not be known before the registration.

    The head of a board's log cannot be chosen, and the board knows when it wrote the line. Any
    other text could have been tried first, whoever is said to have drawn it.
    """
    board, challenge = evidence.options.board, registration["challenge"]
    if challenge["source"] == "own":
        yield warn("the challenge was drawn by who registered: seeds could have been tried", "seed")
        return
    if board is None:
        yield warn(
            "only the publisher of the challenge can say who drew it: anyone may type one",
            "seed",
        )
        return
    at = board.written_at(challenge["value"])
    if at is None:
        yield warn("the challenge is not from this board: seeds could have been tried", "seed")
    elif at > registration["registered_at"]:
        yield fail(
            "the group was registered before its challenge existed",
            "group",
            expected=f"after {at}",
            found=registration["registered_at"],
        )
    else:
        yield ok(f"the challenge is what this board's log ended with on {at}")


def group(evidence: Evidence) -> Iterator[Finding]:
    """The registration is its owner's, and every registered run is there, once."""
    member = evidence.header.group
    if member is None:
        raise Irrelevant("the run belongs to no registered group")
    registration, index = member.registration, member.index
    findings = list(_registration(evidence, registration, index))
    yield from findings
    if findings:
        return
    if not evidence.options.group:
        yield skip(
            f"run {index} of {registration['runs']}; the others were not given (--group RESULT)"
        )
        return
    name = evidence.result.runs.group
    members = {index: evidence.document}
    for path in evidence.options.group:
        path = path / "result.json" if path.is_dir() else path
        other = read_result(path)
        if schema_problems(other, "result"):
            yield fail("a result of the group is malformed (V01)", path.name)
            return
        if other["runs"]["group"] != name:
            continue
        number = other["runs"]["index"]
        if number in members and name_of(members[number]) != name_of(other):
            yield fail("two results for one registered run", f"runs.index {number}")
            return
        if not _signed(other, registration["public_key"]):
            yield fail("a result of the group is not signed by who registered it", path.name)
            return
        expected = challenge_seed(
            registration["challenge"]["value"], registration["public_key"], number
        )
        if other["seed"]["value"] != expected:
            yield fail(
                "a run of the group has a seed that its challenge does not give",
                f"runs.index {number}",
                expected=expected,
                found=other["seed"]["value"],
            )
            return
        members[number] = other
    absent = [number for number in range(registration["runs"]) if number not in members]
    if absent:
        yield fail(
            "registered runs are missing",
            "runs.index",
            expected=f"0 to {registration['runs'] - 1}",
            found="without " + ", ".join(map(str, absent)),
        )
        return
    complete = [m for m in members.values() if m["claims"]["status"] == "complete"]
    yield ok(f"all {len(members)} registered runs, {len(complete)} of them complete")


def _registration(
    evidence: Evidence, registration: dict[str, Any], index: int
) -> Iterator[Finding]:
    problem = registration_problem(registration)
    if problem:
        yield fail(f"the registration is not valid: {problem}", "the log's header")
        return
    result = evidence.result
    key = result.submitter.public_key
    for what, expected, found in (
        ("key", registration["public_key"], key),
        ("recipe", registration["recipe"]["digest"], result.recipe.digest),
    ):
        if expected != found:
            yield fail(f"registered for another {what}", "group", expected=expected, found=found)
    if not 0 <= index < registration["runs"]:
        yield fail("a run that was not registered", "runs.index", found=index)
    started = result.timing.started_at
    if started is not None and started < registration["registered_at"]:
        yield fail(
            "the run began before its group was registered",
            "timing.started_at",
            expected=f"after {registration['registered_at']}",
            found=started,
        )


def _signed(document: dict[str, Any], key: str) -> bool:
    """Whether `key` is the submitter's and signed the result."""
    if document["submitter"]["public_key"] != key:
        return False
    for entry in document["signatures"]:
        with contextlib.suppress(SignatureError):
            found = sshsig.verify(
                signed_bytes(document), entry["signature"], sshsig.RESULT_NAMESPACE
            )
            if found.line == key:
                return True
    return False


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
        "the registration in the log's header, runs, --group",
        group,
    ),
)

"""How far a row can be believed, and whether it stands: rules over what the board has accepted.

    T0  signed, but evidence for some check is missing
    T1  consistent: no check found anything against it
    T2  its published checkpoint was scored again by somebody else, with the same outcome
    T3  windows of the run were executed again by somebody else, with the same outcome
    T4  run again by somebody else, on another card, with another seed, and not found worse

What counts towards T4 is compared here again from both results, whatever the statement says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kit.board.row import Facts
from kit.board.statistics import clearly_worse, compare_check, compare_run, noise_of
from kit.trust.sign import result_id as document_id

Document = dict[str, Any]
RANKED_TRACK = "rtx4090-24h"


class Judged(NamedTuple):
    """The board's own view of a reproduction."""

    accepted: bool
    verdict: str | None
    counted: bool  # for the tier
    contradicts: bool  # one of the two that make a row disputed
    reason: str


def judge_reproduction(
    statement: Document,
    claim: Facts,
    claimed: Document,
    own: Facts | None,
    found: Document | None,
    own_accepted: bool,
) -> Judged:
    """Whether a reproduction is one, and what it found.

    Args:
        claimed, found: Figures of both results, read from the results themselves.
        own: The reproducing run; None when it is not on the board (or there is none).
    """

    def refuse(reason: str) -> Judged:
        return Judged(False, None, False, False, reason)

    by = statement["by"]
    if by["public_key"] == claim.key or by["name"] == claim.path.submitter:
        return refuse("by the row's own submitter: that is another run, not a reproduction")
    if statement["of"]["recipe_digest"] != claim.recipe_digest:
        return refuse("of another recipe than the row's")
    if statement["kind"] != "run":
        return _judge_without_a_run(statement, claim, claimed)
    if own is None or found is None or not own_accepted:
        return refuse(f"its own result {statement['result_id']} is not accepted on this board")
    if own.key != by["public_key"] or own.path.submitter != by["name"]:
        return refuse("its own result was signed or submitted by somebody else")
    if own.recipe_digest != claim.recipe_digest:
        return refuse("its own result is of another recipe")
    if own.status != "complete":
        return refuse(f"its own run is {own.status}")
    if own.seed == claim.seed:
        return refuse("run with the row's own seed: it repeats, and shows nothing about chance")
    if own.log_head == claim.log_head:
        return refuse("its own result has the row's log")
    if own.gpu_hash is not None and own.gpu_hash == claim.gpu_hash:
        return refuse("run on the very same card")
    if claim.track == RANKED_TRACK and (own.gpu_hash is None or claim.gpu_hash is None):
        return refuse("the two cards cannot be told apart: a GPU's hash is missing")
    noise = noise_of(claim.track)
    checks, verdict = compare_run(claimed, found, noise)
    against = clearly_worse(claimed, found, noise)
    told = "; ".join(c["message"] for c in checks if c["status"] != "skip") or "nothing to compare"
    return Judged(True, verdict, verdict == "confirmed", against, told)


def _judge_without_a_run(statement: Document, claim: Facts, claimed: Document) -> Judged:
    """A checkpoint scored again, or windows replayed: the signer's word, compared again."""
    if not claim.has_model:
        return Judged(False, None, False, False, "the row's weights are not published")
    checks, verdict = compare_check(claimed, statement["found"])
    if statement["kind"] == "replay":
        verdict = statement["verdict"]
        told = f"windows executed again: {verdict}"
    else:
        told = "; ".join(c["message"] for c in checks if c["status"] != "skip") or "nothing scored"
    contradicts = statement["kind"] == "check" and verdict == "worse"
    return Judged(True, verdict, verdict == "confirmed", contradicts, told)


class Standing(NamedTuple):
    tier: str
    tier_reason: str
    state: str
    state_reason: str


def standing(
    verdict: str,
    *,
    has_model: bool,
    pending: bool,
    reproductions: Sequence[tuple[Document, Judged]],
    statements: Sequence[Document],
    statement_ids: Mapping[int, str],
    maintainers: Mapping[str, str],
) -> Standing:
    """Tier and state of an accepted row.

    Args:
        reproductions, statements: The accepted ones about the row, by date.
        statement_ids: Ids of the statements, by their place in `statements`.
    """
    tier, reason = _tier(verdict, has_model, [(s, j) for s, j in reproductions if j.counted])
    withdrawn = [s for s in statements if s["kind"] == "withdrawal"]
    if withdrawn:
        told = f"withdrawn by {withdrawn[-1]['by']['name']}: {withdrawn[-1]['reason'][:300]}"
        return Standing(tier, reason, "withdrawn", told)
    answers = {s["dispute"]: s for s in statements if s["kind"] == "resolution"}
    overruled = {about for about, answer in answers.items() if not answer["upheld"]}
    against = {
        s["by"]["public_key"]
        for s, judged in reproductions
        if judged.contradicts and document_id(s) not in overruled
    }
    for place, statement in enumerate(statements):
        answer = answers.get(statement_ids[place])
        if statement["kind"] != "dispute" or (answer and not answer["upheld"]):
            continue
        if answer or statement["by"]["public_key"] in maintainers:
            told = f"disputed by {statement['by']['name']}: {statement['reason'][:300]}"
            return Standing(tier, reason, "disputed", told)
    if len(against) >= 2:
        told = f"{len(against)} people found it worse than claimed at p < 0.01"
        return Standing(tier, reason, "disputed", told)
    if pending:
        return Standing(tier, reason, "pending", "its pull request is open")
    return Standing(tier, reason, "listed", "accepted")


def _tier(
    verdict: str, has_model: bool, counted: Sequence[tuple[Document, Judged]]
) -> tuple[str, str]:
    if verdict != "consistent":
        return "T0", "signed; evidence for some checks is missing"
    by_kind = {
        kind: {s["by"]["name"] for s, _ in counted if s["kind"] == kind}
        for kind in ("run", "check", "replay")
    }
    if runs := by_kind["run"]:
        times = "once" if len(runs) == 1 else f"{len(runs)} times"
        return "T4", f"reproduced {times}, by {', '.join(sorted(runs)[:5])}"
    if has_model and by_kind["replay"]:
        return "T3", f"windows replayed by {', '.join(sorted(by_kind['replay'])[:5])}"
    if has_model and by_kind["check"]:
        return "T2", f"checkpoint scored again by {', '.join(sorted(by_kind['check'])[:5])}"
    if not has_model:
        return "T1", "consistent; its weights are not published, so nobody can score them again"
    return "T1", "consistent: no check found anything against it"

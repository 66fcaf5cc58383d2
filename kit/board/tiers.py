"""How far a row can be believed, and whether it stands: rules over what the board has accepted.

    T0  signed, but evidence for some check is missing
    T1  self-reported: no check found anything against its text
    T2  the board scored its published weights on questions drawn afterwards, with the same answers
    T3  T2, and a vouched account executed windows of the run again with the same losses
    T4  T2, and a vouched account ran it again: other card, other seed, weights scored by the board
        too, not found worse

A statement counts for an account that the Hub or GitHub shows, with the signing key and an age, and
that is not the submitter's. Its figures are compared here again; without evidence that can be
compared it counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from kit.board.decisions import AccountDecision, ScoreDecision
from kit.board.layout import is_name
from kit.board.row import Facts
from kit.board.statistics import clearly_worse, compare_run, noise_of
from kit.tracks import is_ranked
from kit.trust.sign import result_id as document_id
from kit.verify.thresholds import REPLAY_LOSS_GPU

Document = dict[str, Any]
MIN_ACCOUNT_DAYS = 90


class Judged(NamedTuple):
    """The board's own view of a reproduction."""

    accepted: bool
    verdict: str | None
    counted: bool  # for the tier
    contradicts: bool  # one of the two that make a row disputed
    reason: str


class Vouched(NamedTuple):
    """Whether the Hub or GitHub shows the account of a statement's signer; the reason if not."""

    yes: bool
    reason: str


def vouched(
    by: Mapping[str, str], at: str, accounts: Iterable[AccountDecision], claim: Facts
) -> Vouched:
    """Whether an account of sufficient age shows the key that signed a statement."""
    shown = [one for one in accounts if by["public_key"] in one.keys]
    if not shown:
        return Vouched(False, "neither the Hub nor GitHub showed the board an account with its key")
    if not any(one.user.casefold() == by["name"].casefold() for one in shown):
        return Vouched(False, f"no account called {by['name']} shows its key")
    for account in shown:
        if account.user.casefold() == claim.person or claim.key in account.keys:
            return Vouched(False, "its account is the submitter's")
    day = datetime.fromisoformat(at) - timedelta(days=MIN_ACCOUNT_DAYS)
    if not any(datetime.fromisoformat(one.created_at) <= day for one in shown):
        return Vouched(False, f"its account is younger than {MIN_ACCOUNT_DAYS} days")
    return Vouched(True, "")


def people(signers: Iterable[Mapping[str, str]]) -> list[str]:
    """One name for each person among signers: who shares a name or a key is the same person."""
    found: list[set[str]] = []
    for one in signers:
        marks = {one["name"].casefold(), one["public_key"]}
        for other in [other for other in found if other & marks]:
            found.remove(other)
            marks |= other
        found.append(marks)
    names = ({mark for mark in marks if is_name(mark)} for marks in found)
    return sorted(min(own) for own in names)


def judge_reproduction(
    statement: Document,
    claim: Facts,
    claimed: Document,
    own: Facts | None,
    found: Document | None,
    own_accepted: bool,
    *,
    own_scored: bool,
    account: Vouched,
    losses: Mapping[int, float] | None = None,
) -> Judged:
    """Whether a reproduction is one, and what it found.

    Args:
        claimed, found: Figures of both results, read from the results themselves.
        own: The reproducing run; None when it is not on the board (or there is none).
        own_scored: Whether the board scored the weights of `own` with the submitted answers.
        losses: The row's training losses by step, for a replay.
    """

    def refuse(reason: str) -> Judged:
        return Judged(False, None, False, False, reason)

    by = statement["by"]
    if by["public_key"] == claim.key or by["name"].casefold() == claim.person:
        return refuse("by the row's own submitter: that is another run, not a reproduction")
    if statement["of"]["recipe_digest"] != claim.recipe_digest:
        return refuse("of another recipe than the row's")
    if statement["kind"] != "run":
        return _judge_without_a_run(statement, claim, account, losses)
    if own is None or found is None or not own_accepted:
        return refuse(f"its own result {statement['result_id']} is not accepted on this board")
    if own.key != by["public_key"] or own.person != by["name"].casefold():
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
    if is_ranked(claim.track) and (own.gpu_hash is None or claim.gpu_hash is None):
        return refuse("the two cards cannot be told apart: a GPU's hash is missing")
    noise = noise_of(claim.track)
    checks, verdict = compare_run(claimed, found, noise)
    against = clearly_worse(claimed, found, noise)
    told = "; ".join(c["message"] for c in checks if c["status"] != "skip") or "nothing to compare"
    missing = "" if own_scored else "the board has not scored the weights of its own run"
    if not account.yes:
        missing = account.reason
    if missing:
        return Judged(True, verdict, False, False, f"{told}; not counted: {missing}")
    return Judged(True, verdict, verdict == "confirmed", against, told)


def _judge_without_a_run(
    statement: Document, claim: Facts, account: Vouched, losses: Mapping[int, float] | None
) -> Judged:
    """A scoring or a replay by somebody else: shown; a replay counts when its losses compare."""
    if not claim.has_model:
        return Judged(False, None, False, False, "the row's weights are not published")
    verdict = str(statement["verdict"])
    if statement["kind"] == "check":
        told = "weights scored by somebody else; the board scores them itself (T2)"
        return Judged(True, verdict, False, False, told)
    evidence = statement.get("evidence") or {}
    pairs = [
        (loss, (losses or {}).get(window["first"] + place))
        for window in evidence.get("windows", ())
        for place, loss in enumerate(window["losses"])
    ]
    if not pairs:
        told = "not counted: it carries no losses that the board could compare"
        return Judged(True, verdict, False, False, told)
    same = all(
        stated is not None and abs(stated - loss) <= REPLAY_LOSS_GPU for loss, stated in pairs
    )
    verdict = "confirmed" if same else "worse"
    told = f"{len(pairs)} losses of steps done again, within {REPLAY_LOSS_GPU}: {verdict}"
    if not account.yes:
        return Judged(True, verdict, False, False, f"{told}; not counted: {account.reason}")
    return Judged(True, verdict, same, False, told)


class Standing(NamedTuple):
    tier: str
    tier_reason: str
    state: str
    state_reason: str


def standing(
    verdict: str,
    *,
    has_model: bool,
    score: ScoreDecision | None,
    pending: bool,
    reproductions: Sequence[tuple[Document, Judged]],
    statements: Sequence[Document],
    statement_ids: Mapping[int, str],
    maintainers: Mapping[str, str],
) -> Standing:
    """Tier and state of an accepted row.

    Args:
        score: What the board found about its weights.
        reproductions, statements: The accepted ones about the row, by date.
        statement_ids: Ids of the statements, by their place in `statements`.
    """
    counted = [(s, j) for s, j in reproductions if j.counted]
    tier, reason = _tier(verdict, has_model, score, counted)
    withdrawn = [s for s in statements if s["kind"] == "withdrawal"]
    if withdrawn:
        told = f"withdrawn by {withdrawn[-1]['by']['name']}: {withdrawn[-1]['reason'][:300]}"
        return Standing(tier, reason, "withdrawn", told)
    answers = {s["dispute"]: s for s in statements if s["kind"] == "resolution"}
    overruled = {about for about, answer in answers.items() if not answer["upheld"]}
    against = people(
        [
            s["by"]
            for s, judged in reproductions
            if judged.contradicts and document_id(s) not in overruled
        ]
    )
    for place, statement in enumerate(statements):
        answer = answers.get(statement_ids[place])
        if statement["kind"] != "dispute" or (answer and not answer["upheld"]):
            continue
        if answer or statement["by"]["public_key"] in maintainers:
            told = f"disputed by {statement['by']['name']}: {statement['reason'][:300]}"
            return Standing(tier, reason, "disputed", told)
    if score is not None and score.agrees is False:
        return Standing(tier, reason, "disputed", f"the board's own scoring: {score.reason}"[:400])
    if len(against) >= 2:
        told = f"{len(against)} people found it worse than claimed at p < 0.01"
        return Standing(tier, reason, "disputed", told)
    if pending:
        return Standing(tier, reason, "pending", "its pull request is open")
    return Standing(tier, reason, "listed", "accepted")


def _tier(
    verdict: str,
    has_model: bool,
    score: ScoreDecision | None,
    counted: Sequence[tuple[Document, Judged]],
) -> tuple[str, str]:
    if verdict != "consistent":
        return "T0", "signed; evidence for some checks is missing"
    if not has_model:
        return "T1", "self-reported; its weights are not published, so nobody can score them"
    if score is None:
        return "T1", "self-reported; the board has not scored its weights yet"
    if not score.agrees:
        return "T1", f"self-reported; {score.reason}"[:400]
    by_kind = {
        kind: people([s["by"] for s, _ in counted if s["kind"] == kind])
        for kind in ("run", "replay")
    }
    if runs := by_kind["run"]:
        times = "once" if len(runs) == 1 else f"{len(runs)} times"
        return "T4", f"reproduced {times}, by {', '.join(runs[:5])}"
    if by_kind["replay"]:
        return "T3", f"windows replayed by {', '.join(by_kind['replay'][:5])}"
    return "T2", f"scored by the board: {score.reason}"[:400]

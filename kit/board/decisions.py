"""What the board has decided so far, from its events; and the writing of further ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kit.board.layout import Layout
from kit.errors import SchemaError
from kit.trust.board_record import EVENTS_KIND, MAX_EVENTS_BYTES
from kit.trust.chain import scan_chain
from kit.trust.chain_writer import ChainWriter

Document = dict[str, Any]


class SubmissionDecision(NamedTuple):
    """The last word about a submission."""

    path: str
    tree: str
    accepted: bool
    verdict: str
    checks: Document
    source: Document
    first_at: str  # when it was first accepted
    reason: str


class ScoreDecision(NamedTuple):
    """What the board found when it scored a row's weights itself.

    Attributes:
        tree: Digest of the submission that was scored.
        agrees: Whether the answers are the submitted ones; None where they cannot be scored.
    """

    tree: str
    agrees: bool | None
    reason: str


class AccountDecision(NamedTuple):
    """An account as the Hub or GitHub showed it to the board."""

    service: str
    user: str
    created_at: str
    keys: tuple[str, ...]


class DocumentDecision(NamedTuple):
    """The last word about a reproduction or statement."""

    digest: str
    accepted: bool
    verdict: str | None
    reason: str


@dataclass
class Decisions:
    """Everything that the events say, at their end."""

    head: str = ""
    count: int = 0
    submissions: dict[str, SubmissionDecision] = field(default_factory=dict)  # by id
    documents: dict[str, DocumentDecision] = field(default_factory=dict)  # by path
    scores: dict[str, ScoreDecision] = field(default_factory=dict)  # by id
    accounts: dict[tuple[str, str], AccountDecision] = field(default_factory=dict)
    tiers: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    # Most rows have the same outcomes: one copy of each set is kept.
    _outcomes: dict[tuple[tuple[str, str], ...], Document] = field(default_factory=dict)

    @classmethod
    def read(cls, layout: Layout) -> Decisions:
        """From board-events.jsonl; empty when there is none.

        Raises:
            SchemaError: The chain is broken.
        """
        decisions = cls()
        if not layout.events.exists():
            return decisions
        chain = scan_chain(layout.events, EVENTS_KIND, decisions.add, max_bytes=MAX_EVENTS_BYTES)
        if chain.problems:
            problem = chain.problems[0]
            raise SchemaError(
                f"board-events.jsonl is damaged: {problem.message}",
                hint="restore it from the repository's history; its lines are never edited",
                place=f"line {problem.line}",
            )
        decisions.head, decisions.count = chain.head, chain.count
        return decisions

    def score_of(self, row_id: str) -> ScoreDecision | None:
        """The board's own score of a row as it was last judged."""
        score, judged = self.scores.get(row_id), self.submissions.get(row_id)
        return score if score and judged and score.tree == judged.tree else None

    def add(self, event: Document) -> None:
        """Takes one more event into account."""
        row_id, data = event["id"], event["data"]
        match event["ev"]:
            case "submission":
                checks = self._outcomes.setdefault(tuple(data["checks"].items()), data["checks"])
                previous = self.submissions.get(row_id)
                self.submissions[row_id] = SubmissionDecision(
                    data["path"],
                    data["tree"],
                    data["decision"] == "accepted",
                    data["verdict"],
                    checks,
                    data["source"],
                    previous.first_at if previous and previous.accepted else event["at"],
                    event["reason"],
                )
            case "reproduction" | "statement":
                self.documents[data["path"]] = DocumentDecision(
                    data["document"],
                    data["decision"] == "accepted",
                    data.get("verdict"),
                    event["reason"],
                )
            case "score":
                self.scores[row_id] = ScoreDecision(data["tree"], data["agrees"], event["reason"])
            case "account":
                known = (data["service"], data["user"].casefold())
                self.accounts[known] = AccountDecision(
                    data["service"], data["user"], data["created_at"], tuple(data["keys"])
                )
            case "tier":
                self.tiers[row_id] = data["to"]
            case "state":
                self.states[row_id] = data["to"]


class DecisionLog:
    """Appends events to the board's chain, and keeps `decisions` up to date with them."""

    def __init__(self, layout: Layout, decisions: Decisions, name: str, kit: str, at: str) -> None:
        self._writer = ChainWriter(layout.events, EVENTS_KIND)
        self.decisions = decisions
        self.at = at
        self.written = 0
        if self._writer.count == 0:
            self.append("board", None, "the board begins", schema_version=1, name=name, kit=kit)

    def append(self, ev: str, row_id: str | None, reason: str, **data: Any) -> str:
        """Writes one event; returns the digest of its line."""
        event = {"ev": ev, "id": row_id, "at": self.at, "reason": reason, "data": data}
        self._writer.append(event)
        self.decisions.add(event)
        self.written += 1
        return self._writer.head

    def close(self) -> None:
        self._writer.close()
        self.decisions.head, self.decisions.count = self._writer.head, self._writer.count


def shorten(findings: Iterable[Any], limit: int = 30) -> list[Document]:
    """What failed, warned or could not be checked, for an event: failures first."""
    order = {"fail": 0, "warn": 1, "skip": 2}
    told = [
        finding for finding in findings if finding.status in ("fail", "warn") or finding.missing
    ]
    told.sort(key=lambda finding: order[finding.status])
    return [{"check": f.check, "status": f.status, "message": _told(f)} for f in told[:limit]]


def _told(finding: Any) -> str:
    from kit.text import plain

    place = f" ({finding.place})" if finding.place else ""
    return plain(f"{finding.message}{place}", 600)

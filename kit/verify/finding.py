"""Findings of checks, and the verdict that follows from all findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kit.text import plain

if TYPE_CHECKING:
    from kit.verify.evidence import Evidence

Status = Literal["pass", "fail", "warn", "skip"]
Verdict = Literal["consistent", "refused", "unreadable", "inconclusive"]
_SENTENCES: dict[Verdict, str] = {
    "consistent": "Nothing here contradicts this result. That does not prove the time it claims: "
    "only a reproduction by somebody else does.",
    "unreadable": "This file is not a readable result.",
    "inconclusive": "Nothing here contradicts this result, but some evidence is missing.",
}

MAX_SHOWN = 500  # characters of one field of a finding
_RANK: dict[Status, int] = {"pass": 0, "skip": 1, "warn": 2, "fail": 3}


@dataclass(frozen=True)
class Finding:
    """One thing a check found.

    Attributes:
        message: A sentence a person understands.
        place: Where: a path in the result, a line of a log, a file.
        missing: A skip because evidence is absent that could have been there; the verdict is then
            inconclusive. Other skips say that a check does not apply.
        unless: Left out of the report where another finding of the check is as bad as this.
    """

    status: Status
    message: str
    place: str | None = None
    expected: Any = None
    found: Any = None
    missing: bool = False
    check: str = ""
    unless: Status | None = None

    def __post_init__(self) -> None:
        """Makes harmless what a result, a log or a file name brought into the finding."""
        object.__setattr__(self, "message", plain(self.message, MAX_SHOWN))
        if self.place is not None:
            object.__setattr__(self, "place", plain(self.place, MAX_SHOWN))
        object.__setattr__(self, "expected", _shown(self.expected))
        object.__setattr__(self, "found", _shown(self.found))

    @property
    def details(self) -> list[tuple[str, Any]]:
        """Place, expected and found value with their labels, where the check gave them."""
        named = (("at", self.place), ("expected", self.expected), ("found", self.found))
        return [(label, value) for label, value in named if value is not None]

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "status": self.status,
            "message": self.message,
            "place": self.place,
            "expected": self.expected,
            "found": self.found,
            "missing": self.missing,
        }


def ok(message: str) -> Finding:
    return Finding("pass", message)


def conclude(message: str, *, unless: Status = "fail") -> Finding:
    """The sentence of a check that passed: left out where a finding is as bad as `unless`."""
    return Finding("pass", message, unless=unless)


def fail(
    message: str, place: str | None = None, *, expected: Any = None, found: Any = None
) -> Finding:
    return Finding("fail", message, place, expected, found)


def warn(
    message: str, place: str | None = None, *, expected: Any = None, found: Any = None
) -> Finding:
    return Finding("warn", message, place, expected, found)


def skip(message: str) -> Finding:
    """The check does not apply."""
    return Finding("skip", message)


def missing(message: str) -> Finding:
    """The check applies, but its evidence is not here."""
    return Finding("skip", message, missing=True)


def concluded(findings: list[Finding]) -> list[Finding]:
    """`findings` of one check, without conclusions that others of them contradict."""
    worst = max((_RANK[finding.status] for finding in findings), default=0)
    return [f for f in findings if f.unless is None or worst < _RANK[f.unless]]


Body = Callable[["Evidence"], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """A check: what it is called, what it protects against, what it looks at."""

    id: str
    title: str
    protects: str
    looks_at: str
    body: Body


@dataclass
class Report:
    """All findings about one result."""

    subject: str
    result_id: str | None = None
    findings: list[Finding] = field(default_factory=list)
    readable: bool = True
    strict: bool = False
    elapsed_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def status(self, check: str) -> Status | None:
        """The worst that `check` found; None when it did not run."""
        found: list[Status] = [finding.status for finding in self.of(check)]
        if not found:
            return None
        return max(found, key=lambda status: _RANK[status])

    def of(self, check: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.check == check]

    def applies(self, check: str) -> bool:
        """Whether there was something to check, or should have been."""
        return self.status(check) != "skip" or any(found.missing for found in self.of(check))

    def checks(self) -> Iterator[str]:
        """Ids of the checks that ran, in order."""
        yield from dict.fromkeys(finding.check for finding in self.findings)

    @property
    def refused_by(self) -> list[str]:
        return [check for check in self.checks() if self.status(check) == "fail"]

    @property
    def verdict(self) -> Verdict:
        if not self.readable:
            return "unreadable"
        statuses = {finding.status for finding in self.findings}
        if "fail" in statuses or (self.strict and "warn" in statuses):
            return "refused"
        if any(finding.missing for finding in self.findings):
            return "inconclusive"
        return "consistent"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.verdict != "refused":
            return _SENTENCES[self.verdict]
        named = ", ".join(self.refused_by)
        return f"Refused by {named}." if named else "Refused for its warnings, as was asked."

    @property
    def exit_code(self) -> int:
        return {"consistent": 0, "refused": 1, "unreadable": 2, "inconclusive": 3}[self.verdict]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "subject": self.subject,
            "result_id": self.result_id,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "strict": self.strict,
            "elapsed_s": round(self.elapsed_s, 3),
            "facts": self.facts,
            "checks": {check: self.status(check) for check in self.checks()},
            "findings": [finding.to_json() for finding in self.findings],
        }


def _shown(value: Any) -> Any:
    """`value` as JSON carries it and anybody may show it: numbers as they are, the rest as text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return plain(value, MAX_SHOWN)

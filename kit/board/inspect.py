"""One submission before the judge: its files, its result's checks, its weights, its likeness.

Nothing of it is executed or imported: files are listed, measured, hashed and parsed.
"""

from __future__ import annotations

import math
import os
import tempfile
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kit.board.layout import (
    REQUIRED,
    TEXT_LIMITS,
    Layout,
    SubmissionPath,
    refuse_newer,
)
from kit.board.load import read_document, read_result
from kit.board.row import MALFORMED, Facts, facts_of, submission_row
from kit.board.tree import NO_TREE, TreeCache, tree_of
from kit.errors import KitError
from kit.schemas import problems
from kit.trust.board_record import BoardRecord
from kit.trust.digest import sha256_file
from kit.verify.evidence import Options
from kit.verify.finding import Finding, Report, fail, warn

Document = dict[str, Any]


CLOCK_SLACK_S = 3600.0  # a submitter's clock may be wrong by so much
NEAREST = 10  # rows on either side whose loss curves are compared


@dataclass
class Inspection:
    """What was found about a submission."""

    path: SubmissionPath
    report: Report
    accepted: bool
    reason: str
    tree: str
    facts: Facts | None = None

    @property
    def checks(self) -> dict[str, str]:
        return {check: self.report.status(check) or "skip" for check in self.report.checks()}


@dataclass
class BoardIndex:
    """What earlier submissions were, for finding copies without reading them all again."""

    keys: dict[str, set[str]] = field(default_factory=dict)  # submitter -> public keys
    owners: dict[str, str] = field(default_factory=dict)  # public key -> its first submitter
    _paths: dict[str, SubmissionPath] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)  # case-folded -> as first spelled
    _cards: dict[str, list[Facts]] = field(default_factory=dict)  # runs by their GPU's hash
    _by_print: dict[str, str] = field(default_factory=dict)
    _by_loss: dict[str, list[tuple[float, str]]] = field(default_factory=dict)  # by recipe

    def add(self, facts: Facts) -> None:
        self._paths[facts.id] = facts.path
        self.keys.setdefault(facts.path.submitter, set()).add(facts.key)
        if facts.bound:
            self.owners.setdefault(facts.key, facts.path.submitter)
        self._names.setdefault(facts.person, facts.path.submitter)
        if facts.gpu_hash is not None and facts.started_s is not None:
            self._cards.setdefault(facts.gpu_hash, []).append(facts)
        for value in facts.prints:
            self._by_print.setdefault(value, facts.id)
        if facts.val_bpb is not None:
            insort(self._by_loss.setdefault(facts.recipe_digest, []), (facts.val_bpb, facts.id))

    def impossible(self, facts: Facts, now_s: float) -> str | None:
        """Why no honest submission can be this one, given the others; None if it can."""
        spelled = self._names.get(facts.person, facts.path.submitter)
        if spelled != facts.path.submitter:
            return f"the submitter {spelled} is on this board already, spelled so"
        if facts.started_s is None:
            return None
        ended_s = facts.started_s + facts.total_s
        if ended_s > now_s + CLOCK_SLACK_S:
            return "the run ends in the future"
        for other in self._cards.get(facts.gpu_hash or "", ()):
            assert other.started_s is not None
            if (
                other.id != facts.id
                and facts.started_s < other.started_s + other.total_s
                and other.started_s < ended_s
            ):
                return f"the same card was running {other.path} at that time"
        return None

    def like(self, facts: Facts) -> list[SubmissionPath]:
        """Rows that a submission may be a copy of: those with a digest of its own, and those of the
        same recipe that ended nearest to it.
        """
        found = {self._by_print[value] for value in facts.prints if value in self._by_print}
        if facts.val_bpb is not None:
            nearest = self._by_loss.get(facts.recipe_digest, [])
            place = bisect_left(nearest, (facts.val_bpb, ""))
            for _, row_id in nearest[max(0, place - NEAREST) : place + NEAREST]:
                found.add(row_id)
        return [self._paths[row_id] for row_id in sorted(found - {facts.id})]


def inspect(
    layout: Layout,
    path: SubmissionPath,
    known: BoardIndex,
    *,
    author: str | None = None,
    extra: Mapping[str, Path] | None = None,
    weights: list[Finding] | None = None,
    cache: TreeCache | None = None,
    now_s: float = math.inf,
) -> Inspection:
    """Judges the submission at `path`.

    Args:
        author: Who opened its pull request; None in a folder, whose owner vouches for names.
        extra: Files from its model repository by name (telemetry too large for the board).
        weights: Findings about the weights, which lie elsewhere.
        now_s: Seconds since 1970; a run that ends later is refused.
    """
    folder = layout.submission(path)
    report = Report(subject=str(path))
    tree = NO_TREE

    def refused(reason: str, check: str = "V01") -> Inspection:
        report.findings.append(replace(fail(reason), check=check))
        return Inspection(path, report, False, reason, tree)

    try:
        tree = tree_of(folder, cache)
        missing = [name for name in REQUIRED if not (folder / name).is_file()]
        if missing:
            return refused(f"files are missing: {', '.join(missing)}")
        pin = read_document(folder / "submission.json", TEXT_LIMITS["submission.json"])
        refuse_newer(pin, "submission.json")
        if found := problems(pin, "submission"):
            return refused(f"submission.json: {found[0]}")
    except (KitError, OSError) as error:
        return refused(error.message if isinstance(error, KitError) else str(error))
    if pin["submitter"] != path.submitter or (author is not None and author != path.submitter):
        who = author or pin["submitter"]
        return refused(f"submitted by {who} into the folder of {path.submitter}", "V03")
    if pin["model"]:
        owner = pin["model"]["repository"].removeprefix("models/").split("/")[0]
        if owner != path.submitter:
            return refused("names weights in another account's repository", "V21")
    facts = _facts(layout, path, folder)
    against = (
        tuple(layout.submission(one) / "result.json" for one in known.like(facts)) if facts else ()
    )
    report = _verify(
        folder, dict(extra or {}), Options(board=BoardRecord(layout.root), against=against)
    )
    report.findings += [replace(finding, check="V21") for finding in weights or []]
    if facts and known.owners.get(facts.key, path.submitter) != path.submitter:
        return refused(f"signed with the key of {known.owners[facts.key]}", "V03")
    if facts and facts.key not in known.keys.get(path.submitter, {facts.key}):
        told = warn("another key than this submitter's earlier ones", "submitter")
        report.findings.append(replace(told, check="V03"))
    named = facts.identity if facts else None
    if author is not None and named is not None and named != author.casefold():
        return refused(f"its result names {named} as the submitter", "V03")
    if facts and (reason := known.impossible(facts, now_s)):
        return refused(reason, "V25")
    if report.result_id is not None and report.result_id != path.result_id:
        return refused(f"the folder is not named by its result, {report.result_id}")
    if pin["result_id"] != path.result_id:
        return refused("submission.json is about another result")
    if report.verdict in ("refused", "unreadable"):
        first = next(finding for finding in report.findings if finding.status == "fail")
        reason = f"{report.verdict} by {', '.join(report.refused_by)}: {first.message}"
        return Inspection(path, report, False, reason, tree)
    try:
        result = read_result(folder)
        row = submission_row(path, result, pin)
        facts = facts_of(path, result, pin, row, folder)
        filled = {**row, "verdict": report.verdict, "tier": "T0"}
        if wrong := problems(filled, "leaderboard-row"):
            return refused(f"cannot become a row: {wrong[0]}")
    except MALFORMED as error:
        return refused(f"cannot become a row: {type(error).__name__}: {str(error)[:200]}")
    return Inspection(path, report, True, _summary(report), tree, facts)


def _verify(folder: Path, extra: dict[str, Path], options: Options) -> Report:
    from kit.verify import verify_result

    if not extra:
        return verify_result(folder, options)
    with tempfile.TemporaryDirectory(prefix="n4090-board-") as name:
        stage = Path(name)
        for relative in TEXT_LIMITS:
            if (folder / relative).is_file():
                _bring(folder / relative, stage / relative)
        for relative, source in extra.items():
            _bring(source, stage / relative)
        return verify_result(stage, options)


def _bring(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def _facts(layout: Layout, path: SubmissionPath, folder: Path) -> Facts | None:
    """What a result says of itself before it was checked; None when it cannot be read."""
    try:
        result = read_result(folder)
        pin = read_document(folder / "submission.json", TEXT_LIMITS["submission.json"])
        return facts_of(path, result, pin, submission_row(path, result, pin), folder)
    except (*MALFORMED, OSError):
        return None


def _summary(report: Report) -> str:
    warned = [check for check in report.checks() if report.status(check) == "warn"]
    passed = sum(report.status(check) == "pass" for check in report.checks())
    told = f"{report.verdict}: {passed} checks passed"
    if warned:
        told += f", {', '.join(warned)} warned"
    if report.verdict == "inconclusive":
        absent = next(finding for finding in report.findings if finding.missing)
        told += f"; {absent.check}: {absent.message}"
    return told


def check_weights(folder: Path, result: Document) -> list[Finding]:
    """V21: the weights in `folder`, laid out as in the run, are those that were signed."""
    findings: list[Finding] = []
    for part in ("tokenizer", "base", "chat"):
        artifact = result["checkpoint"][part]
        for file in artifact["files"] if artifact else ():
            path = folder / artifact["folder"] / file["path"]
            place = f"{artifact['folder']}/{file['path']}"
            if not path.is_file():
                findings.append(fail("not in the model folder", place))
                continue
            found = sha256_file(path)
            if found != file["sha256"]:
                told = {"expected": file["sha256"], "found": found}
                findings.append(fail("not the file that was signed", place, **told))
    return findings

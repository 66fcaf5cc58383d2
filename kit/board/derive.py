"""The table, derived: rows from results, what the board decided, and what follows for each row.

Rows wait in a temporary file until all others are known, so memory holds some hundred bytes a row.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from kit.board.decisions import Decisions
from kit.board.documents import read_checked
from kit.board.layout import TEXT_LIMITS, Layout, Settings, SubmissionPath, refuse_newer
from kit.board.load import read_document, read_result
from kit.board.ranking import Ranked, rank_rows
from kit.board.row import Facts, facts_of, reference_row, submission_row
from kit.board.statistics import figures_of
from kit.board.tiers import Judged, Standing, judge_reproduction, standing, vouched
from kit.errors import KitError, SchemaError
from kit.run_log import RunLog
from kit.tracks import TRACKS
from kit.trust.digest import sha256_file

Document = dict[str, Any]


class DocumentJudgement(NamedTuple):
    """A reproduction or statement as this pass found it."""

    path: str
    digest: str
    document: Document | None  # None when it could not be read
    id: str
    judged: Judged


@dataclass
class Rows:
    """Accepted submissions: facts in memory, rows in a temporary file."""

    facts: dict[str, Facts] = field(default_factory=dict)
    _where: dict[str, tuple[int, int]] = field(default_factory=dict)
    _file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def add(self, layout: Layout, path: SubmissionPath) -> Facts:
        """Takes in a submission that was checked.

        Raises:
            One of `kit.board.row.MALFORMED`.
        """
        folder = layout.submission(path)
        result = read_result(folder)
        pin = json.loads((folder / "submission.json").read_bytes())
        row = submission_row(path, result, pin)
        facts = facts_of(path, result, pin, row, folder)
        data = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
        self._where[path.result_id] = (self._file.seek(0, 2), len(data))
        self._file.write(data)
        self.facts[path.result_id] = facts
        return facts

    def row(self, row_id: str) -> Document:
        offset, length = self._where[row_id]
        self._file.seek(offset)
        row: Document = json.loads(self._file.read(length))
        return row

    def close(self) -> None:
        self._file.close()


class Derivation:
    """One pass over a board: judges its documents and gives every row its place."""

    def __init__(self, layout: Layout, settings: Settings, decisions: Decisions) -> None:
        self.layout = layout
        self.settings = settings
        self.decisions = decisions
        self.rows = Rows()

    def judge_documents(self) -> Iterator[DocumentJudgement]:
        """Every reproduction and statement of the board, judged anew."""
        for folder in (self.layout.reproductions, self.layout.statements):
            for path in self.layout.documents(folder):
                yield self._judge(path)

    def _judge(self, path: Path) -> DocumentJudgement:
        relative = path.relative_to(self.layout.root).as_posix()
        document: Document | None = None
        digest = "sha256:" + "0" * 64
        name = path.stem.rpartition("-")[2]
        try:
            digest = sha256_file(path)
            document = read_checked(path, self.layout)
            claim = self.rows.facts.get(path.parent.name)
            if claim is None:
                raise KitError("about a result that is not accepted on this board")
            if path.parent.parent == self.layout.reproductions:
                judged = self._judge_reproduction(document, claim)
            else:
                judged = self._judge_statement(document, claim)
        except (KitError, OSError) as error:
            reason = error.message if isinstance(error, KitError) else str(error.strerror)
            judged = Judged(False, None, False, False, reason)
        return DocumentJudgement(relative, digest, document, name, judged)

    def _judge_reproduction(self, statement: Document, claim: Facts) -> Judged:
        own = self.rows.facts.get(statement["result_id"] or "")
        claimed = figures_of(self._result(claim))
        found = figures_of(self._result(own)) if own else None
        decided = self.decisions.submissions.get(own.id) if own else None
        accepted = decided is not None and decided.verdict == "consistent"
        score = self.decisions.score_of(own.id) if own else None
        return judge_reproduction(
            statement,
            claim,
            claimed,
            own,
            found,
            accepted,
            own_scored=score is not None and score.agrees is True,
            account=vouched(
                statement["by"], statement["at"], self.decisions.accounts.values(), claim
            ),
            losses=self._losses(claim) if statement["kind"] == "replay" else None,
        )

    def _losses(self, claim: Facts) -> dict[int, float]:
        """The row's training losses by step, from its log."""
        steps = RunLog.read(self.layout.submission(claim.path)).steps("pretrain")
        return {event.data.step: event.data.loss for event in steps}

    def _judge_statement(self, statement: Document, claim: Facts) -> Judged:
        kind, key = statement["kind"], statement["by"]["public_key"]
        maintainer = key in self.settings.maintainers
        if kind == "withdrawal" and key != claim.key and not maintainer:
            raise KitError("only its submitter or a maintainer takes a row back")
        if kind in ("rescore", "resolution") and not maintainer:
            raise KitError(f"a {kind} wants a maintainer's key (board.json lists them)")
        if kind == "dispute" and key == claim.key:
            raise KitError("by the row's own submitter: a withdrawal would say it")
        if kind == "rescore" and not statement["figures"]:
            raise KitError("a rescore without figures")
        if kind == "resolution" and (statement["dispute"] is None or statement["upheld"] is None):
            raise KitError("a resolution names its dispute and says whether it is upheld")
        return Judged(True, None, False, False, statement["reason"][:1000])

    def _result(self, facts: Facts) -> Document:
        folder = self.layout.submission(facts.path)
        return read_document(folder / "result.json", TEXT_LIMITS["result.json"])

    def standings(self, judgements: list[DocumentJudgement]) -> dict[str, Standing]:
        """Tier and state of every row, from the accepted documents."""
        about: dict[str, list[DocumentJudgement]] = defaultdict(list)
        for one in judgements:
            if one.judged.accepted and one.document:
                about[one.path.split("/")[1]].append(one)
        standings = {}
        for row_id, facts in self.rows.facts.items():
            ordered = sorted(about.get(row_id, ()), key=_by_date)
            statements = [one for one in ordered if one.path.startswith("statements/")]
            decided = self.decisions.submissions[row_id]
            standings[row_id] = standing(
                decided.verdict,
                has_model=facts.has_model,
                score=self.decisions.score_of(row_id),
                pending=decided.source["kind"] == "open",
                reproductions=[
                    (one.document, one.judged)
                    for one in ordered
                    if one.document and one.path.startswith("reproductions/")
                ],
                statements=[one.document for one in statements if one.document],
                statement_ids={place: one.id for place, one in enumerate(statements)},
                maintainers=self.settings.maintainers,
            )
        return standings

    def table(
        self, judgements: list[DocumentJudgement], standings: dict[str, Standing]
    ) -> Iterator[Document]:
        """All rows in the table's order: ranked ones, the others by track and score, references."""
        facts = self.rows.facts
        accepted: dict[str, list[DocumentJudgement]] = defaultdict(list)
        for one in sorted((j for j in judgements if j.judged.accepted), key=_by_date):
            accepted[one.path.split("/")[1]].append(one)
        rescored = self._rescore(accepted)
        counted = {
            row_id: list(
                dict.fromkeys(
                    one.document["result_id"]
                    for one in documents
                    if one.judged.counted and one.document and one.document["kind"] == "run"
                )
            )
            for row_id, documents in accepted.items()
        }
        first_at = {row_id: d.first_at for row_id, d in self.decisions.submissions.items()}
        places = rank_rows(facts, standings, {k: v for k, v in counted.items() if v}, first_at)
        for row_id in sorted(facts, key=lambda one: _order(facts[one], places[one])):
            row = self.rows.row(row_id)
            self._finish(row, standings[row_id], places[row_id], accepted.get(row_id, []))
            for name, value in rescored.get(row_id, {}).items():
                if name == "core" and (scored := row["core"] or row["score"]):
                    scored |= {"value": value, "low": None, "high": None}
                elif name != "core":
                    row[name] = value
            yield row
        references = [reference_row(entry) for entry in self._references()]
        scored = [((row["core"] or row["score"])["value"], row) for row in references]
        yield from (row for _, row in sorted(scored, key=lambda pair: (-pair[0], pair[1]["id"])))

    def _rescore(self, accepted: dict[str, list[DocumentJudgement]]) -> dict[str, Document]:
        """Applies accepted rescores to the facts; returns the figures, by row."""
        figures: dict[str, Document] = {}
        for row_id, documents in accepted.items():
            for one in documents:
                if one.document and one.document.get("kind") == "rescore":
                    figures.setdefault(row_id, {}).update(one.document["figures"])
        for row_id, changes in figures.items():
            facts = self.rows.facts[row_id]
            core = changes.get("core")
            self.rows.facts[row_id] = facts._replace(
                total_s=changes.get("total_s", facts.total_s),
                score=facts.score if core is None else core,
                core=core if core is not None and facts.core is not None else facts.core,
            )
        return figures

    def _finish(
        self,
        row: Document,
        stands: Standing,
        place: Ranked,
        documents: list[DocumentJudgement],
    ) -> None:
        decided = self.decisions.submissions[row["id"]]
        row.update(
            state=stands.state,
            tier=stands.tier,
            tier_reason=stands.tier_reason[:600],
            rank=place.rank,
            rank_in_division=place.rank_in_division,
            ties=place.ties,
            why_not_ranked=[reason[:300] for reason in place.why_not][:20],
            submitted_at=decided.first_at,
            pooled=place.pool.to_json(),
            reaches_target=place.reaches_target,
            standing=place.standing,
            verdict=decided.verdict,
            checks=decided.checks,
        )
        for one in documents:
            if one.document is None:
                continue
            entry = {
                "id": one.id,
                "kind": one.document["kind"],
                "by": one.document["by"]["name"],
                "at": one.document["at"],
            }
            if one.path.startswith("statements/"):
                row["statements"].append(entry)
            else:
                entry["verdict"] = one.judged.verdict
                entry["counted"] = one.judged.counted
                entry["result_id"] = one.document["result_id"]
                row["reproductions"].append(entry)

    def _references(self) -> list[Document]:
        path = self.layout.references
        if not path.exists():
            return []
        document = read_document(path, 4 * 2**20)
        refuse_newer(document, "references.json")
        references = document.get("references")
        if not isinstance(references, list):
            raise SchemaError("references.json has no list `references`")
        return references


def _by_date(one: DocumentJudgement) -> tuple[str, str]:
    return (one.document["at"] if one.document else "", one.path)


def _order(facts: Facts, place: Ranked) -> tuple[Any, ...]:
    track = TRACKS.index(facts.track) if facts.track in TRACKS else len(TRACKS)
    if place.rank is not None:
        if place.reaches_target:
            return (0, track, place.rank, place.pool.total_s.value, facts.id)
        return (
            0,
            track,
            place.rank,
            -(place.pool.core.value if place.pool.core else 0.0),
            facts.id,
        )
    return (1, track, -(facts.score if facts.score is not None else -9.0), facts.id)

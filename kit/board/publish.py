"""The maintainers' job: judge what is new, note every decision with its reason, write the table.

The table depends on nothing but the board's files and events; what was judged before and has not
changed is not judged again, so the time of a pass grows with what is new.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kit
from kit.board.decisions import DecisionLog, Decisions, shorten
from kit.board.derive import Derivation, DocumentJudgement
from kit.board.documents import now
from kit.board.inspect import BoardIndex, Inspection, check_weights, inspect
from kit.board.layout import TEXT_LIMITS, Layout, Settings, SubmissionPath
from kit.board.load import read_document, read_result
from kit.board.memory import SeenChains
from kit.board.ownership import names_submitter
from kit.board.rescore import CannotScore, Scorer
from kit.board.row import MALFORMED, Facts
from kit.board.table import write_table
from kit.board.tree import NO_TREE, TreeCache, tree_of
from kit.errors import KitError, SchemaError
from kit.text import plain
from kit.trust.keys import REVOKED_NAME, read_revoked
from kit.verify.finding import Finding

Document = dict[str, Any]
IN_FOLDER: Document = {"kind": "folder", "number": None, "author": None, "commit": None}


@dataclass(frozen=True)
class Origin:
    """Where a submission came from, and what of it lies elsewhere."""

    source: Document
    extra: Mapping[str, Path] = field(default_factory=dict)
    weights: tuple[Finding, ...] = ()


@dataclass
class Published:
    """What a pass did."""

    new: list[Inspection] = field(default_factory=list)
    unchanged: int = 0
    documents: list[DocumentJudgement] = field(default_factory=list)  # decided anew
    moved: list[tuple[str, str, str]] = field(default_factory=list)  # (row, what, to)
    rows: int = 0
    events: int = 0


Tell = Callable[[str], None]


def publish(
    root: Path,
    *,
    origin: Callable[[SubmissionPath], Origin] | None = None,
    cache: TreeCache | None = None,
    recheck: bool = False,
    scorer: Scorer | None = None,
    rescore: str | None = None,
    accounts: Iterable[Document] = (),
    anchor: str | None = None,
    seen: SeenChains | None = None,
    tell: Tell = lambda text: None,
) -> Published:
    """One pass over the board in `root`.

    Args:
        origin: Where each new submission came from; by default a folder's owner vouches for it.
        recheck: Judge everything again, with this kit's checks.
        scorer: Scores the weights of rows that the board has not scored yet; None: they wait.
        rescore: A row to score again although it was scored before; then no other is.
        accounts: Accounts that the Hub or GitHub shows now, as `fetch_account` returns them.
        anchor: The commit of the board that this pass begins from.
        seen: Refuses a chain that lost lines since it was seen.
    """
    layout = Layout(root)
    settings = Settings.read(layout)
    name = str(root.resolve())
    if seen is not None:
        seen.check(name, layout.events)
    decisions = Decisions.read(layout)
    done = Published()
    decision_log = DecisionLog(layout, decisions, settings.name, kit.__version__, now())
    derivation = Derivation(layout, settings, decisions)
    try:
        _judge_submissions(derivation, decision_log, done, origin, cache, recheck, tell)
        _note_accounts(accounts, decision_log)
        if scorer is not None:
            for facts in derivation.rows.facts.values():
                new = rescore is None and decisions.score_of(facts.id) is None
                if facts.has_model and (new or facts.id == rescore):
                    score_row(facts, scorer, decision_log, tell)
        judgements = list(derivation.judge_documents())
        _note_documents(judgements, decision_log, done)
        standings = derivation.standings(judgements)
        for row_id, stands in standings.items():
            for what, to, reason, before in (
                ("tier", stands.tier, stands.tier_reason, decisions.tiers.get(row_id)),
                ("state", stands.state, stands.state_reason, decisions.states.get(row_id)),
            ):
                if to != before:
                    decision_log.append(what, row_id, reason, **{"from": before, "to": to})
                    done.moved.append((row_id, what, to))
        if anchor is not None and decision_log.written:
            decision_log.append("anchor", None, "published from this commit", commit=anchor)
        decision_log.close()
        rows = derivation.table(judgements, standings)
        done.rows = write_table(rows, layout.leaderboard, layout.parquet)
    finally:
        decision_log.close()
        derivation.rows.close()
        if cache is not None:
            cache.save()
    if seen is not None:
        seen.note(name, decisions.count, decisions.head)
    done.events = decision_log.written
    return done


def _judge_submissions(
    derivation: Derivation,
    decision_log: DecisionLog,
    done: Published,
    origin: Callable[[SubmissionPath], Origin] | None,
    cache: TreeCache | None,
    recheck: bool,
    tell: Tell,
) -> None:
    layout, decisions, rows = derivation.layout, derivation.decisions, derivation.rows
    known = BoardIndex()
    revoked = read_revoked(layout.root / REVOKED_NAME)
    for problem in revoked.problems:
        tell(problem)
    fresh: list[tuple[SubmissionPath, Origin]] = []
    there: set[str] = set()
    for path, came in _each_once(layout, decisions, origin, tell):
        there.add(path.result_id)
        decided = decisions.submissions.get(path.result_id)
        if (
            decided is not None
            and not recheck
            and decided.path == str(path)
            and decided.source["kind"] == came.source["kind"]
            and decided.tree == _tree(layout.submission(path), cache)
            and not (decided.accepted and _key_of(layout, path) in revoked.keys)
        ):
            done.unchanged += 1
            if decided.accepted:
                known.add(rows.add(layout, path))
        else:
            fresh.append((path, came))
    for path, came in fresh:
        found = _inspect(derivation, path, came, known, cache)
        if found.accepted:
            known.add(rows.add(layout, path))
        decision_log.append(
            "submission",
            path.result_id,
            plain(found.reason, 4000),
            path=str(path),
            tree=found.tree,
            decision="accepted" if found.accepted else "rejected",
            verdict=found.report.verdict,
            checks=found.checks,
            findings=shorten(found.report.findings),
            source=came.source,
            kit=kit.__version__,
        )
        done.new.append(found)
        tell(f"{path}: {'accepted' if found.accepted else 'rejected'}, {found.reason}")
    for row_id, decided in list(decisions.submissions.items()):
        if decided.accepted and row_id not in there:
            _note_loss(row_id, decided, decision_log)
            tell(f"{decided.path}: its folder is gone")


def _each_once(
    layout: Layout,
    decisions: Decisions,
    origin: Callable[[SubmissionPath], Origin] | None,
    tell: Tell,
) -> Iterator[tuple[SubmissionPath, Origin]]:
    """Every submission with where it came from; of several with one result, whoever came first.

    A result can be copied into anybody's folder: the row belongs to the submitter whom the run's
    key names, else to the path that was judged first, else to the earliest pull request.
    """
    paths: dict[str, list[SubmissionPath]] = {}
    for path in layout.submissions():
        paths.setdefault(path.result_id, []).append(path)
    for row_id, same in paths.items():
        candidates = [(path, origin(path) if origin else Origin(IN_FOLDER)) for path in same]
        bound = {path: len(same) == 1 or _is_bound(layout, path) for path in same}
        decided = decisions.submissions.get(row_id)
        chosen = min(
            candidates,
            key=lambda one: (
                not bound[one[0]],
                decided is None or decided.path != str(one[0]),
                one[1].source["number"] or 0,
                str(one[0]),
            ),
        )
        for path, _ in candidates:
            if path != chosen[0]:
                tell(f"{path}: passed over, this result is on the board as {chosen[0]}")
        yield chosen


def _is_bound(layout: Layout, path: SubmissionPath) -> bool:
    folder = layout.submission(path)
    try:
        pin = read_document(folder / "submission.json", TEXT_LIMITS["submission.json"])
        return names_submitter(pin, read_result(folder).submitter, path.submitter)
    except (*MALFORMED, OSError):
        return False


def _key_of(layout: Layout, path: SubmissionPath) -> str | None:
    """The public key of a submission's result; None when it cannot be read."""
    try:
        return read_result(layout.submission(path)).submitter.public_key
    except (KitError, OSError):
        return None


def score_row(facts: Facts, scorer: Scorer, decision_log: DecisionLog, tell: Tell) -> None:
    """Draws questions for a row, scores its weights on them and notes what they answered."""
    decided = decision_log.decisions.submissions[facts.id]
    told = f"{scorer.items} items drawn for weights that were fixed before"
    nonce = secrets.token_hex(32)
    seed = decision_log.append(
        "draw", facts.id, told, tree=decided.tree, items=scorer.items, nonce=nonce
    )
    data: Document = {"draw": seed, "tree": decided.tree, "kit": kit.__version__}
    try:
        scored = scorer.score(facts.path, seed)
    except CannotScore as error:
        decision_log.append("score", facts.id, plain(error.message, 4000), agrees=None, **data)
        tell(f"{facts.path}: {error.message}")
        return
    except KitError as error:  # a network, a disk: the next pass draws again
        tell(f"{facts.path}: not scored now: {error.message}")
        return
    found = scored.comparison
    decision_log.append(
        "score",
        facts.id,
        str(found),
        agrees=found.agrees,
        parameters=scored.parameters,
        outcomes=scored.outcomes,
        **found._asdict(),
        **data,
    )
    tell(f"{facts.path}: {'scored' if found.agrees else 'contradicted'}, {found}")


def _note_accounts(accounts: Iterable[Document], decision_log: DecisionLog) -> None:
    for shown in accounts:
        known = decision_log.decisions.accounts.get((shown["service"], shown["user"].casefold()))
        keys = tuple(shown["keys"])
        if known and (known.created_at, known.keys) == (shown["created_at"], keys):
            continue
        told = f"{shown['service']} shows this account and its keys"
        fields = ("service", "user", "created_at", "keys")
        decision_log.append("account", None, told, **{name: shown[name] for name in fields})


def _note_loss(row_id: str, decided: Any, decision_log: DecisionLog) -> None:
    decision_log.append(
        "submission",
        row_id,
        "its files are no longer on the board",
        path=decided.path,
        tree=decided.tree,
        decision="rejected",
        verdict="unreadable",
        checks={},
        findings=[],
        source=decided.source,
        kit=kit.__version__,
    )


def _inspect(
    derivation: Derivation,
    path: SubmissionPath,
    came: Origin,
    known: BoardIndex,
    cache: TreeCache | None,
) -> Inspection:
    layout = derivation.layout
    extra, weights = dict(came.extra), list(came.weights)
    if came.source["kind"] == "folder":
        beside, more = _beside(layout, path)
        extra |= beside
        weights += more
    return inspect(
        layout,
        path,
        known,
        author=came.source["author"],
        extra=extra,
        weights=weights,
        cache=cache,
        now_s=datetime.now(UTC).timestamp(),
    )


def _beside(layout: Layout, path: SubmissionPath) -> tuple[dict[str, Path], list[Finding]]:
    """Telemetry and weights of a submission whose model lies in the board's own folder."""
    folder = layout.submission(path)
    try:
        pin = read_document(folder / "submission.json", 2**20)
        repository = (pin.get("model") or {}).get("repository")
        if not isinstance(repository, str) or not repository.startswith("models/"):
            return {}, []
        parts = repository.split("/")
        if len(parts) != 3 or parts[1] != path.submitter or ".." in parts[2]:
            return {}, []
        model = layout.models / parts[1] / parts[2]
        if not model.is_dir() or model.is_symlink():
            return {}, []
        result = read_document(folder / "result.json", 2**22)
        found = check_weights(model, result)
    except (KitError, OSError, KeyError, TypeError, AttributeError):
        return {}, []
    telemetry = model / "telemetry.jsonl"
    aside = not (folder / "telemetry.jsonl").exists() and telemetry.is_file()
    return ({"telemetry.jsonl": telemetry} if aside else {}), found


def _note_documents(
    judgements: list[DocumentJudgement], decision_log: DecisionLog, done: Published
) -> None:
    for one in judgements:
        decided = decision_log.decisions.documents.get(one.path)
        judged = one.judged
        reason = plain(judged.reason, 4000)
        if decided and (decided.digest, decided.accepted, decided.verdict, decided.reason) == (
            one.digest,
            judged.accepted,
            judged.verdict,
            reason,
        ):
            continue
        folder, about, name = one.path.split("/")
        if one.document is None and decided is None and not judged.accepted:
            kind = "run" if folder == "reproductions" else "dispute"
        else:
            kind = one.document["kind"] if one.document else "dispute"
        decision_log.append(
            folder.removesuffix("s"),
            about,
            reason,
            document=one.digest,
            path=one.path,
            kind=kind,
            document_id=one.id,
            by=name.rpartition("-")[0],
            decision="accepted" if judged.accepted else "rejected",
            verdict=judged.verdict,
            source=IN_FOLDER,
        )
        done.documents.append(one)


def _tree(folder: Path, cache: TreeCache | None) -> str:
    try:
        return tree_of(folder, cache)
    except (SchemaError, OSError):
        return NO_TREE


def rebuild(root: Path, *, into: Path | None = None) -> int:
    """Derives the table again from the board's events and files; decides nothing.

    Args:
        into: A folder for the two files; the board itself when None.

    Raises:
        SchemaError: A submission is not the one that was judged.
    """
    layout = Layout(root)
    decisions = Decisions.read(layout)
    derivation = Derivation(layout, Settings.read(layout), decisions)
    try:
        for row_id, decided in decisions.submissions.items():
            if not decided.accepted:
                continue
            path = SubmissionPath.parse(decided.path)
            if path is None or _tree(layout.submission(path), None) != decided.tree:
                raise SchemaError(
                    f"submission {row_id} is not the one that was judged",
                    hint="`n4090-kit board publish` judges it again",
                    path=decided.path,
                )
            derivation.rows.add(layout, path)
        judgements = list(derivation.judge_documents())
        for one in judgements:
            noted = decisions.documents.get(one.path)
            if noted is None or noted.digest != one.digest:
                raise SchemaError(
                    f"`{one.path}` is not one that was judged",
                    hint="`n4090-kit board publish` judges it",
                )
        rows = derivation.table(judgements, derivation.standings(judgements))
        target = Layout(into) if into else layout
        return write_table(rows, target.leaderboard, target.parquet)
    finally:
        derivation.rows.close()

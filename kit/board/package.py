"""A verified run, packed: which files go to the model repository and which to the board."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kit.board import card
from kit.board.documents import check_document, kind_of, relative_path
from kit.board.layout import MAX_DOCUMENT_BYTES, TEXT_LIMITS, SubmissionPath, is_name
from kit.board.load import read_document
from kit.board.model_index import CardFacts
from kit.board.ownership import sign_submission
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.model_export import export_model, find_source
from kit.run_log import RunLog
from kit.text import plain
from kit.trust.digest import sha256_bytes, sha256_file
from kit.trust.keys import Signer
from kit.trust.sign import result_id

Document = dict[str, Any]
# The Hub's own limit for one LFS file without Xet, and a day's run far below it.
MAX_FILE_BYTES = 50 * 10**9
_TEXT = ("result.json", "events.jsonl", "eval/core.json", "eval/chat.json")
_SMALL = ("telemetry.jsonl",)
_BESIDE = ("recipe.toml", "fingerprint.json")


@dataclass(frozen=True)
class Item:
    """One file to publish: from disk, or made here."""

    path: str
    source: Path | bytes

    @cached_property
    def size_bytes(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def digest(self) -> str:
        if isinstance(self.source, bytes):
            return sha256_bytes(self.source)
        return sha256_file(self.source)

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass
class Package:
    """What a submission consists of."""

    submitter: str
    run: Path
    result: Document
    id: str
    repository: str | None  # owner/name; None without weights
    model: list[Item] = field(default_factory=list)
    scratch: TemporaryDirectory[str] | None = None  # holds the exported model
    text: list[Item] = field(default_factory=list)  # all but submission.json
    documents: list[Document] = field(default_factory=list)  # reproductions made with it
    signer: Signer | None = None  # of the run's own key, which then names the submitter

    @property
    def path(self) -> SubmissionPath:
        started = self.result["timing"]["started_at"] or "2026"
        return SubmissionPath(started[:4], self.submitter, self.id)

    def board_items(self, repository: str | None, revision: str | None) -> list[Item]:
        """Everything for the board, pinned to the commit that holds the weights."""
        pin = {
            "schema_version": 1,
            "result_id": self.id,
            "submitter": self.submitter,
            "model": None
            if repository is None
            else {"repository": repository, "revision": revision},
            "files": [
                {"path": item.path, "bytes": item.size_bytes, "sha256": item.digest}
                for item in self.model
            ]
            if repository
            else [],
        }
        if self.signer is not None:
            pin = sign_submission(pin, self.signer)
        items = [Item("submission.json", _json(pin)), *self.text]
        placed = [Item(f"{self.path}/{item.path}", item.source) for item in items]
        return placed + self.document_items()

    def document_items(self) -> list[Item]:
        return document_items(self.documents)


def document_items(documents: Iterable[Document]) -> list[Item]:
    """Signed documents under their names on the board."""
    return [Item(relative_path(document), _json(document)) for document in documents]


def verified(run: Path) -> tuple[Path, Document]:
    """The run folder and its result, when no check has anything against it.

    Raises:
        KitError: It is refused, or evidence is missing; says by which check.
    """
    from kit.run.finished import refuse_unfinished
    from kit.verify import verify_result

    refuse_unfinished(run)
    report = verify_result(run)
    if report.verdict != "consistent":
        bad = [f for f in report.findings if f.status == "fail" or f.missing]
        raise KitError(
            f"the result is {report.verdict}, so it is not submitted",
            hint="`n4090-kit verify` shows every finding",
            check=bad[0].check if bad else None,
            reason=bad[0].message if bad else None,
        )
    folder = run if run.is_dir() else run.parent
    return folder, read_document(folder / "result.json", TEXT_LIMITS["result.json"])


def pack(
    run: Path,
    submitter: str,
    *,
    board: str,
    repository: str | None = None,
    weights: bool = True,
    documents: list[Document] | None = None,
    facts: CardFacts | None = None,
    signer: Signer | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Package:
    """Packs the run at `run` (a folder or its result.json) for `submitter`.

    Args:
        facts: What the model card states beside the result: licence, language, the grid's CO2.
        signer: Signs `submission.json` if it is of the run's own key, so that the key names the
            submitter.

    Raises:
        KitError: It is not verified, a file is too large, or is missing.
    """
    if not is_name(submitter):
        raise SchemaError(f"`{submitter[:60]}` cannot be a submitter's name")
    tell("verifying")
    folder, result = verified(run)
    name = result_id(result)
    if weights and repository is None:
        recipe = "".join(c if c.isalnum() or c in "-_" else "-" for c in result["recipe"]["name"])
        repository = f"{submitter}/n4090-{recipe[:40]}-{name}"
    package = Package(submitter, folder, result, name, repository if weights else None)
    series = card.curves(RunLog.read(folder))
    readme = card.submission_readme(result, series, name)
    package.text = [
        *(Item(path, folder / path) for path in _TEXT if (folder / path).is_file()),
        *(
            Item(path, folder / path)
            for path in _SMALL
            if (folder / path).is_file() and (folder / path).stat().st_size <= TEXT_LIMITS[path]
        ),
        Item("README.md", readme.encode()),
    ]
    package.documents = documents or []
    if signer is not None and signer.public_key == result["submitter"]["public_key"]:
        package.signer = signer
    _refuse_large(package.text, TEXT_LIMITS)
    if package.repository is not None:
        tell("writing the model for transformers")
        exported, package.scratch = exported_items(folder, tell)
        facts = facts or CardFacts()
        package.model = _model_items(package, series, board, facts, exported)
        _refuse_large(package.model, {})
    return package


def tag_name(result_id: str) -> str:
    """The tag of the model repository's commit that holds a result and its files."""
    return f"n4090-{result_id}"


def exported_items(
    run: Path, tell: Callable[[str], None]
) -> tuple[list[Item], TemporaryDirectory[str] | None]:
    """The run's model as plain transformers loads it, under `hf/`, and the folder that holds it.

    Empty where the trainer has no exporter or cannot export this checkpoint: the row is valid
    without it.
    """
    scratch = TemporaryDirectory(prefix="n4090-hf-")
    out = Path(scratch.name) / "hf"
    try:
        files = export_model(find_source(run), out, "hf", name=run.resolve().name)
    except KitError as error:
        scratch.cleanup()
        tell(f"left out: the model for transformers ({error.message})")
        return [], None
    return [Item(f"hf/{file}", out / file) for file in files], scratch


def _model_items(
    package: Package,
    series: dict[str, card.Points],
    board: str,
    facts: CardFacts,
    exported: list[Item],
) -> list[Item]:
    result, folder = package.result, package.run
    assert package.repository is not None
    items = []
    for part in ("tokenizer", "base", "chat"):
        artifact = result["checkpoint"][part]
        for file in artifact["files"] if artifact else ():
            path = f"{artifact['folder']}/{file['path']}"
            if not (folder / path).is_file():
                raise PrerequisiteError(
                    f"`{path}` is not in the run folder",
                    hint="put the checkpoint back, or submit text alone with --no-weights "
                    "(such a row stays at T1)",
                )
            items.append(Item(path, folder / path))
    if not items:
        raise PrerequisiteError(
            "the run left no checkpoint", hint="submit its text alone with --no-weights"
        )
    for path in (*_TEXT, *_SMALL, *_BESIDE):
        if (folder / path).is_file():
            items.append(Item(path, folder / path))
    url = f"https://huggingface.co/{package.repository}/blob/{tag_name(package.id)}/result.json"
    facts = facts._replace(source_url=url)
    readme = card.model_card(
        result,
        series,
        package.repository,
        board,
        package.id,
        facts,
        exported=[item.path for item in exported],
    )
    return [
        *items,
        *exported,
        Item("README.md", readme.encode()),
        Item("curves.svg", card.curves_svg(series).encode()),
    ]


def _refuse_large(items: list[Item], limits: dict[str, int]) -> None:
    for item in items:
        limit = limits.get(item.path, MAX_FILE_BYTES)
        if item.size_bytes > limit:
            raise KitError(
                f"`{item.path}` is too large to submit",
                hint="log fewer steps, or split the checkpoint into shards",
                bytes=item.size_bytes,
                limit=limit,
            )


def read_input(path: Path) -> tuple[Path | None, list[Document]]:
    """What `submit` was given: a run to submit, signed documents to submit, or both.

    A run folder with `reproduction.json` in it is both: the run's own result, and what it says
    about somebody else's row.
    """
    if path.is_dir():
        statement = path / "reproduction.json"
        return path, [_signed(statement)] if statement.is_file() else []
    if not path.is_file():
        raise PrerequisiteError(
            f"there is no `{plain(path.name, 80)}`", hint="give a run folder or its result.json"
        )
    if path.name == "result.json":
        return read_input(path.parent)
    document = _signed(path)
    beside = path.parent / "result.json"
    if document.get("kind") == "run" and beside.is_file():
        own = read_document(beside, TEXT_LIMITS["result.json"])
        if result_id(own) == document["result_id"]:
            return path.parent, [document]
    return None, [document]


def _signed(path: Path) -> Document:
    document = read_document(path, MAX_DOCUMENT_BYTES)
    check_document(document, kind_of(document))
    return document


def _json(value: Document) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

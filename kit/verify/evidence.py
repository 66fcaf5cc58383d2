"""What a verifier has before it: the result, and whatever of the run folder lies beside it.

Everything is read once, strictly, without following links or paths that lead out of the folder, and
nothing is executed. Evidence that is absent or that another check has refused raises; the runner
turns that into a skip with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kit.errors import SchemaError
from kit.events import Data, Event, Header, Model
from kit.files import read_regular
from kit.recipe import Recipe, parse_recipe
from kit.result_form import Result
from kit.run_log import LOG_KIND, RunLog
from kit.telemetry_summary import TELEMETRY_KIND, Summary
from kit.tracks import is_ranked
from kit.trainer import Course
from kit.trust.board_record import BoardRecord, board_around
from kit.trust.canonical import parse_strict
from kit.trust.chain import Chain, ChainProblem, read_chain, scan_chain
from kit.trust.digest import DigestCache, Progress, sha256_bytes, sha256_file
from kit.verify import recompute
from kit.verify.expected import Expected

if TYPE_CHECKING:
    from kit.verify.checks.replay import Replay

MAX_RESULT_BYTES = 4 * 2**20
# A result holds a few hundred values. The schema's check takes a kilobyte for a wrong one.
MAX_RESULT_VALUES = 10_000
MAX_EVALUATION_BYTES = 64 * 2**20
MAX_EVENTS_BYTES = 256 * 2**20
MAX_TELEMETRY_BYTES = 256 * 2**20

Document = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the caller gives a verifier besides the result."""

    strict: bool = False
    allowed_signers: Path | None = None
    revoked: Path | None = None  # without it, the list of the board that the result lies in
    board: BoardRecord | None = None  # the board that judges it
    identities: Path | None = None  # a snapshot that `keys identify` wrote
    re_evaluate: bool = False
    core: Path | None = None
    data: Path | None = None
    sft: Path | None = None  # conversations, of a run whose pretraining reads them
    device: str = "cpu"
    group: tuple[Path, ...] = ()
    against: tuple[Path, ...] = ()  # other rows: results, or folders of them
    contamination: bool = False
    replay: int = 0  # windows of steps to do again
    replay_steps: int = 8  # steps of each
    cache: DigestCache | None = None  # digests of this machine's files, computed here before
    progress: Progress | None = None  # called with the bytes hashed since its last call


class Absent(Exception):
    """Evidence that could lie beside the result does not."""


class Refused(Exception):
    """Evidence that another check has refused; nothing more can be concluded from it."""


class Irrelevant(Exception):
    """The check does not apply to this run."""


@dataclass
class Telemetry:
    """A telemetry chain, summed up, and where its samples lie in time."""

    chain: Chain
    summary: Summary
    times: list[tuple[int, int]] = field(default_factory=list)  # (t_ms, wall_ms)
    power: list[tuple[int, float]] = field(default_factory=list)  # (t_ms, GPU W)
    uuid_hashes: set[str] = field(default_factory=set)
    backwards: int = 0
    malformed: int = 0


def read_telemetry(path: Path) -> Telemetry:
    """Reads a telemetry chain through once; what is wrong with it is in `chain.problems`."""
    summary = Summary()
    found = Telemetry(Chain(head=""), summary)
    last = -1

    def visit(record: Document) -> None:
        nonlocal last
        try:
            at_ms = record["t_ms"]
            found.times.append((at_ms, record["wall_ms"]))
            if at_ms < last:
                found.backwards += 1
            last = at_ms
            summary.add(record)
            watts = record.get("gpu_power_w")
            if watts is not None:
                found.power.append((at_ms, float(watts)))
            if record.get("gpu_uuid_hash"):
                found.uuid_hashes.add(record["gpu_uuid_hash"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            found.malformed += 1

    try:
        found.chain = scan_chain(path, TELEMETRY_KIND, visit, max_bytes=MAX_TELEMETRY_BYTES)
    except SchemaError as error:
        found.chain.problems.append(ChainProblem(0, str(error)))
    return found


@dataclass
class Evidence:
    """A result and its run folder. `document` is strictly parsed and fits the schema."""

    document: Document
    folder: Path
    options: Options

    @cached_property
    def result(self) -> Result:
        """The same document, typed."""
        return Result.of(self.document)

    def gpus(self, when: str = "before") -> list[dict[str, Any]]:
        """The GPUs of a fingerprint; empty where none was seen or nothing was measured."""
        found = self.result.hardware.before if when == "before" else self.result.hardware.after
        return (found or {}).get("gpus") or []

    @cached_property
    def revoked(self) -> Path | None:
        """The list of revoked keys: the caller's, or that of the board the result lies in."""
        if self.options.revoked is not None:
            return self.options.revoked
        board = self.options.board or board_around(self.folder / "result.json")
        return board.revoked if board else None

    # --- the recipe ---------------------------------------------------------------------------

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe in the result's own text."""
        try:
            text = self.result.recipe.text
            recipe = parse_recipe(text, folder=self.folder, label="recipe", of_result=True)
            recipe.facts  # noqa: B018  whether the trainer can read its part
            return recipe
        except SchemaError as error:
            raise Refused(f"the recipe cannot be read ({error.message.splitlines()[0]})") from None

    @property
    def track(self) -> str:
        return self.result.recipe.track

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU did the work, as far as track, log and fingerprint say."""
        if is_ranked(self.track):
            return True  # the track's rule; a log that says otherwise is not excused by it
        devices = [event.data.device or "" for event in self.log.of("pretrain", Model)]
        if any(device.startswith("cuda") for device in devices):
            return True
        if self.header.device == "cpu":
            return False
        return bool(self.gpus()) and "cpu" not in devices

    @cached_property
    def expected(self) -> Expected:
        """What the log of a run of this recipe must look like."""
        return Expected(self.recipe)

    @property
    def course(self) -> Course | None:
        """What the recipe's trainer says that the log must show; None where it does not say."""
        return self.expected.course

    @property
    def reference_trainer(self) -> bool:
        """Whether the reference trainer makes the run, by the recipe's command and loader."""
        return self.expected.reference

    @property
    def vocabulary(self) -> int | None:
        """Tokens of the run's vocabulary, by the last model event."""
        models = self.log.of("pretrain", Model)
        size = models[-1].data.vocab_size if models else None
        return size if isinstance(size, int) and size > 0 else None

    # --- the event log ------------------------------------------------------------------------

    @cached_property
    def chain(self) -> Chain:
        """events.jsonl as it lies there, intact or not."""
        try:
            return read_chain(self.file("events.jsonl"), LOG_KIND, max_bytes=MAX_EVENTS_BYTES)
        except (SchemaError, Refused) as error:
            chain = Chain(head="")
            chain.problems.append(ChainProblem(0, str(error)))
            return chain

    @cached_property
    def log_problems(self) -> list[tuple[str, str, Any, Any]]:
        """(message, place, expected, found) of everything that makes the log not the signed one."""
        chain, signed = self.chain, self.result.log
        found: list[tuple[str, str, Any, Any]] = [
            (problem.message, f"events.jsonl, line {problem.line}", None, None)
            for problem in chain.problems
        ]
        if chain.torn:
            found.append(("the log ends in a torn line", "events.jsonl", 0, f"{chain.torn} bytes"))
        for name, stated, value in (
            ("count", signed.count, chain.count),
            ("bytes", signed.bytes, chain.bytes),
            ("head", signed.head, chain.head),
        ):
            if stated != value:
                found.append(
                    ("the log is not the one that was signed", f"log.{name}", stated, value)
                )
        if not chain.problems:
            found += [
                (message, f"events.jsonl, line {line}", None, None)
                for line, message in self._events[1]
            ]
        return found

    @cached_property
    def log(self) -> RunLog:
        """What the log says happened; only when V04 has nothing against it."""
        if self.log_problems:
            raise Refused("the log cannot be relied on (V04)")
        return RunLog.from_events(self._events[0], self.chain)

    @cached_property
    def _events(self) -> tuple[list[Event[Data]], list[tuple[int, str]]]:
        return read_events(self.chain.records)

    @property
    def header(self) -> Header:
        return self.log.header

    @property
    def complete(self) -> bool:
        stop = self.log.run_stop
        return stop is not None and stop.data.status == "complete"

    # --- telemetry ----------------------------------------------------------------------------

    @cached_property
    def telemetry(self) -> Telemetry:
        """telemetry.jsonl, read through once."""
        try:
            path = self.file("telemetry.jsonl")
        except Refused as error:
            return Telemetry(Chain(head="", problems=[ChainProblem(0, str(error))]), Summary())
        return read_telemetry(path)

    # --- files --------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """A plain file of the run folder.

        Raises:
            Absent: It is not there.
            Refused: It is a link or no file.
        """
        path = self.folder / name
        if path.is_symlink():
            raise Refused(f"{name} is a symbolic link")
        if not path.exists():
            raise Absent(f"{name} is not beside the result")
        if not path.is_file():
            raise Refused(f"{name} is not a regular file")
        return path

    def evaluation(self, stage: str) -> Document | None:
        """The result's section of an evaluation, recomputed from its file; None without one."""
        document = self.evaluation_file(stage)
        if document is None:
            return None
        return recompute.core(document) if stage == "core" else recompute.chat(document)

    def evaluation_file(self, stage: str) -> Document | None:
        """What an evaluation wrote, with its `digest`; None when there was none.

        Raises:
            Absent: The file is not beside the result.
            Refused: The file is not the one that the log names.
        """
        artifact = self.log.artifacts.get(stage)
        if artifact is None:
            return None
        entry = artifact.files[0]
        relative = f"{artifact.folder}/{entry.path}"
        if not safe_path(relative) or not self.inside(relative):
            raise Refused(f"{relative!r} leads out of the run folder (V21)")
        try:
            data = read_regular(self.file(relative), MAX_EVALUATION_BYTES)
        except SchemaError as error:
            raise Refused(f"{relative}: {error.message} (V21)") from None
        if sha256_bytes(data) != entry.sha256:
            raise Refused(f"{relative} is not the file that the log names (V21)")
        parsed = parse_strict(data, max_bytes=MAX_EVALUATION_BYTES, name=relative)
        return {**parsed, "digest": entry.sha256}

    def artifact_file(self, stage: str, name: str) -> Path:
        """A file of a stage's outputs, held against the log's digest.

        Raises:
            Absent: It is not beside the result.
            Refused: It is not the one that the log names.
        """
        artifact = self.log.artifacts[stage]
        entry = next(file for file in artifact.files if file.path == name)
        relative = f"{artifact.folder}/{name}"
        if not safe_path(relative) or not self.inside(relative):
            raise Refused(f"{relative!r} leads out of the run folder (V21)")
        path = self.file(relative)
        if path.stat().st_size != entry.bytes or self.digest(relative) != entry.sha256:
            raise Refused(f"{relative} is not the file that the log names (V21)")
        return path

    def artifact_folder(self, stage: str, *, skip: str = "\0") -> Path:
        """The folder of a stage's outputs, every file held against the log's digest.

        Args:
            skip: What begins like this is not looked at.
        """
        artifact = self.log.artifacts.get(stage)
        if artifact is None:
            raise Irrelevant(f"the run left no outputs of {stage}")
        for file in artifact.files:
            if not file.path.startswith(skip):
                self.artifact_file(stage, file.path)
        return self.folder / artifact.folder

    @cached_property
    def replayed(self) -> Replay:
        """Steps done again by the installed trainer; minutes, and only when asked for."""
        from kit.verify.checks.replay import run_replay

        return run_replay(self)

    def inside(self, relative: str) -> bool:
        """Whether no folder on the way to `relative` is a link."""
        path = self.folder
        for part in PurePosixPath(relative).parts:
            path = path / part
            if path.is_symlink():
                return False
        return True

    def digest(self, relative: str) -> str:
        options = self.options
        return sha256_file(self.folder / relative, progress=options.progress, cache=options.cache)

    def listing(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """Everything under a folder of the run, links not followed."""
        pending = [self.folder / folder]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))


def read_result(path: Path) -> Any:
    """What a result file holds: strictly parsed, its form not yet checked.

    Raises:
        OSError: It cannot be read.
        SchemaError: It is a link, no strict JSON, or larger than a result can be.
    """
    data = read_regular(path, MAX_RESULT_BYTES)
    document = parse_strict(data, max_bytes=MAX_RESULT_BYTES, name="the result")
    pending, count = [document], 0
    while pending:
        value = pending.pop()
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list):
            count += len(value)
            if count > MAX_RESULT_VALUES:
                raise SchemaError("the result holds too many values", limit=MAX_RESULT_VALUES)
            pending += inner
    return document


def safe_path(path: str) -> bool:
    """Whether a manifest may name `path`: relative, plain, in one form, inside its folder."""
    if not path or len(path) > 400 or not path.isascii() or not path.isprintable():
        return False
    parts = PurePosixPath(path).parts
    return (
        "\\" not in path
        and ":" not in path
        and not path.startswith("/")
        and all(part not in ("..", ".") for part in path.split("/"))
        and "/".join(parts) == path
    )


def read_events(records: list[Document]) -> tuple[list[Event[Data]], list[tuple[int, str]]]:
    """The events of a log, and (line, problem) for at most ten records that are not events."""
    if not records:
        return [], [(1, "the log is empty")]
    if records[0].get("ev") != "header":
        return [], [(1, "the log does not begin with a header")]
    events: list[Event[Data]] = []
    problems: list[tuple[int, str]] = []
    for line, record in enumerate(records, start=1):
        try:
            events.append(Event.from_json(record))
        except SchemaError as error:
            problems.append((line, error.message))
        else:
            if line > 1 and record["ev"] == "header":
                problems.append((line, "a second header"))
        if len(problems) == 10:
            break
    return events, problems

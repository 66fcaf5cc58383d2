"""Running a study: the loop that joins ladder, executor and journal, and goes on where it was.

Everything a study knows lies in its folder. A finished trial is found again by what determines it;
promotions are read back from the journal; so a study that was killed, or whose file gained a
change, does only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomlkit

from reference.config.resolve import resolve_recipe, resolve_recipes
from reference.errors import TrainerError
from reference.files import write_whole
from reference.lab.executor import Executor
from reference.lab.halving import Ladder, Slot
from reference.lab.study import BASELINE, Study, trial_id
from reference.lab.trial import COMPLETE, FAILED, OUTCOME, Outcome, Trial
from reference.rows.documents import find_shards, shard_rows
from reference.rows.reader import files_ending

ATTEMPTS = 3  # of a trial that failed for reasons of the machine
WAIT_S = 0.5


@dataclass
class Progress:
    """What the live table shows; also the study's result once it is over."""

    outcomes: dict[Slot, Outcome] = field(default_factory=dict)
    running: dict[Slot, float] = field(default_factory=dict)  # started, monotonic seconds
    losses: dict[Slot, float] = field(default_factory=dict)
    attempts: dict[Slot, int] = field(default_factory=dict)
    reused: int = 0
    wall_s: float = 0.0
    overhead_s: float = 0.0  # CPU seconds of this process
    decisions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where and with what a study runs."""

    folder: Path
    data: Path | None
    core: Path | None
    device: str
    threads: int
    keep_weights: bool = False
    sft: Path | None = None


class StudyRun:
    """One study in one folder.

    Args:
        recipes: (arm, scale) -> resolved recipe, all accepted by the kit.
    """

    def __init__(
        self, study: Study, place: Place, recipes: Mapping[tuple[str, str], dict[str, Any]]
    ) -> None:
        self.study, self.place, self.recipes = study, place, recipes
        self.progress = Progress()
        self._budgets = {scale.name: scale for scale in study.scales}
        self._data = {arm.name: arm.data or place.data for arm in study.arms}
        self._identities = {path: data_identity(path) for path in set(self._data.values())}
        self.ladder = Ladder(
            [arm.name for arm in study.arms],
            [scale.name for scale in study.scales],
            {scale.name: study.seeds_at(scale.name) for scale in study.scales},
            study.halving,
            self.progress.losses,
            controls=[arm.name for arm in study.arms if arm.control],
            up_to={arm.name: arm.up_to for arm in study.arms if arm.up_to},
        )
        self._find_finished()

    def run(self, executor: Executor, on_change: Callable[[], None] = lambda: None) -> Progress:
        """Runs all that is missing. A failed trial is started again, then left; others go on."""
        began, cpu = time.perf_counter(), time.process_time()
        self._note("begin", trials_known=self.progress.reused)
        state, told = self.progress, 0
        slots: dict[str, Slot] = {}
        try:
            while True:
                while executor.free() and (slot := self.ladder.next()) is not None:
                    trial = self.trial(slot)
                    slots[trial.id] = slot
                    state.running[slot] = time.monotonic()
                    state.attempts[slot] = state.attempts.get(slot, 0) + 1
                    self._note("start", trial=trial.id, **slot._asdict(), limits=trial.limits)
                    executor.submit(trial)
                for promotion in self.ladder.promotions[told:]:
                    state.decisions.append(str(promotion))
                    self._note("promote", text=str(promotion), arm=promotion.arm)
                    told += 1
                if not state.running:
                    break
                on_change()
                for trial, outcome in executor.wait(WAIT_S):
                    self._take(slots[trial.id], trial, outcome)
        finally:
            executor.close()
            state.wall_s = time.perf_counter() - began
            state.overhead_s = time.process_time() - cpu
            self._note("end", wall_s=state.wall_s, overhead_s=state.overhead_s)
        return state

    def trial(self, slot: Slot) -> Trial:
        """The trial of this place in the study, with the limits known by now."""
        recipe = self.recipes[slot.arm, slot.scale]
        data = self._data[slot.arm]
        talks = conversations_beside(data, self.place.sft) if reads_conversations(recipe) else None
        identity = self._identities[data] + data_identity(talks, ".jsonl")
        name = trial_id(recipe, slot.seed, identity)
        place = self.place
        folder = place.folder / "trials" / f"{slot.arm}-{slot.scale}-{slot.seed}-{name}"
        return Trial(
            id=name + f"-{slot.arm}",
            arm=slot.arm,
            scale=slot.scale,
            seed=slot.seed,
            recipe=recipe,
            folder=str(folder.resolve()),
            shared=str((place.folder / "shared").resolve()),
            data=None if data is None else str(data.resolve()),
            core=None if place.core is None else str(place.core.resolve()),
            recipe_dir=str(Path(self.study.baseline).resolve().parent),
            device=place.device,
            threads=place.threads,
            limits=() if slot.arm == BASELINE else self._limits(slot),
            keep_weights=place.keep_weights,
            sft=None if talks is None else str(talks.resolve()),
        )

    def _limits(self, asked: Slot) -> tuple[tuple[float, float], ...]:
        """The stop rule: the baseline's worst seed at each milestone, and a margin."""
        own = next(arm.stop_margin for arm in self.study.arms if arm.name == asked.arm)
        margin = self.study.halving.stop_margin if own is None else own
        if not margin:
            return ()
        worst: dict[float, float] = {}
        for slot, outcome in self.progress.outcomes.items():
            if slot[:2] == (BASELINE, asked.scale) and outcome.status == COMPLETE:
                for row in outcome.evals:
                    if 0.1 < row[0] < 1.0:
                        mark = round(row[0], 2)
                        worst[mark] = max(worst.get(mark, 0.0), row[5])
        return tuple((mark, bpb * (1 + margin)) for mark, bpb in sorted(worst.items()))

    def _take(self, slot: Slot, trial: Trial, outcome: Outcome) -> None:
        state = self.progress
        state.running.pop(slot, None)
        self._note(
            "stop",
            trial=trial.id,
            **slot._asdict(),
            status=outcome.status,
            reason=outcome.reason,
            val_bpb=outcome.val_bpb,
        )
        if outcome.status == FAILED and state.attempts[slot] < ATTEMPTS:
            self.ladder.put_back(slot)
            return
        if outcome.status != COMPLETE:
            state.decisions.append(
                f"{slot.arm} at {slot.scale}, seed {slot.seed}: {outcome.status}: {outcome.reason}"
            )
        self._keep(slot, outcome)

    def _keep(self, slot: Slot, outcome: Outcome) -> None:
        self.progress.outcomes[slot] = outcome
        self.progress.losses[slot] = outcome.loss

    def _find_finished(self) -> None:
        """Reads back the outcomes of an earlier run of this study; failed ones are done again."""
        for arm in self.study.arms:
            for scale in self.study.scales:
                for seed in self.study.seeds_at(scale.name):
                    slot = Slot(arm.name, scale.name, seed)
                    file = Path(self.trial(slot).folder) / OUTCOME
                    if not file.is_file():
                        continue
                    outcome = Outcome.from_json(json.loads(file.read_text()))
                    if outcome.status != FAILED:
                        self._keep(slot, outcome)
                        self.progress.reused += 1

    def _note(self, ev: str, **data: Any) -> None:
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "ev": ev, **data}
        with (self.place.folder / "journal.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def reads_conversations(recipe: Mapping[str, Any]) -> bool:
    """Whether pretraining itself reads conversations."""
    return bool(recipe["pretrain"]["sft_share"] > 0)


def conversations_beside(data: Path | None, given: Path | None) -> Path | None:
    """The folder given, or the `sft` in or beside the shards, as the kit's run finds it."""
    if given is not None or data is None:
        return given
    places = (data / "sft", data.parent / "sft")
    return next((place for place in places if files_ending(place, ".jsonl")), None)


def open_study(study: Study, place: Place) -> StudyRun:
    """Checks every recipe of the study with the kit; raises `TrainerError` naming the bad ones."""
    place.folder.mkdir(parents=True, exist_ok=True)
    resolved = resolve_recipe(study.baseline)
    if resolved["data"]["kind"] == "stories" and place.data is None:
        raise TrainerError(
            "bad_input",
            f"recipe {study.baseline} reads stories that the kit makes",
            "Make them with `n4090-kit run --recipe smoke`; --data WORK/data/stories-…/pretrain.",
        )
    if study.core is not None and place.core is None:
        raise TrainerError(
            "bad_input", f"study {study.name} scores CORE tasks", "Name the bundle with --core DIR."
        )
    pairs = [(arm, scale) for arm in study.arms for scale in study.scales]
    documents = {
        f"{arm.name}-{scale.name}": study.recipe(resolved, arm, scale) for arm, scale in pairs
    }
    checked = _checked(documents, place.folder / "recipes")
    problems = [
        f"change {arm.name} at {scale.name}: {item.message}"
        for (arm, scale), item in zip(pairs, checked, strict=True)
        if isinstance(item, TrainerError)
    ]
    if problems:
        raise TrainerError(
            "bad_input",
            f"{len(problems)} of {len(pairs)} recipes of the study are wrong:\n"
            + "\n".join(problems),
            "`n4090-kit recipes schema` prints every field with its meaning.",
        )
    recipes = {
        (arm.name, scale.name): recipe
        for (arm, scale), recipe in zip(pairs, checked, strict=True)
        if not isinstance(recipe, TrainerError)
    }
    for arm in study.arms:
        reading = any(reads_conversations(recipes[arm.name, scale.name]) for scale in study.scales)
        if reading and conversations_beside(arm.data or place.data, place.sft) is None:
            raise TrainerError(
                "bad_input",
                f"change {arm.name} mixes conversations into pretraining, and there are none",
                "Name their folder with --sft DIR, or put it as sft/ in or beside --data.",
            )
    return StudyRun(study, place, recipes)


def check_shards(run: StudyRun) -> None:
    """Opens each shard that a trial will read, before hours of trials do.

    Raises:
        TrainerError: One is unreadable, empty or lacks its column; names file and change.
    """
    known: set[tuple[Path, str, bool]] = set()
    for arm in run.study.arms:
        data = arm.data or run.place.data
        for scale in run.study.scales:
            section = run.recipes[arm.name, scale.name]["data"]
            wanted = data, section["text_column"], section["anneal"] > 0
            if data is None or wanted in known:
                continue
            known.add((data, *wanted[1:]))
            try:
                shards = find_shards(data, anneal=wanted[2])
                for path in (*shards.train, *shards.validation, *shards.anneal):
                    shard_rows(path, wanted[1])
            except TrainerError as error:
                message = f"change {arm.name} cannot read its data: {error.message}"
                raise TrainerError(error.kind, message, error.hint) from error


def _checked(
    documents: Mapping[str, dict[str, Any]], folder: Path
) -> list[dict[str, Any] | TrainerError]:
    """The recipes as the kit resolves them; kept, so that going on does not ask again."""
    found: dict[str, dict[str, Any] | TrainerError] = {}
    asked: dict[str, str] = {}
    for name, document in documents.items():
        text = tomlkit.dumps(document)
        digest = hashlib.sha256(text.encode()).hexdigest()
        answer = folder / f"{name}.json"
        known = json.loads(answer.read_text()) if answer.is_file() else {}
        if known.get("digest") == digest:
            found[name] = known["recipe"]
        else:
            write_whole(folder / f"{name}.toml", text.encode())
            asked[name] = digest
    answers = resolve_recipes([str(folder / f"{name}.toml") for name in asked]) if asked else []
    for (name, digest), recipe in zip(asked.items(), answers, strict=True):
        found[name] = recipe
        if not isinstance(recipe, TrainerError):
            kept = json.dumps({"digest": digest, "recipe": recipe})
            write_whole(folder / f"{name}.json", kept.encode())
    return [found[name] for name in documents]


def data_identity(folder: Path | None, ending: str = ".parquet") -> str:
    """Names and sizes of a data folder's files: enough to notice other data."""
    if folder is None:
        return ""
    files = files_ending(folder, ending)
    if not files:
        raise TrainerError(
            "bad_input",
            f"{folder} holds no *{ending} file",
            "Name the corpus with --data DIR, conversations with --sft DIR.",
        )
    return ";".join(f"{file.name}:{file.stat().st_size}" for file in files)

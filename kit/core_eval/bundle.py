"""The CORE bundle: which tasks, which files, and proof that they are the ones everybody uses.

A bundle is a folder with `core.yaml` (the tasks), `eval_meta_data.csv` (the random baselines) and
`eval_data/` (one JSON object a line). The kit ships the sha256 of each file of the real bundle; a
bundle whose tasks are CORE's must match them byte for byte. A bundle with tasks of its own has the
same layout, is labelled `custom`, and is refused unless the caller asks for it.
"""

from __future__ import annotations

import csv
import difflib
import functools
import importlib.resources
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from kit.errors import PrerequisiteError, SchemaError
from kit.trust.digest import FileDigest, manifest_digest, sha256_file

TaskKind = Literal["multiple_choice", "schema", "language_modeling"]
Item = Mapping[str, Any]

TASKS_FILE = "core.yaml"
BASELINES_FILE = "eval_meta_data.csv"
DATA_FOLDER = "eval_data"
SHUFFLE_SEED = 1337

# The fields of an item by kind: name -> whether it is a list of texts.
FIELDS: dict[TaskKind, dict[str, bool]] = {
    "multiple_choice": {"query": False, "choices": True},
    "schema": {"context_options": True, "continuation": False},
    "language_modeling": {"context": False, "continuation": False},
}
OPTIONS: dict[TaskKind, str | None] = {
    "multiple_choice": "choices",
    "schema": "context_options",
    "language_modeling": None,
}


@dataclass(frozen=True)
class Task:
    """One task of a bundle; `baseline` is the accuracy of a guess, in percent."""

    label: str
    file: str  # relative to the bundle, POSIX
    kind: TaskKind
    shots: int
    delimiter: str
    baseline: float


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `digest` covers every file that the tasks of the whole bundle read."""

    root: Path
    kind: Literal["core", "custom"]
    digest: str
    tasks: tuple[Task, ...]
    selected: tuple[Task, ...]  # what is evaluated, in bundle order

    @property
    def whole(self) -> bool:
        """Whether every task of the bundle is evaluated."""
        return len(self.selected) == len(self.tasks)


@functools.cache
def core_facts() -> dict[str, Any]:
    """The facts of the real bundle: `digest`, `files` (sha256, bytes), `baselines_v2`."""
    text = importlib.resources.files("kit.core_eval").joinpath("bundle.json").read_text("utf-8")
    return cast(dict[str, Any], json.loads(text))


def open_bundle(root: Path, *, tasks: Sequence[str] = (), allow_custom: bool = False) -> Bundle:
    """The bundle at `root`, its files checked by digest.

    Args:
        tasks: Labels of the tasks to evaluate; none means all.
        allow_custom: Accept a bundle with tasks of its own, which gives no CORE.

    Raises:
        PrerequisiteError: The folder or one of its files is missing.
        SchemaError: A file differs from the real bundle's, cannot be read, or a task is unknown.
    """
    if not root.is_dir():
        raise PrerequisiteError(
            f"there is no CORE bundle at {root}",
            hint="Give its folder with --core, or fetch it: "
            "`n4090-kit prepare --recipe nano --only core`.",
        )
    known = core_facts()["files"]
    every = _read_tasks(root)
    custom = any(task.file not in known for task in every)
    if not custom:
        _check_file(root, TASKS_FILE, known)
        _check_file(root, BASELINES_FILE, known)
    elif not allow_custom:
        raise SchemaError(
            f"{root / TASKS_FILE} lists tasks that are not part of CORE, so its score is no CORE",
            hint="Use the real bundle, or say that this one is meant (--allow-custom).",
            expected="sha256:" + known[TASKS_FILE]["sha256"],
            found=_sha256(root / TASKS_FILE),
        )
    selected = _select(every, tasks)
    for file in sorted({task.file for task in selected}):
        if not (root / file).is_file():
            raise PrerequisiteError(
                f"the bundle has no file {file}", hint=f"Fetch the bundle again into {root}."
            )
        if not custom:
            _check_file(root, file, known)
    digest = core_facts()["digest"] if not custom else _digest(root, every)
    return Bundle(root, "custom" if custom else "core", digest, every, selected)


def load_items(bundle: Bundle, task: Task, *, max_per_task: int = -1) -> list[Item]:
    """The items of `task` in evaluation order: shuffled by seed 1337, then cut to the first ones.

    A cap below what the examples take leaves enough of them: item 0 needs `shots` others to be
    shown. How many are scored is `scored_items`.

    Raises:
        SchemaError: A line that is no item of the task's kind, or too few items for the shots.
    """
    path = bundle.root / task.file
    items: list[Item] = []
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                item = json.loads(line.strip())
                _check_item(item, task.kind)
            except ValueError as error:
                raise SchemaError(f"{task.file}, line {number}: {error}") from error
            items.append(item)
    random.Random(SHUFFLE_SEED).shuffle(items)
    if max_per_task > 0:
        items = items[: max(max_per_task, task.shots + 1)]
    if len(items) < task.shots + 1:
        raise SchemaError(
            f"task {task.label} has {len(items)} items, too few for {task.shots} examples",
            hint=f"The task's file needs at least {task.shots + 1} items.",
        )
    return items


def scored_items(items: Sequence[Item], max_per_task: int) -> range:
    """Indices of the items that are scored; the rest are only shown as examples."""
    return range(min(len(items), max_per_task) if max_per_task > 0 else len(items))


def _read_tasks(root: Path) -> tuple[Task, ...]:
    import yaml

    tasks_path, baselines_path = root / TASKS_FILE, root / BASELINES_FILE
    for path in (tasks_path, baselines_path):
        if not path.is_file():
            raise PrerequisiteError(
                f"{root} is no CORE bundle: it has no {path.name}",
                hint="The folder holds core.yaml, eval_meta_data.csv and eval_data/.",
            )
    try:
        entries = yaml.safe_load(tasks_path.read_text("utf-8"))["icl_tasks"]
        rows = csv.DictReader(io.StringIO(baselines_path.read_text("utf-8"), newline=""))
        baselines = {row["Eval Task"]: row["Random baseline"] for row in rows}
        tasks = tuple(
            Task(
                label=str(entry["label"]),
                file=f"{DATA_FOLDER}/{entry['dataset_uri']}",
                kind=_kind(entry["icl_task_type"]),
                shots=int(entry["num_fewshot"][0]),
                delimiter=str(entry.get("continuation_delimiter", " ")),
                baseline=float(baselines[entry["label"]]),
            )
            for entry in entries
        )
    except (yaml.YAMLError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        known = core_facts()["files"]
        raise SchemaError(
            f"{root}: {TASKS_FILE} and {BASELINES_FILE} do not describe a bundle ({error!r})",
            hint="Fetch the bundle again.",
            expected=f"{TASKS_FILE} sha256:{known[TASKS_FILE]['sha256']}",
            found=f"{TASKS_FILE} {_sha256(tasks_path)}",
        ) from error
    for task in tasks:
        if ".." in Path(task.file).parts or Path(task.file).is_absolute():
            raise SchemaError(f"task {task.label} reads {task.file}, outside the bundle")
    if not tasks or len({task.label for task in tasks}) != len(tasks):
        raise SchemaError(f"{tasks_path}: the tasks need labels of their own, one at least")
    return tasks


def _kind(name: Any) -> TaskKind:
    if name not in FIELDS:
        raise ValueError(f"task type {name!r}, known are {', '.join(FIELDS)}")
    return cast(TaskKind, str(name))


def _select(tasks: tuple[Task, ...], labels: Sequence[str]) -> tuple[Task, ...]:
    known = [task.label for task in tasks]
    unknown = [label for label in labels if label not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise SchemaError(
            f"the bundle has no task {', '.join(unknown)}",
            hint=f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}.",
        )
    return tuple(task for task in tasks if not labels or task.label in labels)


def _check_file(root: Path, file: str, known: Mapping[str, Any]) -> None:
    expected, found = f"sha256:{known[file]['sha256']}", _sha256(root / file)
    if found != expected:
        raise SchemaError(
            f"{file} is not the file of the CORE bundle",
            hint="Fetch the bundle again; a score on other data is no CORE.",
            expected=expected,
            found=found,
        )


def _check_item(item: object, kind: TaskKind) -> None:
    if not isinstance(item, dict):
        raise ValueError("no JSON object")
    for field, is_list in FIELDS[kind].items():
        value = item.get(field)
        texts = value if is_list else [value]
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            expected = "a list of texts" if is_list else "a text"
            raise ValueError(f"a {kind} item needs {field!r}, {expected}")
    options = OPTIONS[kind]
    if options is not None:
        gold, count = item.get("gold"), len(item[options])
        if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < count:
            raise ValueError(f"'gold' is {gold!r}, not an index into {options!r}")


def _sha256(path: Path) -> str:
    return sha256_file(path.resolve())  # a bundle in a download cache is made of links


def _digest(root: Path, tasks: tuple[Task, ...]) -> str:
    """The digest of a custom bundle, made like the real one's."""
    files = {TASKS_FILE, BASELINES_FILE, *(t.file for t in tasks if (root / t.file).is_file())}
    return manifest_digest(
        [FileDigest(file, (root / file).stat().st_size, _sha256(root / file)) for file in files]
    )

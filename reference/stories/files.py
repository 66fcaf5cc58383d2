"""The input folder of a made world: shards, bundle, conversations, questions."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reference.stories.exams import (
    chat_questions,
    conversation,
    core_tasks,
)
from reference.stories.texts import (
    document,
)
from reference.stories.world import (
    World,
)

VERSION = 1  # raised when the same seed gives other text
SHARD_DOCUMENTS = 5000
VALIDATION_SHARE = 0.02
CONVERSATIONS = 4000


def write_stories(root: Path, *, seed: int, documents: int) -> None:
    """Fills `root` with pretrain/, core/, sft/ and chat_eval/; a function of its arguments alone.

    The folder appears whole or not at all; one that is there already is kept when it was made with
    the same arguments by the same version, and replaced otherwise.
    """
    origin = json.dumps({"version": VERSION, "seed": seed, "documents": documents}) + "\n"
    marker = root / "stories.json"
    if marker.is_file() and marker.read_text() == origin:
        return
    temporary = root.with_name(f"{root.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    world = World(seed)
    _write_pretrain(temporary / "pretrain", world, seed, documents)
    _write_core(temporary / "core", world, seed)
    talks = [conversation(world, seed, index) for index in range(CONVERSATIONS)]
    _write_lines(temporary / "sft" / "stories.jsonl", talks)
    for name, rows in chat_questions(world, seed).items():
        _write_lines(temporary / "chat_eval" / f"{name}.jsonl", rows)
    (temporary / marker.name).write_text(origin)
    shutil.rmtree(root, ignore_errors=True)
    temporary.replace(root)


def _write_pretrain(folder: Path, world: World, seed: int, documents: int) -> None:
    folder.mkdir(parents=True)
    held_out = max(1, int(VALIDATION_SHARE * documents))
    ends = [*range(SHARD_DOCUMENTS, documents - held_out, SHARD_DOCUMENTS)]
    begin = 0
    for number, end in enumerate([*ends, documents - held_out, documents]):
        rows = [document(world, seed, index) for index in range(begin, end)]
        texts, sources = zip(*rows, strict=True)
        table = pa.table({"text": pa.array(texts), "source": pa.array(sources)})
        path = folder / f"stories-{number:03}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=1000)
        begin = end


def _write_core(folder: Path, world: World, seed: int) -> None:
    tasks = core_tasks(world, seed)
    entries = []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        (
            "Eval Task",
            "Task Category",
            "Task Type",
            "#shots",
            "#datapoints",
            "Random baseline",
            "Centered Metric?",
            "Description",
        )
    )
    for task in tasks:
        path = f"{task['category'].replace(' ', '_')}/{task['label']}.jsonl"
        _write_lines(folder / "eval_data" / path, task["rows"])
        entries.append(
            "-\n"
            f"  label: {task['label']}\n"
            f"  dataset_uri: {path}\n"
            f"  num_fewshot: [{task['shots']}]\n"
            f"  icl_task_type: {task['type']}\n"
            # A JSON string is a YAML string, line break and all.
            f"  continuation_delimiter: {json.dumps(task['delimiter'])}\n"
        )
        writer.writerow(
            (
                task["label"],
                task["category"],
                task["type"].replace("_", " "),
                task["shots"],
                len(task["rows"]),
                task["baseline"],
                "",
                "made by reference/stories.py",  # its old name is part of known digests
            )
        )
    (folder / "core.yaml").write_text("icl_tasks:\n" + "".join(entries))
    (folder / "eval_meta_data.csv").write_text(table.getvalue())


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

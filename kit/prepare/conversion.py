"""Downloaded parquet rows as the JSON lines that trainers read.

The same rows give the same bytes: files in the order given, rows in file order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kit.conversations import Mapped
from kit.errors import SchemaError
from kit.files import whole_file

_BATCH_ROWS = 1000


class Converted(NamedTuple):
    rows: int
    notes: dict[str, int]  # what was done to how many rows


class QuestionSet(NamedTuple):
    """Where a question set lies on the Hub, and how a row of it becomes a question."""

    repository: str
    pattern: str
    columns: tuple[str, ...]
    convert: Callable[[dict[str, Any]], dict[str, Any]]


def _arc(row: dict[str, Any]) -> dict[str, Any]:
    # A few rows are labelled 1 to 4; letters are what a model is asked for.
    texts, labels = row["choices"]["text"], row["choices"]["label"]
    letters = [chr(ord("A") + index) for index in range(len(texts))]
    answer = labels.index(row["answerKey"])
    return {
        "id": row["id"],
        "question": row["question"],
        "choices": texts,
        "letters": letters,
        "answer": answer,
    }


def _mmlu(row: dict[str, Any]) -> dict[str, Any]:
    answer = int(row["answer"])
    if not 0 <= answer < len(row["choices"]):
        raise ValueError(f"answer {answer} is none of {len(row['choices'])} choices")
    return {**{key: row[key] for key in ("subject", "question", "choices")}, "answer": answer}


def _gsm8k(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "answer": row["answer"]}


_HUMANEVAL_COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
_ARC_COLUMNS = ("id", "question", "choices", "answerKey")
# Name in data.chat_eval -> the published test split; the file made is NAME_test.jsonl.
QUESTION_SETS = {
    "arc_easy": QuestionSet("allenai/ai2_arc", "ARC-Easy/test-*.parquet", _ARC_COLUMNS, _arc),
    "arc_challenge": QuestionSet(
        "allenai/ai2_arc", "ARC-Challenge/test-*.parquet", _ARC_COLUMNS, _arc
    ),
    "mmlu": QuestionSet(
        "cais/mmlu", "all/test-*.parquet", ("subject", "question", "choices", "answer"), _mmlu
    ),
    "gsm8k": QuestionSet("openai/gsm8k", "main/test-*.parquet", ("question", "answer"), _gsm8k),
    "humaneval": QuestionSet(
        "openai/openai_humaneval", "openai_humaneval/test-*.parquet", _HUMANEVAL_COLUMNS, dict
    ),
}


def write_questions(name: str, sources: Sequence[Path], target: Path) -> Converted:
    """The question set `name` from its parquet files. Raises `SchemaError`."""
    questions = QUESTION_SETS[name]

    def lines() -> Iterator[Any]:
        for source in sources:
            for number, row in enumerate(_rows(source, questions.columns)):
                try:
                    yield questions.convert(row)
                except (ValueError, TypeError, KeyError) as error:
                    raise _unreadable(source, f"row {number}: {error}") from error

    return Converted(_write(target, lines()), {})


def write_conversations(mapped: Mapped, sources: Sequence[Path], target: Path) -> Converted:
    """Conversations from parquet files, by the recipe's mapping. Raises `SchemaError`.

    A system message goes before the first user message, as there is no token for it. What is no
    conversation of user and assistant in turn is dropped, and counted by reason.
    """
    notes: Counter[str] = Counter()

    def lines() -> Iterator[Any]:
        for source in sources:
            for number, row in enumerate(_rows(source, mapped.columns)):
                try:
                    turns = mapped.turns(row)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise SchemaError(
                        f"{source.name}, row {number}: {error}",
                        hint=f"Correct the entry for {mapped.repository} in data.sft.",
                    ) from error
                if turns.dropped:
                    notes[f"dropped: {turns.dropped}"] += 1
                    continue
                notes["system message folded into the first user message"] += turns.folded
                yield turns.messages

    rows = _write(target, lines())
    return Converted(rows, {note: count for note, count in sorted(notes.items()) if count})


class Shape(NamedTuple):
    rows: int
    columns: tuple[str, ...]


def parquet_shape(path: Path) -> Shape:
    """Rows and columns of a parquet file. Raises `SchemaError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return Shape(int(file.metadata.num_rows), tuple(file.schema_arrow.names))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, str(error)) from error


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = parquet_shape(path)
    missing = [name for name in columns if name not in shape.columns]
    if missing:
        raise SchemaError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(shape.columns)}",
            hint="Its publisher changed it: name another source in the recipe.",
        )
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> SchemaError:
    return SchemaError(
        f"{path} cannot be read as parquet: {(why.splitlines() or ['no reason given'])[0]}",
        hint="Remove that file and run the command again; if it comes back so, tell its publisher.",
    )


def _write(target: Path, values: Iterable[Any]) -> int:
    rows = 0
    with whole_file(target) as temporary:
        with temporary.open("wb") as file:
            for value in values:
                file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
                rows += 1
        if rows == 0:
            raise SchemaError(
                f"{target.name} would hold nothing: no row of its sources could be used",
                hint="Check the recipe's data section.",
            )
    return rows

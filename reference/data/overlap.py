"""Overlap of documents with evaluation sets: shared runs of 13 words.

An item's text is every string in it, and for questions with choices the question followed by each
choice as well. A run that more than `common` different texts follow is a task's wording ("Answer
the following question …") and does not count; a passage that several questions share is followed
by itself, so it does. An item of fewer than 13 words cannot be found this way;
`Benchmark.unchecked` counts those.

References:
    Brown et al. 2020, GPT-3, appendix C (13-gram overlap)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reference.data.spec import Decontaminate
from reference.data.words import ngram_hashes, word_hashes
from reference.errors import TrainerError
from reference.rows.json_lines import json_lines
from reference.rows.reader import files_ending

_FOLLOWING = 64  # words after an n-gram that tell a shared passage from wording
_HINT = "Check `decontaminate` in the spec; `n4090-kit prepare` fetches the CORE bundle."


@dataclass(frozen=True)
class Benchmark:
    """What the index knows about one evaluation set."""

    name: str
    items: int
    unchecked: int
    ngrams: int


class Overlap(NamedTuple):
    """Distinct shared n-grams of a document, and the task and item most of them belong to."""

    matches: int
    task: str
    item: int


class OverlapIndex:
    """All n-grams of the evaluation sets; opened read-only by every worker.

    Args:
        folder: What `build_index` filled.
    """

    def __init__(self, folder: Path) -> None:
        self._hashes = np.load(folder / "hashes.npy", mmap_mode="r")
        self._owners = np.load(folder / "owners.npy", mmap_mode="r")  # task << 32 | item
        document = json.loads((folder / "benchmarks.json").read_text())
        self.ngram: int = document["ngram"]
        self.benchmarks = [Benchmark(**item) for item in document["benchmarks"]]
        # A bitmap rules out nearly every n-gram before the search.
        self._maybe = np.zeros(1 << 24, dtype=bool)
        self._maybe[self._hashes >> np.uint64(40)] = True

    def find(self, words: np.ndarray) -> Overlap | None:
        """The overlap of a document given by its word hashes; None when there is none."""
        if not len(self._hashes):
            return None
        grams = ngram_hashes(words, self.ngram)
        grams = grams[self._maybe[grams >> np.uint64(40)]]
        if not len(grams):
            return None
        grams = np.unique(grams)
        places = np.minimum(np.searchsorted(self._hashes, grams), len(self._hashes) - 1)
        found = places[self._hashes[places] == grams]
        if not len(found):
            return None
        owners, counts = np.unique(self._owners[found], return_counts=True)
        owner = int(owners[np.argmax(counts)])
        return Overlap(len(found), self.benchmarks[owner >> 32].name, owner & 0xFFFFFFFF)


def build_index(section: Decontaminate, folder: Path) -> list[Benchmark]:
    """Writes the index of the evaluation sets in `section` into `folder`.

    Raises:
        TrainerError: A set is missing or unreadable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes, owners, benchmarks = [], [], []
    for task, (name, path) in enumerate(evaluation_files(section)):
        grams = [_grams(record, section.ngram) for record in _items(path)]
        sizes = [len(item) for item in grams]
        every = np.concatenate([*grams, np.empty((0, 2), np.uint64)])
        owner = np.repeat(np.arange(len(grams), dtype=np.uint64), sizes) | np.uint64(task << 32)
        order = np.lexsort((every[:, 1], every[:, 0]))  # stable: the first item stays first
        every, owner = every[order], owner[order]
        new_gram = np.append(True, every[1:, 0] != every[:-1, 0])[: len(every)]
        new_pair = np.append(True, (every[1:] != every[:-1]).any(axis=1))[: len(every)]
        begins = np.flatnonzero(new_gram)
        followers = np.add.reduceat(new_pair.astype(np.int64), begins) if len(begins) else begins
        rare = begins[followers <= section.common]
        hashes.append(every[rare, 0])
        owners.append(owner[rare])
        unchecked = sizes.count(0)
        benchmarks.append(Benchmark(name, len(grams), unchecked, len(rare)))
    merged = np.concatenate([*hashes, np.empty(0, np.uint64)])
    merged, first = np.unique(merged, return_index=True)
    np.save(folder / "hashes.npy", merged)
    np.save(folder / "owners.npy", np.concatenate([*owners, np.empty(0, np.uint64)])[first])
    document = {"ngram": section.ngram, "benchmarks": [asdict(item) for item in benchmarks]}
    (folder / "benchmarks.json").write_text(json.dumps(document))
    return benchmarks


def _grams(record: Any, n: int) -> np.ndarray:
    """(N, 2) uint64: each n-gram of an item, and a hash of the text that follows it."""
    found = [np.empty((0, 2), np.uint64)]
    for text in item_texts(record):
        if len(text) < 2 * n - 1:  # n words and what parts them
            continue
        words = word_hashes(text)
        grams = ngram_hashes(words, n)
        if len(grams):
            padded = np.concatenate([words[n:], np.zeros(_FOLLOWING, np.uint64)])
            found.append(np.stack([grams, ngram_hashes(padded, _FOLLOWING)], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def evaluation_files(section: Decontaminate) -> list[tuple[str, Path]]:
    """(name, jsonl file) of every evaluation set in `section`."""
    found: list[tuple[str, Path]] = []
    if section.core:
        import yaml

        root = Path(section.core)
        try:
            tasks = yaml.safe_load((root / "core.yaml").read_text())["icl_tasks"]
            found += [
                (f"core/{task['label']}", root / "eval_data" / task["dataset_uri"])
                for task in tasks
            ]
        except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
            raise TrainerError("bad_input", f"no CORE bundle at {root}: {error}", _HINT) from error
    if section.chat_eval:
        files = files_ending(Path(section.chat_eval), ".jsonl")
        if not files:
            raise TrainerError("bad_input", f"no *.jsonl file in {section.chat_eval}", _HINT)
        found += [(f"chat_eval/{path.stem}", path) for path in files]
    found += [(Path(path).stem, Path(path)) for path in section.extra]
    return found


def _items(path: Path) -> Iterator[Any]:
    for _, value in json_lines(path, _HINT):
        yield value


def item_texts(record: Any) -> Iterator[str]:
    """Every string in `record`, and question and choice as one text where there are both."""
    yield from _strings(record)
    if isinstance(record, dict):
        for question, answers in (
            ("query", "choices"),
            ("question", "choices"),
            ("context", "continuation"),
            ("context_options", "continuation"),
        ):
            first, second = record.get(question), record.get(answers)
            if first and second:
                for text in _strings(first):
                    for answer in _strings(second):
                        yield f"{text} {answer}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)

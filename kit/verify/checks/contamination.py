"""V24: questions of the test, with their answers, among the training text.

An item stands for its last words and the right answer, as one text. Single 13-grams of it turn up
in honest web text (a passage of Wikipedia, a line of a novel), so an item counts as found when most
of its 13-grams are there: question and answer, in one piece. Written apart from the trainer's own
decontamination, so that one mistake is not made twice.

References:
    Brown et al. 2020, GPT-3, appendix C (13-gram overlap), https://arxiv.org/abs/2005.14165
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kit.contract import INPUT_ENDINGS
from kit.files import files_ending
from kit.verify.evidence import Absent, Evidence, Irrelevant, Refused
from kit.verify.finding import Check, Finding, fail, missing, ok, warn
from kit.verify.thresholds import (
    CONTAMINATED_FAIL,
    CONTAMINATED_ITEM,
    CONTAMINATED_MIN_ITEMS,
    CONTAMINATED_WARN,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kit.core_eval.bundle import Bundle, Task

NGRAM = 13
PROMPT_WORDS = 40
_COMMON = 10  # an n-gram of more items than this is a task's wording
_BATCH_WORDS = 1 << 20
_MULTIPLIER = 0x9E3779B97F4A7C15
_WORD = re.compile(r"\w+")


class Overlap(NamedTuple):
    """One task: its items, those long enough to be looked for, and which of them were found."""

    label: str
    items: int
    checked: int
    found: frozenset[int]

    @property
    def share(self) -> float:
        return len(self.found) / self.checked if self.checked else 0.0


def contamination(evidence: Evidence) -> Iterator[Finding]:
    """Few of the test's items, question and answer together, stand in the training text."""
    options = evidence.options
    if not options.contamination:
        raise Irrelevant("not asked for (--contamination)")
    if options.core is None or options.data is None:
        yield missing("the bundle or the training data were not given (--core DIR --data DIR)")
        return
    from kit.core_eval.bpb import read_texts
    from kit.core_eval.bundle import open_bundle
    from kit.verify.checks.replay import check_data, talks_in_pretraining

    shards = training_shards(evidence, options.data)
    section = evidence.recipe.section("core")
    bundle = open_bundle(options.core, tasks=section["tasks"], allow_custom=True)
    column = evidence.recipe.section("data")["text_column"]
    texts = read_texts(shards, column=column)
    what = f"{len(shards)} training shards"
    if talks_in_pretraining(evidence):
        if options.sft is None:
            yield missing("pretraining read conversations, which were not given (--sft DIR)")
            return
        check_data(evidence, options.sft, "sft")
        files = files_ending(options.sft, INPUT_ENDINGS["sft"])
        texts = chain(texts, conversation_texts(files))
        what += f" and {len(files)} files of conversations"
    overlaps = find_overlaps(bundle, texts)
    bad = False
    for overlap in overlaps:
        if overlap.checked < CONTAMINATED_MIN_ITEMS or overlap.share <= CONTAMINATED_WARN:
            continue
        bad = True
        say = fail if overlap.share > CONTAMINATED_FAIL else warn
        yield say(
            f"{len(overlap.found):,} of {overlap.checked:,} items of {overlap.label} stand in the "
            "training text with their answers",
            "data",
            expected=f"at most {CONTAMINATED_WARN:.0%}",
            found=f"{overlap.share:.1%}",
        )
    clean = _clean_score(evidence, overlaps)
    score = "" if clean is None else f"; on the others the score is {clean:.4f}"
    checked, found = sum(o.checked for o in overlaps), sum(len(o.found) for o in overlaps)
    sentence = f"{found:,} of {checked:,} items in {what}{score}"
    yield warn(sentence) if bad else ok(sentence)


def training_shards(evidence: Evidence, folder: Path) -> list[Path]:
    """The run's training shards in `folder`, each held against the log's digest."""
    from kit.verify.checks.replay import check_data

    check_data(evidence, folder)
    shards = files_ending(folder, INPUT_ENDINGS["data"])
    held_out = [path for path in shards if path.name.startswith("validation")] or shards[-1:]
    return [path for path in shards if path not in held_out]


def conversation_texts(files: Iterable[Path]) -> Iterator[str]:
    """What is said in each conversation, in one piece.

    Raises:
        Refused: A line is no conversation.
    """
    for path in files:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf").strip(b"\0\r\n\t ")
                if not line:
                    continue
                try:
                    yield " ".join(message["content"] for message in json.loads(line))
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise Refused(f"{path.name}, line {number}: no conversation") from error


def find_overlaps(bundle: Bundle, texts: Iterable[str]) -> list[Overlap]:
    """Which items of the bundle's selected tasks stand in `texts`."""
    import numpy as np

    from kit.core_eval.bundle import load_items

    items: list[tuple[Task, list[list[str]]]] = [
        (task, [_words(_text(task, item)) for item in load_items(bundle, task)])
        for task in bundle.selected
    ]
    vocabulary: dict[str, int] = {}
    for _, rows in items:
        for words in rows:
            for word in words:
                vocabulary.setdefault(word, len(vocabulary) + 1)
    grams = [[_grams(_ids(words, vocabulary)) for words in rows] for _, rows in items]
    every = np.concatenate([np.unique(g) for rows in grams for g in rows] or [_grams(_ids([], {}))])
    values, counts = np.unique(every, return_counts=True)
    wanted = values[counts <= _COMMON]
    seen = _seen(texts, vocabulary, wanted)
    overlaps = []
    for (task, rows), found in zip(items, grams, strict=True):
        checked, hits = 0, set()
        for index, row in enumerate(found):
            own = row[_member(row, wanted)]
            if not len(own):
                continue
            checked += 1
            if seen[np.searchsorted(wanted, own)].mean() >= CONTAMINATED_ITEM:
                hits.add(index)
        overlaps.append(Overlap(task.label, len(rows), checked, frozenset(hits)))
    return overlaps


def _text(task: Task, item: Mapping[str, Any]) -> str:
    """The end of an item's prompt, and its right answer."""
    if task.kind == "multiple_choice":
        prompt, answer = item["query"], item["choices"][item["gold"]]
    elif task.kind == "schema":
        prompt, answer = item["context_options"][item["gold"]], item["continuation"]
    else:
        prompt, answer = item["context"], item["continuation"]
    return " ".join([*_words(prompt)[-PROMPT_WORDS:], answer])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ids(words: Sequence[str], vocabulary: dict[str, int]) -> NDArray[np.uint64]:
    """(N,) numbers of the words; 0 for those that no item has."""
    import numpy as np

    get = vocabulary.get
    return np.fromiter((get(word, 0) for word in words), np.uint64, len(words))


def _grams(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of the n-grams; those with an unknown word are left out."""
    import numpy as np

    count = len(ids) - NGRAM + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    known = np.ones(count, bool)
    for place in range(NGRAM):
        part = ids[place : place + count]
        known &= part != 0
        hashes = hashes * np.uint64(_MULTIPLIER) + part
    hashes = hashes[known]
    return hashes ^ (hashes >> np.uint64(29))


def _seen(
    texts: Iterable[str], vocabulary: dict[str, int], wanted: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """For each of the sorted `wanted` n-grams whether a text holds it."""
    import numpy as np

    seen = np.zeros(len(wanted), bool)
    pending: list[str] = []
    border = [""] * NGRAM  # no word: nothing runs from one text into the next

    def look() -> None:
        grams = _grams(_ids(pending, vocabulary))
        seen[np.searchsorted(wanted, grams[_member(grams, wanted)])] = True
        pending.clear()

    for text in texts:
        pending += _words(text)
        pending += border
        if len(pending) > _BATCH_WORDS:
            look()
    look()
    return seen


def _member(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    import numpy as np

    if not len(ordered):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[places] == values
    return found


def _clean_score(evidence: Evidence, overlaps: Sequence[Overlap]) -> float | None:
    """CORE without the items that were found; None when the outcomes do not cover all items."""
    from kit.core_eval.statistics import accuracy, centered

    try:
        stated = evidence.evaluation_file("core")
    except (Absent, Refused):
        return None
    if stated is None:
        return None
    found = {overlap.label: overlap for overlap in overlaps}
    values = []
    for task in stated["tasks"]:
        overlap = found.get(task["label"])
        if overlap is None or overlap.items != len(task["outcomes"]):
            return None
        kept = "".join(o for i, o in enumerate(task["outcomes"]) if i not in overlap.found)
        if kept:
            values.append(centered(accuracy(kept), task["baseline"]))
    return sum(values) / len(values) if values else None


CHECKS = (
    Check(
        "V24",
        "Contamination",
        "Training on the test: items with their answers in the training text.",
        "13-grams of the bundle in the shards (--contamination --core DIR --data DIR)",
        contamination,
    ),
)

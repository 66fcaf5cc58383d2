"""Counterfactual controls: the same answers after another item's question.

A model can score above chance without reading the question: from the form of the options, the
examples before it, or how likely an answer is by itself. A control keeps an item's options, its
gold answer and its examples, and takes the text that should decide from another item. The score
that remains is not understanding of that text.

    question   the whole question (or, for a schema task, the sentence that the options precede)
    passage    the passage only; the question about it stays. Items with a passage and a question.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal, get_args

from kit.core_eval.bundle import Item, Task

Control = Literal["question", "passage"]
CONTROLS: tuple[Control, ...] = get_args(Control)
CONTROL_SEED = 20_261
# The field of an item that its options or its continuation depend on.
_DECIDING = {
    "multiple_choice": "query",
    "schema": "continuation",
    "language_modeling": "context",
}
# "Context: …\nQuestion: …" (SQuAD), "Passage: …" (BoolQ, LSAT), "…\nStory: …" (CoQA).
_WITH_PASSAGE = re.compile(
    r"\A(?P<passage>(?:[^\n]*\n)?(?:Context|Passage|Story): .*?)"
    r"(?P<rest>\n+(?:Question: |Q: |Preceding questions:|Final question:).*)\Z",
    re.DOTALL,
)


def partners(task: Task, items: Sequence[Item], control: Control) -> list[int]:
    """For each item, the item whose deciding text it gets: one with another text.

    The next such item on one random circle through all of them. An item whose text all others
    share is its own partner.
    """
    texts = [_deciding(task, item, control) for item in items]
    circle = list(range(len(items)))
    random.Random(CONTROL_SEED).shuffle(circle)
    found = list(range(len(items)))
    for position, index in enumerate(circle):
        for step in range(1, len(items)):
            other = circle[(position + step) % len(items)]
            if texts[other] != texts[index]:
                found[index] = other
                break
    return found


def has_control(task: Task, items: Sequence[Item], control: Control) -> bool:
    """Whether `control` applies to a task: its items have a passage, or any text at all."""
    return control == "question" or all(
        _WITH_PASSAGE.match(item[_DECIDING[task.kind]]) for item in items
    )


def swapped(task: Task, item: Item, other: Item, control: Control) -> Item:
    """`item` with the deciding text of `other`; options, gold answer and the rest stay."""
    field = _DECIDING[task.kind]
    text = _deciding(task, other, control)
    if control == "passage":
        text += _split(task, item)[1]
    return {**item, field: text}


def _deciding(task: Task, item: Item, control: Control) -> str:
    return _split(task, item)[0] if control == "passage" else str(item[_DECIDING[task.kind]])


def _split(task: Task, item: Item) -> tuple[str, str]:
    """The passage, and the question about it."""
    match = _WITH_PASSAGE.match(item[_DECIDING[task.kind]])
    if match is None:
        raise ValueError(f"an item of {task.label} has no passage to swap")
    return match["passage"], match["rest"]

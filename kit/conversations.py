"""Parquet rows as conversations, by a mapping that the recipe gives (`data.sft`).

messages   a column that is a list of messages, each with a role and a text
choice     a question, its choices and the right one: a conversation as chat evaluation asks
user, assistant   texts with {column} in them
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kit.errors import SchemaError

Row = Mapping[str, Any]
_PLACE = re.compile(r"\{([\w.]+)\}")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What data sets call the two who talk.
_ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "system": "system",
}  # fmt: skip


class Turns(NamedTuple):
    """The messages of a row, or why it has none."""

    messages: list[dict[str, str]]
    dropped: str | None = None
    folded: bool = False  # a system message went before the first user message


@dataclass(frozen=True)
class Mapped:
    """One entry of `data.sft`: the files of a repository, and how their rows become conversations.

    Attributes:
        name: Of the file made, without ending.
        messages: For form messages: the column, and what it calls role and text.
        choice: For form choice: columns for `question`, `choices` and `answer`.
        user, assistant: For texts with {column}.
        synthetic: How much of it a model wrote: none, part, all, or "" where that is not known.
    """

    repository: str
    files: str
    revision: str = "main"
    name: str = ""
    messages: tuple[str, str, str] = ("messages", "role", "content")
    choice: Mapping[str, str] | None = None
    user: str = ""
    assistant: str = ""
    synthetic: str = ""

    @property
    def columns(self) -> list[str]:
        """The columns that the mapping reads; of `a.b`, field b of a, it is `a`."""
        if self.user:
            found = _PLACE.findall(self.user + self.assistant)
        elif self.choice is not None:
            found = list(self.choice.values())
        else:
            found = [self.messages[0]]
        return list(dict.fromkeys(name.split(".")[0] for name in found))

    def turns(self, row: Row) -> Turns:
        """The conversation of a row.

        Raises:
            ValueError, TypeError, KeyError: The row has not the form that the mapping says.
        """
        if self.user:
            pair = (_filled(self.user, row), _filled(self.assistant, row))
            return _checked(_pair(*pair))
        if self.choice is not None:
            return _checked(_pair(*_asked(*(_value(row, self.choice[n]) for n in CHOICE))))
        return _listed(_value(row, self.messages[0]) or [], *self.messages[1:])


CHOICE = ("question", "choices", "answer")
# nanochat's mixture (scripts/chat_sft.py). It reads MMLU three times and GSM8K four times for
# each time of the rest: sft.sources = ["smol-smoltalk", "mmlu_auxiliary*3", "gsm8k_train*4"].
SETS = {
    "nanochat": (
        Mapped(
            "HuggingFaceTB/smol-smoltalk",
            "data/train-*.parquet",
            name="smol-smoltalk",
            synthetic="all",
        ),
        Mapped(
            "cais/mmlu",
            "all/auxiliary_train-*.parquet",
            name="mmlu_auxiliary",
            choice={name: name for name in CHOICE},
            synthetic="none",
        ),
        Mapped(
            "openai/gsm8k",
            "main/train-*.parquet",
            name="gsm8k_train",
            user="{question}",
            assistant="{answer}",
            synthetic="none",
        ),
    )
}


def conversation_sources(entries: Sequence[str | Mapping[str, Any]]) -> list[Mapped]:
    """The entries of `data.sft`, sets spelled out.

    Raises:
        SchemaError: One names no known set, or gives two forms at once.
    """
    found: list[Mapped] = []
    for entry in entries:
        if not isinstance(entry, str):
            found.append(_entry(entry))
        elif ":" in entry:
            repository, _, files = entry.partition(":")
            found.append(Mapped(repository, files))
        elif entry in SETS:
            found += SETS[entry]
        else:
            raise SchemaError(
                f"data.sft: {entry!r} is not a set of conversations",
                hint=f"Known: {', '.join(SETS)}; or REPO:PATTERN, or a table with repo and files.",
            )
    return found


def _entry(entry: Mapping[str, Any]) -> Mapped:
    forms = [name for name in ("messages", "choice", "user") if name in entry]
    if len(forms) > 1 or ("user" in entry) != ("assistant" in entry):
        raise SchemaError(
            f"data.sft: {entry['repo']}: what a conversation is, is not said in one way",
            hint="Give messages, or choice, or user together with assistant.",
        )
    choice = entry.get("choice")
    return Mapped(
        entry["repo"],
        entry["files"],
        entry.get("revision", "main"),
        entry.get("name", ""),
        (
            entry.get("messages", "messages"),
            entry.get("role", "role"),
            entry.get("content", "content"),
        ),
        None if choice is None else {name: choice.get(name, name) for name in CHOICE},
        entry.get("user", ""),
        entry.get("assistant", ""),
        entry.get("synthetic", ""),
    )


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """A question with lettered choices, word for word as chat evaluation asks it."""
    lines = [f"- {choice}={letter}" for choice, letter in zip(choices, _LETTERS, strict=False)]
    ending = "Respond only with the letter of the correct answer."
    return "\n".join([f"Multiple Choice question: {question}", *lines, "", ending])


def _asked(question: Any, choices: Any, answer: Any) -> tuple[str, str]:
    """(question, letter). Choices are texts, or texts with labels; the answer is an index or one
    of the labels."""
    if isinstance(choices, Mapping):  # ARC: {"text": […], "label": […]}
        texts, labels = choices["text"], list(choices["label"])
    else:
        texts, labels = choices, list(_LETTERS[: len(choices)])
    place = labels.index(answer) if isinstance(answer, str) and answer in labels else int(answer)
    if not 0 <= place < len(texts) <= len(_LETTERS):
        raise ValueError(f"answer {answer!r} is none of {len(texts)} choices")
    return multiple_choice(str(question), [str(text) for text in texts]), _LETTERS[place]


def _pair(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _listed(found: Sequence[Row], role: str, content: str) -> Turns:
    messages = [
        {"role": _ROLES.get(str(item.get(role)), str(item.get(role))), "content": item.get(content)}
        for item in found
    ]
    folded = bool(messages) and messages[0]["role"] == "system"
    if folded:
        system, *rest = messages
        if not rest or rest[0]["role"] != "user":
            return Turns([], "no question and answer")
        joined = f"{system['content']}\n\n{rest[0]['content']}"
        messages = [{"role": "user", "content": joined}, *rest[1:]]
    return _checked(messages)._replace(folded=folded)


def _checked(messages: list[dict[str, Any]]) -> Turns:
    if len(messages) < 2:
        return Turns([], "no question and answer")
    for index, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[index % 2]:
            return Turns([], "user and assistant do not take turns")
        if not isinstance(message["content"], str) or not message["content"].strip():
            return Turns([], "an empty message")
    return Turns(messages)


def _filled(text: str, row: Row) -> str:
    """`text` with its {columns} filled in; what is filled in is never read as a column itself."""
    return _PLACE.sub(lambda place: _text(_value(row, place[1])), text)


def _value(row: Row, name: str) -> Any:
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(f"no field {part} of {name}")
        value = value[part]
    return value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return "" if value is None else str(value)

"""Conversations as tokens, with a mask that says which of them the model is to learn.

    <|bos|> <|user_start|> … <|user_end|> <|assistant_start|> … <|assistant_end|> <|user_start|> …
                                                              1                 1

Only what the assistant writes is learnt: its text and the `<|assistant_end|>` that hands the turn
back. `<|assistant_start|>` is not: the engine puts it there when it asks for an answer. A system
message is put before the first user message, as there is no token for it.

Too long a conversation is cut at the end, never at the beginning: what is left is a true prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reference.errors import TrainerError
from reference.rows.json_lines import files_by_stem, json_lines
from reference.tokenizer.bpe import Tokenizer

Message = Mapping[str, str]
FILE_HINT = 'Each line is a JSON list of {"role": …, "content": …}, user and assistant in turn.'


class Rendered(NamedTuple):
    """ids and mask of equal length; mask 1: the model learns to write this token."""

    ids: Sequence[int]
    mask: Sequence[int]


def check_messages(messages: object) -> list[Message]:
    """`messages` if they are a conversation.

    Raises:
        ValueError: What is wrong with them.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("a conversation is a list of at least one message")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) < {"role", "content"}:
            raise ValueError(f"message {number} needs the fields role and content")
        if not isinstance(message["content"], str):
            raise ValueError(f"message {number}: content is not text")
    skipped = int(messages[0]["role"] == "system")
    if len(messages) == skipped:
        raise ValueError("the conversation has no message after the system message")
    for index, message in enumerate(messages[skipped:]):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            number = index + skipped + 1
            raise ValueError(f"message {number} is by {message['role']!r}, not by {expected!r}")
    return messages


def render(
    tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int | None = None
) -> Rendered:
    """Tokens and loss mask of a conversation (see the module's docstring).

    Args:
        max_tokens: Keep at most this many tokens, the first ones.
    """
    special = tokenizer.special
    ids, mask = [special["<|bos|>"]], [0]
    for message in _merge_system(messages):
        role = message["role"]
        text = tokenizer.encode([message["content"]])[0]
        learnt = int(role == "assistant")
        ids += [special[f"<|{role}_start|>"], *text, special[f"<|{role}_end|>"]]
        mask += [0] + [learnt] * (len(text) + 1)
    return Rendered(ids[:max_tokens], mask[:max_tokens])


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int | None = None
) -> list[int]:
    """Tokens of a conversation up to the point where the assistant is to write.

    Args:
        messages: The last one is by the user.
        max_tokens: When the prompt is longer, whole exchanges are dropped from its beginning, the
            oldest first; a last question that is too long alone keeps its end.
    """
    turns = _merge_system(messages)
    start = tokenizer.special["<|assistant_start|>"]
    ids = [*render(tokenizer, turns).ids, start]
    while max_tokens is not None and len(ids) > max_tokens and len(turns) > 2:
        turns = turns[2:]
        ids = [*render(tokenizer, turns).ids, start]
    if max_tokens is not None and len(ids) > max_tokens:
        opening = [tokenizer.bos_id, tokenizer.special["<|user_start|>"]]
        ids = opening + ids[len(ids) - max(1, max_tokens - len(opening)) :]
    return ids


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    if messages[0]["role"] != "system":
        return list(messages)
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def read_conversations(path: Path) -> Iterator[list[Message]]:
    """The conversations of a JSONL file.

    Raises:
        TrainerError: A line is no conversation; the message names file and line.
    """
    for number, value in json_lines(path, FILE_HINT):
        try:
            yield check_messages(value)
        except ValueError as error:
            message = f"{path}, line {number}: {error}"
            raise TrainerError("bad_input", message, FILE_HINT) from error


def source_times(names: Sequence[str]) -> dict[str, int]:
    """How often each named file is read for each time of the others: NAME*3 is NAME three times."""
    split = [re.fullmatch(r"(.+)\*(\d{1,3})", name) for name in names]
    return {
        match[1] if match else name: int(match[2]) if match else 1
        for name, match in zip(names, split, strict=True)
    }


def find_sources(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The conversation files in `folder`: those named (by stem), or all, in the order of names.

    Args:
        names: `sft.sources`; NAME*3 is NAME here (see `source_times`).

    Raises:
        TrainerError: None there, or a named one is missing.
    """
    files = files_by_stem(folder)
    names = list(source_times(names))
    missing = [name for name in names if name not in files]
    if missing or not files:
        raise TrainerError(
            "bad_input",
            f"{folder} has no " + (f"{', '.join(missing)}.jsonl" if missing else "*.jsonl file"),
            f"Found: {', '.join(files) or 'nothing'}. Set sft.sources to names that are there.",
        )
    return [files[name] for name in (sorted(names) or files)]

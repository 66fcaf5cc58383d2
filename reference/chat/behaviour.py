"""How a chat model behaves on fixed prompts: does it end its turn, obey, repeat itself, or loop?

Rules that a program can check, and no judge model. The prompts are the same for every model and
belong to the kit; they are answered greedily. Four figures:

    followed    share of the instructions with a checkable form that the answer has, and ends
    ended       share of all answers that hand the turn back within max_new_tokens
    repetition  mean share of an answer's word 4-grams that stood in it before
    looping     share of answers that end in the same words three times over

None enters the chat score: they tell whether a model is usable, not what it knows.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reference.chat.conversation import render_prompt
from reference.chat.engine import Sampling, generate
from reference.model.gpt import GPT
from reference.tokenizer.bpe import Tokenizer

NGRAM = 4
LONGEST_CYCLE = 20  # words
CYCLES = 3


@dataclass(frozen=True)
class Behaviour:
    """One answer; `followed` is None where the prompt asks for no checkable form."""

    prompt: str
    answer: str
    ended: bool
    followed: bool | None
    repetition: float
    looping: bool


def words_are(count: int) -> Callable[[str], bool]:
    return lambda text: len(text.split()) == count


def lines_are(count: int) -> Callable[[str], bool]:
    return lambda text: len([line for line in text.splitlines() if line.strip()]) == count


def matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text.strip(), re.IGNORECASE | re.DOTALL) is not None


def is_object_with(key: str) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and set(value) == {key}

    return check


INSTRUCTIONS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Name a colour. Answer with one word.", words_are(1)),
    ("Name an animal that can fly. Answer with one word.", words_are(1)),
    ("Is fire hot? Answer only yes or no.", matches(r"(yes|no)\.?")),
    ("Is ice warm? Answer only yes or no.", matches(r"(yes|no)\.?")),
    ("How many legs has a dog? Answer with a number only.", matches(r"\d+\.?")),
    ("What is two plus three? Answer with a number only.", matches(r"\d+\.?")),
    ("Name three animals, one on each line.", lines_are(3)),
    ("Write two lines about the sea.", lines_are(2)),
    (
        "Write one sentence about a cat in capital letters.",
        lambda text: text.isupper() and len(text.split()) > 2,
    ),
    ("Name four fruits, with commas between them.", lambda text: text.count(",") == 3),
    ("Say exactly this: The river is wide.", matches(r"the river is wide\.?")),
    (
        "Write a sentence about rain. Its last word is again.",
        matches(r".*\s.*\bagain[.!?]?"),
    ),
    ("Write a sentence that begins with the word Today.", matches(r"today\b.*\s.*")),
    (
        "What is a tree? Use at most ten words.",
        lambda text: 1 < len(text.split()) <= 10,
    ),
    (
        'Answer with a JSON object that has one key, "name": what is the capital of France?',
        is_object_with("name"),
    ),
    ("Ask me a question.", lambda text: text.strip().endswith("?")),
)
OPEN_PROMPTS = (
    "Hello!",
    "Who are you?",
    "Tell me a short story about a lighthouse.",
    "Explain why the sky is blue.",
    "What should I cook tonight?",
    "Describe a walk in a forest.",
    "Write a poem about the moon.",
    "What do you think about music?",
    "Give me advice for learning a language.",
    "How does a bicycle work?",
    "Tell me everything you know about water.",
    "Say something funny.",
    "Repeat the word sun for ever.",
    "asdf qwer zxcv",
    "?",
    "What did I say before this?",
)


def evaluate_behaviour(
    model: GPT,
    tokenizer: Tokenizer,
    max_new_tokens: int,
    *,
    check: Callable[[], None] = lambda: None,
    batch: int = 8,
) -> list[Behaviour]:
    """The answers to all fixed prompts, in their order; `check` as in `evaluate_task`."""
    asked = [*INSTRUCTIONS, *((prompt, None) for prompt in OPEN_PROMPTS)]
    found = []
    for begin in range(0, len(asked), batch):
        check()
        part = asked[begin : begin + batch]
        answers = generate(
            model,
            [render_prompt(tokenizer, [{"role": "user", "content": text}]) for text, _ in part],
            Sampling(max_new_tokens),
            {tokenizer.special["<|assistant_end|>"]},
        )
        for (prompt, rule), answer in zip(part, answers, strict=True):
            text = tokenizer.decode(answer.ids)
            found.append(
                Behaviour(
                    prompt,
                    text,
                    answer.ended,
                    None if rule is None else bool(answer.ended and rule(text.strip())),
                    repetition(text),
                    is_looping(text),
                )
            )
    return found


def to_json(found: Sequence[Behaviour]) -> dict[str, Any]:
    """The figures, and every answer for people to read."""
    return {**figures(found), "answers": [asdict(entry) for entry in found]}


def figures(found: Sequence[Behaviour]) -> dict[str, Any]:
    followed = [entry.followed for entry in found if entry.followed is not None]
    return {
        "prompts": len(found),
        "followed": statistics.fmean(followed),
        "ended": statistics.fmean(entry.ended for entry in found),
        "repetition": statistics.fmean(entry.repetition for entry in found),
        "looping": statistics.fmean(entry.looping for entry in found),
    }


def repetition(text: str) -> float:
    """Share of the word 4-grams that stood in the text before; 0 for short texts."""
    words = text.lower().split()
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def is_looping(text: str) -> bool:
    """Whether the text ends in the same words, up to 20 of them, three times over.

    The last repeat may be broken off: an answer that never ends is cut at the length limit.
    """
    words = text.lower().split()
    for cut in range(min(LONGEST_CYCLE, len(words))):
        whole = words[: len(words) - cut]
        for period in range(max(1, cut + 1), LONGEST_CYCLE + 1):
            cycle = whole[-period:]
            if len(whole) < CYCLES * period:
                break
            if whole[-CYCLES * period :] == cycle * CYCLES and words[len(whole) :] == cycle[:cut]:
                return True
    return False

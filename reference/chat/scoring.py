"""Whether an answer is right: our rule for each kind of question, and nanochat's beside it.

Ours wants the turn to end: an answer that would never stop is none, even if it begins well.
nanochat does not ask for that, and takes of GSM8K the number after the first "####" alone.

ChatCORE is nanochat's mean over ARC-Easy, ARC-Challenge, MMLU, GSM8K and HumanEval, each centred by
its rule, all questions asked. `chatcore` has it where all five were asked; the score of this kit
is the mean over the tasks that a recipe asks, by our rule, and is no ChatCORE.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["choice", "number", "spelling", "exact", "free", "program"]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_GSM8K = re.compile(r"#### (\-?[0-9\.\,]+)")  # tasks/gsm8k.py of nanochat
# Task of ChatCORE -> (questions, what a guess scores there).
CHATCORE = {
    "arc_easy": (2376, 0.25),
    "arc_challenge": (1172, 0.25),
    "mmlu": (14042, 0.25),
    "gsm8k": (1319, 0.0),
    "humaneval": (164, 0.0),
}
NANOCHAT_NEW_TOKENS = 512


def final_number(text: str) -> str | None:
    """The last number after the last "####", or in all of `text`; commas and a ".0" are dropped."""
    found = _NUMBER.findall(text.rpartition("####")[2]) or _NUMBER.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return re.sub(r"\.0*$", "", number)


def is_right(kind: Kind, said: str, expected: str) -> bool:
    """Whether the generated text `said` answers a question whose answer is `expected`."""
    if kind == "number" or (kind == "spelling" and _NUMBER.fullmatch(expected.strip())):
        number = final_number(said)
        return number is not None and number == final_number(expected)
    if kind == "spelling":
        # "owl:o,w,l" or the letters alone
        return said.strip().rpartition(":")[2].replace(" ", "") == expected.replace(" ", "")
    return _plain(said) == _plain(expected)


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


def right_by_nanochat(said: str, expected: str) -> bool:
    """nanochat's rule for GSM8K: the first "#### N" of each, compared as text without commas."""
    found = [_GSM8K.search(text) for text in (said, expected)]
    numbers = [match[1].strip().replace(",", "") if match else None for match in found]
    return numbers[0] is not None and numbers[0] == numbers[1]


def chatcore(
    nanochat: Mapping[str, tuple[int, float | None]], max_new_tokens: int
) -> dict[str, Any]:
    """nanochat's ChatCORE, or why there is none.

    Args:
        nanochat: (questions asked, share right by nanochat's rule) by the task's file.
    """
    asked = {name.removesuffix("_test"): found for name, found in nanochat.items()}
    lacking = []
    centered = []
    for name, (count, baseline) in CHATCORE.items():
        questions, share = asked.get(name, (0, None))
        if share is None or questions != count:
            lacking.append(f"{name} ({questions:,} of {count:,} questions)")
        else:
            centered.append((share - baseline) / (1 - baseline))
    reason = f"not asked in full: {', '.join(lacking)}" if lacking else None
    differs = ["no calculator while answering"]
    if max_new_tokens != NANOCHAT_NEW_TOKENS:
        differs.append(f"answers of {max_new_tokens} tokens, nanochat's {NANOCHAT_NEW_TOKENS}")
    value = None if lacking else statistics.fmean(centered)
    return {"value": value, "reason": reason, "differs": differs}

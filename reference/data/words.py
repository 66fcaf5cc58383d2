"""Text to words to 64-bit hashes, in numpy: the common ground of MinHash, overlap and score.

A word is a run of letters and digits, lower case; punctuation and white space do not count. Hashing
whole arrays instead of one word after the other is what makes these steps cheap: about the cost of
splitting the text once.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LETTER = np.uint64(0xD6E8FEB86659FD93)  # odd: the weight of a letter's place in its word
_WORD = np.uint64(0xA0761D6478BD642F)  # odd: the weight of a word's place in its n-gram
_MAX_WORD = 64  # places after which the weights repeat

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff]")
# The lookbehind keeps it linear: a run of blanks without a line break is tried at its start only.
_TRAILING = re.compile(r"(?<![ \t\u00a0])[ \t\u00a0]++\n")
_BLANK_LINES = re.compile(r"\n{3,}")
_BREAKS = ("\r\n", "\r", "\u2028", "\u2029", "\x85")


def normalise(text: str) -> str:
    """Unicode NFC, one kind of line break, no control or zero-width characters, no trailing or
    threefold blank space. Everything else, indentation included, stays."""
    breaks = _BREAKS[:2] if text.isascii() else _BREAKS
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    for sign in breaks:
        text = text.replace(sign, "\n")
    text = _CONTROL.sub("", text)
    text = _TRAILING.sub("\n", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: every bit of the input moves every bit of the output.

    References:
        Steele et al. 2014, Fast splittable pseudorandom number generators
    """
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


@lru_cache(1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Per code point the hash of the letter, 0 for what belongs to no word; and place weights."""
    letters = mix(np.arange(0x110000, dtype=np.uint64))
    alnum = np.fromiter((chr(code).isalnum() for code in range(0x110000)), bool, 0x110000)
    letters[~alnum] = 0
    places = np.cumprod(np.full(_MAX_WORD, _LETTER, dtype=np.uint64))
    return letters, places


def word_hashes(text: str) -> np.ndarray:
    """(N,) uint64, a hash of each word of `text`."""
    text = text.lower()
    letters, places = _tables()
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    if not len(codes):
        return np.empty(0, dtype=np.uint64)
    values = letters[codes]
    inside = values != 0
    begins = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]]))
    if not len(begins):
        return np.empty(0, dtype=np.uint64)
    lengths = np.diff(np.append(begins, len(codes)))
    place = np.arange(begins[0], len(codes)) - np.repeat(begins, lengths)
    values = values[begins[0] :] * places[place & (_MAX_WORD - 1)]
    return mix(np.add.reduceat(values, begins - begins[0]))


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """1, w, w^2, … and 1, 1/w, 1/w^2, … modulo 2^64, w being the weight of a word's place."""
    found = []
    for weight in (int(_WORD), pow(int(_WORD), -1, 2**64)):
        powers = np.full(count, weight, dtype=np.uint64)
        powers[:1] = 1
        found.append(np.cumprod(powers))
    return found[0], found[1]


@lru_cache(1)
def _few_powers() -> tuple[np.ndarray, np.ndarray]:
    return _powers(4096)


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """(max(0, N - n + 1),) uint64, a hash of each run of `n` words."""
    count = len(words) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    # A polynomial over a sliding window: differences of prefix sums, shifted back to place 0.
    powers, inverses = _powers(len(words)) if len(words) > 4096 else _few_powers()
    sums = np.zeros(len(words) + 1, dtype=np.uint64)
    np.cumsum(words * powers[: len(words)], out=sums[1:])
    total = (sums[n:] - sums[:count]) * inverses[:count]
    return mix(total)


def shingles(words: np.ndarray, n: int) -> np.ndarray:
    """The distinct `n`-grams, sorted; of a text shorter than that, the one it is."""
    if not len(words):
        return np.empty(0, dtype=np.uint64)
    return np.unique(ngram_hashes(words, min(n, len(words))))

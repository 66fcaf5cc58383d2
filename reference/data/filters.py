"""Published quality rules (datatrove's classes) and a language filter.

The rules run unchanged. Their words come from one regular expression instead of spaCy, which
datatrove uses for English and which takes most of the time there; thresholds are shares of words,
and both agree on nearly all of them. A rule that answers False names its reason.

References:
    Rae et al. 2021, Gopher, https://arxiv.org/abs/2112.11446
    Raffel et al. 2020, C4, https://arxiv.org/abs/1910.10683
    Penedo et al. 2024, FineWeb, https://arxiv.org/abs/2406.17557
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import regex

from reference.data.spec import Filters, Language
from reference.data.words import ngram_hashes
from reference.errors import TrainerError

# datatrove greets through loguru when it is imported; workers should stay quiet.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")

Rule = Callable[[Any], bool | tuple[bool, str]]
# Close to spaCy's English: an abbreviation, a number or a compound is one word, a clitic its own.
_WORD = regex.compile(r"(?:\p{Lu}\.)+|\w+(?:[.,:/\u2013]\w+)*|['\u2019]\p{L}+|\.+|-+|[^\s\w]")
_SENTENCE = regex.compile(r"[^.!?\n]*[.!?]+[\"'\u201d\u2019)\]]*\s*|[^.!?\n]+\s*|\n\s*")
_LANGUAGE_CHARS = 800  # taken from the middle of a document: enough to tell languages apart


def rules(filters: Filters) -> Iterator[tuple[str, Rule]]:
    """(name, rule) of each rule switched on, cheapest first.

    Raises:
        TrainerError: An option that datatrove's class does not have.
    """
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    words = _words_class()()
    for name, kind in (
        ("gopher_quality", GopherQualityFilter),
        ("fineweb", FineWebQualityFilter),
        ("c4", C4QualityFilter),
        ("gopher_repetition", GopherRepetitionFilter),
    ):
        if getattr(filters, name):
            options = getattr(filters, f"{name}_options")
            try:
                rule = kind(language=words, **options).filter
                yield (
                    name,
                    (_screened(rule, kind, options) if kind is GopherRepetitionFilter else rule),
                )
            except TypeError as error:
                raise TrainerError(
                    "bad_input",
                    f"filters.{name}_options: {error}",
                    f"The options are those of datatrove's {kind.__name__}.",
                ) from error


def _screened(rule: Rule, kind: type, options: dict[str, Any]) -> Rule:
    """Gopher's repetition rule with the same answers, its slow half only where it can say no.

    Counting repeated word runs takes ten passes over the words in Python. Numpy first bounds what
    they can find from above: the share of the most frequent 2-, 3- and 4-gram, and the share of
    characters under repeated runs of the shortest length, under which all longer ones lie as well.
    """
    from datatrove.utils.text import split_into_words

    full: Any = rule.__self__  # type: ignore[attr-defined]
    lines_only = kind(
        language=full.language, **{**options, "top_n_grams": (), "dup_n_grams": ()}
    ).filter
    shortest = min((n for n, _ in full.dup_n_grams), default=0)
    least = min((share for _, share in full.dup_n_grams), default=1.0)

    def may_repeat(text: str) -> bool:
        words = split_into_words(text, full.language)
        hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
        ends = np.concatenate([[0], np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))])
        for n, share in full.top_n_grams:
            grams, first, counts = np.unique(
                ngram_hashes(hashes, n), return_index=True, return_counts=True
            )
            top = first[counts == counts.max(initial=0)]
            chars = (ends[top + n] - ends[top]).max(initial=0) + n - 1
            if len(grams) and chars * counts.max() > share * len(text):
                return True
        if not shortest:
            return False
        grams, inverse = np.unique(ngram_hashes(hashes, shortest), return_inverse=True)
        if len(grams) == len(inverse):
            return False
        repeated = np.ones(len(inverse), dtype=bool)
        first = np.unique(inverse, return_index=True)[1]
        repeated[first] = False
        covered = np.convolve(repeated, np.ones(shortest, dtype=int)) > 0
        return bool(np.diff(ends)[covered].sum() > least * len(text))

    def screened(document: Any) -> bool | tuple[bool, str]:
        if may_repeat(document.text):
            return rule(document)
        return lines_only(document)

    return screened


def _words_class() -> type:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):  # type: ignore[misc]
        """Runs of letters and digits, and single signs."""

        def word_tokenize(self, text: str) -> list[str]:
            return _WORD.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [found.strip() for found in _SENTENCE.findall(text) if found.strip()]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [found.span() for found in _SENTENCE.finditer(text) if found[0].strip()]

    return Words


class LanguageFilter:
    """Which language a text is in, by py3langid's model; it comes with the package."""

    def __init__(self, section: Language) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identify = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._keep = frozenset(section.keep)
        self._least = section.min_probability

    def __call__(self, text: str) -> tuple[str, float, bool]:
        """(ISO 639-1 code, probability, whether the spec keeps it)."""
        begin = max(0, (len(text) - _LANGUAGE_CHARS) // 2)
        code, probability = self._identify.classify(text[begin : begin + _LANGUAGE_CHARS])
        kept = not self._keep or (code in self._keep and probability >= self._least)
        return str(code), float(probability), kept

"""What the pretraining text is made of: the recipe's repository, and others with their shares.

The first source of a part (`repo` for training; the first of part anneal) is taken whole. Each
other source is thinned, row by row and evenly, until its text is `share` of its part in bytes: so
no text is repeated, and a share is what it says. With `natural_only`, sources of which a model
wrote any part are left out, and the shares of the others keep their proportions. With `anneal` 0,
the sources of part anneal are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kit.errors import SchemaError

Part = Literal["train", "anneal"]
_CLOSE = 1e-6


@dataclass(frozen=True)
class TextSource:
    """Files of one repository that are read as text.

    Attributes:
        shards: Files taken, by name, after the first `skip` ones.
        share: Of the text bytes of its part.
        synthetic: How much of it a model wrote: none, part, all, or "" where that is not known.
        licence: As the recipe states it; "" where it does not.
    """

    repository: str
    revision: str
    shards: int
    files: str = "*.parquet"
    skip: int = 0
    part: Part = "train"
    share: float = 1.0
    column: str = "text"
    synthetic: str = ""
    licence: str = ""

    @property
    def short_name(self) -> str:
        """Of its repository, without the owner."""
        return self.repository.rpartition("/")[2]

    def __str__(self) -> str:
        place = f"{self.repository}@{self.revision}:{self.files}[{self.skip}+{self.shards}]"
        return f"{place} {self.column} {self.part} {self.share:g}"


@dataclass(frozen=True)
class TextMix:
    """The sources of a recipe: `main` as its repository has it, and the others."""

    main: TextSource
    others: tuple[TextSource, ...] = ()

    @property
    def sources(self) -> tuple[TextSource, ...]:
        return (self.main, *self.others)


def text_mix(data: Mapping[str, Any]) -> TextMix:
    """The text of a recipe's `data` section (kind hub).

    Raises:
        SchemaError: Shares, parts or `natural_only` do not fit together.
    """
    column = data["text_column"]
    main = TextSource(
        data["repo"],
        data["revision"],
        data["shards"],
        column=column,
        synthetic=data.get("synthetic", ""),
        licence=data.get("licence", ""),
    )
    others = [_source(entry, column) for entry in text_entries(data)]
    if data.get("natural_only"):
        main, others = _natural(data, main, others)
    train = sum(source.share for source in others if source.part == "train")
    anneal = [source for source in others if source.part == "anneal"]
    if train >= 1 - _CLOSE:
        raise _wrong(f"the shares of part train are {train:g} together", "Leave room for `repo`.")
    if anneal and abs(sum(source.share for source in anneal) - 1) > _CLOSE:
        total = sum(source.share for source in anneal)
        raise _wrong(f"the shares of part anneal are {total:g} together", "Make them 1 together.")
    for source in others:
        if source.repository == main.repository and source.skip < main.shards:
            raise _wrong(
                f"{source.repository} would be read twice from shard {source.skip} on",
                f"Set skip to {main.shards} or more: the first ones are training text already.",
            )
    return TextMix(replace(main, share=1 - train), tuple(others))


def text_entries(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of `data.text` that a run reads: without an anneal part (`anneal` = 0), not its
    sources, so that one recipe line switches the part on and off."""
    entries: Sequence[Mapping[str, Any]] = data.get("text") or ()
    return [e for e in entries if data.get("anneal") or e.get("part", "train") != "anneal"]


def _source(entry: Mapping[str, Any], column: str) -> TextSource:
    return TextSource(
        entry["repo"],
        entry.get("revision", "main"),
        entry["shards"],
        entry.get("files", "*.parquet"),
        entry.get("skip", 0),
        entry.get("part", "train"),
        entry["share"],
        entry.get("column", column),
        entry.get("synthetic", ""),
        entry.get("licence", ""),
    )


def _natural(
    data: Mapping[str, Any], main: TextSource, others: Sequence[TextSource]
) -> tuple[TextSource, list[TextSource]]:
    """The sources that people wrote; the shares of part anneal are 1 together again."""
    if main.synthetic != "none":
        if not data.get("natural_repo"):
            raise _wrong(
                f"natural_only is set, but {main.repository} is not stated to be natural text",
                "Name natural text in its place, data.natural_repo, or say data.synthetic = "
                '"none".',
            )
        main = TextSource(
            data["natural_repo"], "main", main.shards, column=main.column, synthetic="none"
        )
    kept = [source for source in others if source.synthetic == "none"]
    total = sum(source.share for source in kept if source.part == "anneal")
    if not total and any(source.part == "anneal" for source in others):
        raise _wrong(
            "natural_only leaves no source of part anneal",
            "Set data.anneal = 0 too, or add natural text to the part.",
        )
    return main, [
        replace(source, share=source.share / total) if source.part == "anneal" else source
        for source in kept
    ]


def _wrong(what: str, remedy: str) -> SchemaError:
    return SchemaError(f"data.text: {what}", hint=remedy)

"""The last part of training on a corpus of its own: better text while the learning rate falls.

Files named `anneal*` in the data folder are that part; `data.anneal` in the recipe says over which
last share of training it is read. With 0 there is no such part and the files are training text like
any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reference.errors import TrainerError
from reference.rows.documents import Documents
from reference.rows.packing import Batch, DocumentBatch, PackedLoader
from reference.tokenizer.bpe import Tokenizer

MakeLoader = Callable[[Documents, dict[str, Any] | None], PackedLoader]


def open_loader(
    make: MakeLoader,
    train: Documents,
    cache: Path,
    tokenizer: Tokenizer,
    fraction: float,
    state: dict[str, Any] | None,
) -> PackedLoader | AnnealedLoader:
    """The loader of a run: of `train` alone, or of `train` and then the anneal part.

    Args:
        make: Documents and state -> a loader.
        fraction: `data.anneal`.

    Raises:
        TrainerError: The corpus has no anneal part, or the state belongs to another setting.
    """
    if state is not None and ("anneal" in state) != (fraction > 0):
        raise TrainerError(
            "bad_input",
            "the saved data position was made with another data.anneal",
            "Resume with the recipe the run began with.",
        )
    if not fraction:
        return make(train, state)
    tail = Documents.open(cache, "anneal", tokenizer)
    return AnnealedLoader(make, train, tail, 1.0 - fraction, state)


class AnnealedLoader:
    """Two loaders in turn; resumes exactly, like each of them.

    Args:
        begin: Progress, 0 to 1, from which the second is read.
    """

    uneven = by_row = False

    def __init__(
        self,
        make: MakeLoader,
        train: Documents,
        anneal: Documents,
        begin: float,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.begin = begin
        self._loaders = (
            make(train, state["train"] if state else None),
            make(anneal, state["anneal"] if state else None),
        )
        self._now = state["now"] if state else 0

    def at(self, progress: float) -> None:
        """Chooses the part for the batches that follow."""
        self._now = int(progress >= self.begin)

    def next_batch(self) -> Batch | DocumentBatch:
        return self._loaders[self._now].next_batch()

    def state_dict(self) -> dict[str, Any]:
        train, anneal = (loader.state_dict() for loader in self._loaders)
        return {"train": train, "anneal": anneal, "now": self._now}

    def resize(self, batch_size: int, seq_len: int) -> None:
        for loader in self._loaders:
            loader.resize(batch_size, seq_len)

    @property
    def batch_size(self) -> int:
        return self._loaders[self._now].batch_size

    @property
    def waited_s(self) -> float:
        return sum(loader.waited_s for loader in self._loaders)

    @property
    def epoch(self) -> int:
        return max(loader.epoch for loader in self._loaders)

    @property
    def crop_rate(self) -> float:
        """Of what was read last."""
        return self._loaders[self._now].crop_rate

    def close(self) -> None:
        for loader in self._loaders:
            loader.close()

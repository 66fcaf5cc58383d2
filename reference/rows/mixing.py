"""Training rows from more than one source: new text, rows seen before, conversations.

From `replay_from` of the run on, `replay_share` of the rows are ones of the first pass that are
worth another look, as a buffer of rows judges them; from `sft_from` on, `sft_share` are
packed conversations. They take the places of new rows: a step keeps its size and its cost, and no
text is skipped, it is only read later.

Conversations are rendered and packed as stage `sft` does it. All their tokens are learnt by
default, what the user says included: this is still pretraining, and where answers are short the
masked part is most of the computing. Padding is never learnt. Each target of a step weighs the
same.

References:
    Instruction data in the last part of pretraining: https://arxiv.org/abs/2404.06395
    Learning what the user says, too: https://arxiv.org/abs/2405.14394
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from reference.chat.conversation import Rendered
from reference.errors import TrainerError
from reference.kernels.attention import find_documents
from reference.rows.anneal import AnnealedLoader
from reference.rows.conversations import ConversationLoader
from reference.rows.packing import Batch, DocumentBatch, PackedLoader, split_rows

# Rows are kept from this part of `replay_from` on: before it every loss falls, and says little.
COLLECT_FROM = 0.5
MEAN_DECAY = 0.9  # a step, of the mean loss of new rows


class RowBuffer(Protocol):
    """Keeps rows and chooses among them by what training said of them (see `Replay`)."""

    rows: np.ndarray

    def offer(self, row: np.ndarray, relative: float) -> None:
        """Lets a new row in, or not; `relative` is its loss less the mean."""

    def draw(self, count: int) -> list[int]:
        """Places of up to `count` rows to train on next."""

    def saw(self, slots: list[int], relative: np.ndarray) -> None:
        """The drawn rows' losses, less the mean."""

    def forget(self) -> None:
        """The drawn rows were not trained on."""

    def state_dict(self) -> dict[str, Any]: ...


class Replay(NamedTuple):
    """share of the rows, from progress `begin` on, out of at most `keep` rows.

    buffer: makes a `RowBuffer` of (rows, tokens of a row, seed, state=None).
    """

    share: float
    begin: float
    keep: int
    seed: int
    buffer: Callable[..., RowBuffer]


class Talks(NamedTuple):
    """share of the rows, from progress `begin` on, out of `source`; which targets are learnt."""

    share: float
    begin: float
    source: ConversationLoader
    learn_all: bool


class MixedLoader:
    """A loader whose batches hold rows of other sources; resumes exactly.

    Args:
        loader: Of new rows, on the CPU and without documents.
        seq_len: Tokens of a row of the moment.
        full_seq_len: That of conversations.
        bos: Also say where documents begin: at this token.
        pad_id: Input token behind the last conversation of a row.
        state: Continue from a `state_dict`; `loader` has been continued from its part.
    """

    def __init__(
        self,
        loader: PackedLoader | AnnealedLoader,
        *,
        seq_len: int,
        full_seq_len: int,
        device: str | torch.device,
        pad_id: int,
        bos: int | None = None,
        replay: Replay | None = None,
        talks: Talks | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._loader, self._seq_len, self._full = loader, seq_len, full_seq_len
        self._device, self._bos, self._pad_id = torch.device(device), bos, pad_id
        self._replay, self._talks = replay, talks
        self._progress = 0.0
        state = state or {}
        # Rows that this source should have had by now, beyond those it has had.
        self._owed: dict[str, float] = dict(state.get("owed", {"replay": 0.0, "talks": 0.0}))
        self._counts: dict[str, int] = dict(state.get("counts", {"replay": 0, "talks": 0}))
        self._mean: list[float] = list(state.get("mean", [0.0, 0.0]))  # weighted sum, weight
        self._spare: list[np.ndarray] = []  # new rows that were read and have not been trained on
        self._buffer = self._new_buffer()
        self._step: list[tuple[np.ndarray, list[int], int]] = []
        if state and state["seq_len"] == seq_len:  # as `resize` would have it
            self._spare = list(state["spare"].numpy())
            if replay is not None:
                self._buffer = replay.buffer(
                    replay.keep, seq_len + 1, replay.seed, state=state["buffer"]
                )

    def at(self, progress: float) -> None:
        """Says where the run is, before the batches of each step."""
        self._loader.at(progress)
        self._progress = progress
        self._step = []
        if self._buffer is not None:
            self._buffer.forget()

    @property
    def uneven(self) -> bool:
        """Whether batches may hold targets that do not count."""
        return self._talks is not None and self._progress >= self._talks.begin

    @property
    def by_row(self) -> bool:
        """Whether `learned` wants the rows' losses of this step."""
        collecting = (
            self._replay is not None and self._progress >= COLLECT_FROM * self._replay.begin
        )
        return collecting or self.uneven

    def next_batch(self) -> Batch | DocumentBatch:
        """The next (tokens, targets[, documents]), (B, T): new rows, then replayed, then talks."""
        B = self.batch_size
        talks = self._due("talks", self._talks, B, B)
        slots: list[int] = []
        old = self._due("replay", self._replay, B, B - talks)
        if self._buffer is not None and old:
            slots = self._buffer.draw(old)
        new = self._new_rows(B - talks - len(slots))
        parts = [new]
        if self._buffer is not None and slots:
            parts.append(self._buffer.rows[slots])
        rows = np.concatenate([*parts, np.full((talks, self._seq_len + 1), self._pad_id)])
        learnt = np.ones(rows.shape, dtype=bool) if talks else None
        for row in range(B - talks, B):
            self._put_talk(rows[row], learnt[row])  # type: ignore[index]
        self._step.append((new, slots, talks))
        self._counts["replay"] += len(slots)
        self._counts["talks"] += talks
        return self._batch(rows.astype(np.int64, copy=False), learnt)

    def learned(self, losses: torch.Tensor) -> dict[str, Any]:
        """Takes the mean losses of the step's rows (N,), in order; returns figures for the log.

        `new_loss` is the mean over new rows: the step's own loss also has the others in it.
        """
        values = losses.double().numpy()
        kinds: list[np.ndarray] = []
        begin = 0
        for new, slots, talks in self._step:
            ends = np.cumsum([begin, len(new), len(slots), talks])
            kinds.append(ends)
            begin = int(ends[-1])
        fresh = np.concatenate([values[ends[0] : ends[1]] for ends in kinds])
        if len(fresh):
            total, weight = self._mean
            self._mean = [
                MEAN_DECAY * total + (1 - MEAN_DECAY) * float(fresh.mean()),
                MEAN_DECAY * weight + 1 - MEAN_DECAY,
            ]
        if self._buffer is not None and self._mean[1]:
            relative = values - self._mean[0] / self._mean[1]
            # Looks first: a slot must not be given to another row before.
            for (_, slots, _), ends in zip(self._step, kinds, strict=True):
                self._buffer.saw(slots, relative[ends[1] : ends[2]])
            for (new, _, _), ends in zip(self._step, kinds, strict=True):
                for row, value in zip(new, relative[ends[0] : ends[1]], strict=True):
                    self._buffer.offer(row, float(value))
        figures: dict[str, Any] = {
            "replayed_rows": sum(len(slots) for _, slots, _ in self._step),
            "sft_rows": sum(talks for _, _, talks in self._step),
        }
        if len(fresh):
            figures["new_loss"] = float(fresh.mean())
        self._step = []
        return figures

    def state_dict(self) -> dict[str, Any]:
        width = self._seq_len + 1
        spare = np.stack(self._spare) if self._spare else np.empty((0, width), dtype=np.int32)
        return {
            "mixed": self._loader.state_dict(),
            "seq_len": self._seq_len,
            "owed": dict(self._owed),
            "counts": dict(self._counts),
            "mean": list(self._mean),
            "spare": torch.from_numpy(spare.astype(np.int32)),
            "buffer": self._buffer.state_dict() if self._buffer is not None else None,
            "talks": self._talks.source.state_dict() if self._talks is not None else None,
        }

    def resize(self, batch_size: int, seq_len: int) -> None:
        """Batches of another shape; rows of another length than before are of no use any more."""
        self._loader.resize(batch_size, seq_len)
        if seq_len != self._seq_len:
            self._seq_len, self._spare = seq_len, []
            self._buffer = self._new_buffer()

    @property
    def summary(self) -> str:
        """How many rows came from where, for the log."""
        return (
            f"{self._counts['replay']} rows replayed, {self._counts['talks']} rows of conversations"
        )

    @property
    def batch_size(self) -> int:
        return self._loader.batch_size

    @property
    def waited_s(self) -> float:
        return self._loader.waited_s

    @property
    def epoch(self) -> int:
        return self._loader.epoch

    @property
    def crop_rate(self) -> float:
        """Of new rows."""
        return self._loader.crop_rate

    def close(self) -> None:
        self._loader.close()

    def _new_buffer(self) -> RowBuffer | None:
        if self._replay is None:
            return None
        return self._replay.buffer(self._replay.keep, self._seq_len + 1, self._replay.seed)

    def _due(self, name: str, source: Replay | Talks | None, rows: int, room: int) -> int:
        """How many of a batch's `rows` are this source's."""
        if source is None or self._progress < source.begin:
            return 0
        self._owed[name] += source.share * rows
        count = min(int(self._owed[name] + 1e-9), room)
        self._owed[name] -= count
        return count

    def _new_rows(self, count: int) -> np.ndarray:
        while len(self._spare) < count:
            batch = self._loader.next_batch()
            rows = torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1)
            self._spare += list(rows.numpy().astype(np.int32))
        taken, self._spare = self._spare[:count], self._spare[count:]
        return np.stack(taken) if taken else np.empty((0, self._seq_len + 1), dtype=np.int32)

    def _put_talk(self, row: np.ndarray, learnt: np.ndarray) -> None:
        assert self._talks is not None
        if self._seq_len != self._full:
            raise TrainerError(
                "bad_input",
                f"conversations come into rows of {self._seq_len} tokens",
                "Set pretrain.sft_from to where pretrain.seq_len_ramp has reached its end.",
            )
        talk: Rendered = self._talks.source.next_row()
        row[: len(talk.ids)] = talk.ids
        learnt[:] = False
        learnt[: len(talk.ids)] = True if self._talks.learn_all else np.array(talk.mask, dtype=bool)

    def _batch(self, rows: np.ndarray, learnt: np.ndarray | None) -> Batch | DocumentBatch:
        documents = None if self._bos is None else find_documents(rows[:, :-1], self._bos)
        batch = split_rows(torch.from_numpy(rows), self._device)
        if learnt is not None:
            skipped = torch.from_numpy(~learnt[:, 1:])
            if self._device.type == "cuda":
                skipped = skipped.pin_memory().to(self._device, non_blocking=True)
            batch = Batch(batch.tokens, batch.targets.masked_fill(skipped, -1))
        if documents is None:
            return batch
        return DocumentBatch(*batch, documents.to(self._device))

"""Batches of tokens: BOS-aligned best-fit packing for training, plain windows for validation.

Both cut documents the same way. A piece is BOS and at most seq_len tokens of one document; a longer
document gives several pieces, one after the other, so no part of a book goes unread.

Training rows hold seq_len + 1 tokens and always begin with BOS. A row starts with the piece that
has waited longest in a buffer; then the longest that still fits is placed, again and again; only
when none fits, the shortest is cropped to fill the row exactly, and its rest is dropped. There is
no padding. `crop_rate` is the share of dropped tokens. Starting with the longest piece instead
would let short documents wait while long ones come and go: a short run would see another mixture
than the corpus.

Pieces come in a new random order each epoch, over the whole corpus. The order is a function of
(seed, epoch) alone, so the loader's state is small: how far it is, and what the buffer holds. Each
batch carries the state to continue after it, so the read-ahead thread does not show in a resumed
run.

Rows may become longer or shorter on the way (`resize`). Pieces are then cut anew; of the epoch that
is under way, documents of which anything has been read are left out, so nothing is read twice.

Validation has one definition, independent of packing and batch size: every token of a document but
BOS is predicted once, from the tokens before it in its own piece and nothing else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from reference.errors import TrainerError
from reference.kernels.attention import Documents, find_documents

BUFFER_PIECES = 1000

_Entry = tuple[int, int, int]  # tokens, -arrival, piece


class DocumentSource(Protocol):
    """What the loader needs of a corpus; `reference.rows.documents.Documents` is one."""

    lengths: np.ndarray
    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


class Batch(NamedTuple):
    """tokens and targets, each (B, T) int64; a target below 0 is not counted."""

    tokens: torch.Tensor
    targets: torch.Tensor


class DocumentBatch(NamedTuple):
    """A batch that also says where its documents begin."""

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: Documents


class ShuffledBuffer:
    """Pieces in a random order that is new each epoch, a few of them at hand to choose from.

    Of pieces of equal length the one that has waited longest goes first.

    Args:
        lengths: (N,) tokens of each piece.
        size: Pieces at hand. A small corpus is not read more than one epoch ahead.
        unread: (N,) bool, with the epoch that it is about: pieces to leave out of that one.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        size: int,
        seed: int,
        unread: tuple[int, np.ndarray] | None = None,
    ) -> None:
        self._lengths = lengths
        self._unread = unread
        self._size = min(size, len(lengths))
        self._seed = seed
        self._order = np.empty(0, dtype=np.int64)
        self._order_epoch = -1
        self.load_state_dict({"epoch": 0, "position": 0, "buffer": []})

    def take_first(self) -> int:
        """Takes out the piece that has waited longest."""
        self._refill()
        while self._arrived[0] not in self._waiting:
            self._arrived.popleft()
        return self._remove(bisect_left(self._buffer, self._arrived[0]))

    def take(self, space: int, *, or_shortest: bool) -> int | None:
        """Takes out the longest piece of at most `space` tokens.

        When there is none: the shortest piece, or None without `or_shortest`.
        """
        self._refill()
        fitting = bisect_right(self._buffer, (space, 1))
        if not fitting:
            if not or_shortest:
                return None
            fitting = bisect_right(self._buffer, (self._buffer[0][0], 1))
        return self._remove(fitting - 1)

    def state_dict(self) -> dict[str, Any]:
        pieces = [entry[2] for entry in self._arrived if entry in self._waiting]
        return {"epoch": self.epoch, "position": self._position, "buffer": pieces}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch: int = state["epoch"]
        self._position: int = state["position"]
        # (tokens, -arrival, piece), ascending: the longest that fits is one bisection away, and of
        # equals the first to arrive.
        self._buffer: list[_Entry] = []
        self._waiting: set[_Entry] = set()  # the same, to ask for one
        self._arrived: deque[_Entry] = deque()  # in order of arrival; some have been taken since
        self._arrivals = 0
        for piece in state["buffer"]:
            self._add(piece)

    def _refill(self) -> None:
        while len(self._buffer) < self._size:
            self._take_order()
            while self._position == len(self._order):
                self.epoch += 1
                self._position = 0
                self._take_order()
            self._add(int(self._order[self._position]))
            self._position += 1

    def _take_order(self) -> None:
        """The order of the epoch under way."""
        if self._order_epoch == self.epoch:
            return
        self._order = epoch_order(len(self._lengths), self._seed, self.epoch)
        if self._unread is not None and self._unread[0] == self.epoch:
            self._order = self._order[self._unread[1][self._order]]
        self._order_epoch = self.epoch

    def _add(self, piece: int) -> None:
        entry = (int(self._lengths[piece]), -self._arrivals, piece)
        insort(self._buffer, entry)
        self._waiting.add(entry)
        self._arrived.append(entry)
        self._arrivals += 1

    def _remove(self, index: int) -> int:
        entry = self._buffer.pop(index)
        self._waiting.remove(entry)
        return entry[2]


class PackedLoader:
    """An endless stream of packed training batches.

    Args:
        documents: The tokenized corpus.
        batch_size: Rows of a batch, B.
        seq_len: Tokens of a row, T.
        seed: Decides the order of pieces.
        device: Where batches go; pinned and copied in the background for CUDA.
        buffer_pieces: Pieces to choose from; more gives less cropping.
        prefetch: Batches assembled ahead in a thread; False or 0: none.
        bos: Also say where documents begin: at this token.
        state: Continue from a `state_dict` of a loader with the same arguments.

    Attributes:
        uneven: Whether batches may hold targets that do not count.
        by_row: Whether the loader wants to know the rows' losses.
    """

    uneven = by_row = False

    def __init__(
        self,
        documents: DocumentSource,
        batch_size: int,
        seq_len: int,
        seed: int,
        *,
        device: str | torch.device = "cpu",
        buffer_pieces: int = BUFFER_PIECES,
        prefetch: int = 1,
        bos: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.documents = documents
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.waited_s = 0.0  # in all, for batches that were not ready
        self._bos, self._buffer_pieces = bos, buffer_pieces
        self._identity = {
            "seed": seed,
            "buffer_pieces": buffer_pieces,
            "documents": len(documents),
            "digest": documents.digest,
        }
        self._used = self._cropped = 0
        self._depth = int(prefetch)
        self._pool = ThreadPoolExecutor(1, "batches") if prefetch else None
        self._next: deque[Future[_Assembled]] = deque()
        self._cut(seq_len if state is None else state.get("seq_len", seq_len), [])
        self._restore(state or self._state())
        self.resize(batch_size, seq_len)

    def at(self, progress: float) -> None:
        """Says how far the run is; this loader reads the same from beginning to end."""

    def next_batch(self) -> Batch | DocumentBatch:
        """The next (tokens, targets[, documents]); tokens and targets (B, T) int64 on `device`."""
        began = perf_counter()
        assembled = self._next.popleft().result() if self._next else self._assemble()
        self.waited_s += perf_counter() - began
        self._delivered = assembled.state
        if self._pool is not None:
            while len(self._next) < self._depth:
                self._next.append(self._pool.submit(self._assemble))
        batch = split_rows(assembled.rows, self.device)
        if assembled.documents is None:
            return batch
        return DocumentBatch(*batch, assembled.documents.to(self.device))

    def resize(self, batch_size: int, seq_len: int) -> None:
        """Batches of another shape from here on; the corpus goes on where it is."""
        if (batch_size, seq_len) == (self.batch_size, self.seq_len):
            return
        state = self._delivered
        self._discard()
        self.batch_size = batch_size
        if seq_len == self.seq_len:
            self._restore(state)  # what was packed ahead is packed again
            return
        read = {name: state[name] for name in ("seq_len", "epoch", "position", "buffer")}
        # Of earlier epochs nothing has to be known: this one visits every document again.
        earlier = [part for part in state.get("earlier", []) if part["epoch"] == state["epoch"]]
        self._cut(seq_len, [*earlier, read])
        self._used, self._cropped = state["used"], state["cropped"]
        self._buffer.load_state_dict({"epoch": state["epoch"], "position": 0, "buffer": []})
        self._delivered = self._state()

    def state_dict(self) -> dict[str, Any]:
        """What it takes to continue after the last batch that `next_batch` returned."""
        return dict(self._delivered)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`.

        Raises:
            TrainerError: The state belongs to other documents, another seed or other rows.
        """
        self._discard()
        self._restore(state)

    @property
    def epoch(self) -> int:
        """Passes over the corpus begun before the last delivered batch ended, from 0."""
        return int(self._delivered["epoch"])

    @property
    def crop_rate(self) -> float:
        """Share of the tokens read so far that was dropped to fill rows."""
        used, cropped = self._delivered["used"], self._delivered["cropped"]
        return cropped / (used + cropped) if used else 0.0

    def close(self) -> None:
        """Ends the read-ahead thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _discard(self) -> None:
        """Forgets what was packed ahead."""
        while self._next:
            self._next.popleft().result()

    def _cut(self, seq_len: int, earlier: list[dict[str, Any]]) -> None:
        """Cuts documents into pieces of at most `seq_len` tokens behind a BOS.

        Args:
            earlier: Positions reached in this epoch with rows of other lengths.
        """
        self.seq_len, self._earlier = seq_len, earlier
        self._first, self._lengths = cut_pieces(self.documents.lengths, seq_len)
        unread = None
        if earlier:
            epoch = earlier[-1]["epoch"]
            untouched = np.ones(len(self.documents), dtype=bool)
            for position, part in enumerate(earlier):
                # An earlier cut had left out what those before it had read: so does its order.
                first, _ = cut_pieces(self.documents.lengths, part["seq_len"])
                owner = np.repeat(np.arange(len(self.documents)), np.diff(first))
                order = epoch_order(len(owner), self.seed, epoch)
                if position:
                    order = order[untouched[owner[order]]]
                taken = np.setdiff1d(order[: part["position"]], part["buffer"])
                untouched[owner[taken]] = False
            unread = (epoch, np.repeat(untouched, np.diff(self._first)))
        self._buffer = ShuffledBuffer(self._lengths, self._buffer_pieces, self.seed, unread)

    def _state(self) -> dict[str, Any]:
        counts = {"used": self._used, "cropped": self._cropped}
        place: dict[str, Any] = {"seq_len": self.seq_len}
        if self._earlier and self._earlier[-1]["epoch"] == self._buffer.epoch:
            place["earlier"] = self._earlier
        return {**self._identity, **place, **self._buffer.state_dict(), **counts}

    def _restore(self, state: dict[str, Any]) -> None:
        found = {name: state.get(name) for name in self._identity}
        if found != self._identity:
            different = [name for name in found if found[name] != self._identity[name]]
            raise TrainerError(
                "bad_input",
                "the saved data position does not fit this run: "
                + ", ".join(f"{n} {found[n]!r} is {self._identity[n]!r} now" for n in different),
                "Resume with the recipe and the data the run began with, or start a new run.",
            )
        self._delivered = state
        if (self.seq_len, self._earlier) != (state["seq_len"], state.get("earlier", [])):
            self._cut(state["seq_len"], state.get("earlier", []))
        self._buffer.load_state_dict(state)
        self._used, self._cropped = state["used"], state["cropped"]

    def _piece(self, piece: int) -> np.ndarray:
        """Tokens of a piece without the BOS in front."""
        document = int(np.searchsorted(self._first, piece, side="right")) - 1
        begin = 1 + (piece - int(self._first[document])) * self.seq_len
        return self.documents[document][begin : begin + self.seq_len]

    def _assemble(self) -> _Assembled:
        """The next rows, what is known of them, and the state after them."""
        rows = np.empty((self.batch_size, self.seq_len + 1), dtype=np.int64)
        for row in rows:
            self._fill_row(row)
        documents = None if self._bos is None else find_documents(rows[:, :-1], self._bos)
        tensor = torch.from_numpy(rows)
        if self.device.type == "cuda":  # here, so that the training thread need not copy
            tensor = tensor.pin_memory()
        return _Assembled(tensor, documents, self._state())

    def _fill_row(self, row: np.ndarray) -> None:
        row[-1] = bos = self.documents[0][0]  # what stays when only one token is left to fill
        filled = 0
        while (space := len(row) - filled - 1) > 0:  # behind the BOS
            if filled:
                piece = self._buffer.take(space, or_shortest=True)
            else:
                piece = self._buffer.take_first()
            assert piece is not None  # the shortest piece is taken where none fits
            length = int(self._lengths[piece])
            taken = min(length, space)
            row[filled] = bos
            row[filled + 1 : filled + 1 + taken] = self._piece(piece)[:taken]
            filled += 1 + taken
            self._used += taken
            self._cropped += length - taken


class _Assembled(NamedTuple):
    """Rows (B, T + 1) int64, their documents, and the loader's state after them."""

    rows: torch.Tensor
    documents: Documents | None
    state: dict[str, Any]


def cut_pieces(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of documents of `lengths` tokens, their BOS counted.

    Returns:
        first: (documents + 1,); document i has the pieces first[i] to first[i + 1] - 1.
        pieces: their tokens without the BOS, seq_len for all but a document's last.
    """
    texts = lengths - 1
    counts = np.maximum(1, -(-texts // seq_len))
    first = np.concatenate([[0], np.cumsum(counts)])
    pieces = np.full(first[-1], seq_len, dtype=np.int32)
    pieces[first[1:] - 1] = texts - (counts - 1) * seq_len
    return first, pieces


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..count-1, a function of its arguments alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def split_rows(rows: torch.Tensor, device: torch.device) -> Batch:
    """Rows (B, T + 1) -> inputs and targets (B, T) on `device`."""
    if device.type == "cuda":
        rows = rows if rows.is_pinned() else rows.pin_memory()
        rows = rows.to(device, non_blocking=True)
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


def validation_batches(
    documents: DocumentSource,
    batch_size: int,
    seq_len: int,
    *,
    max_tokens: int | None = None,
    pad_id: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """The validation pieces in corpus order, each row one piece; always the same batches.

    Args:
        max_tokens: Stop after the document that brings the number of targets to this.
        pad_id: Input token behind the end of a piece; its targets are -1.
    """
    device = torch.device(device)
    pieces: list[np.ndarray] = []
    for piece in validation_pieces(documents, seq_len, max_tokens=max_tokens):
        pieces.append(piece)
        if len(pieces) == batch_size:
            yield _pad_pieces(pieces, seq_len, pad_id, device)
            pieces = []
    if pieces:
        # The last batch keeps its shape (compiled models want one); its spare rows count nothing.
        pieces += [np.array([pad_id])] * (batch_size - len(pieces))
        yield _pad_pieces(pieces, seq_len, pad_id, device)


def validation_pieces(
    documents: DocumentSource, seq_len: int, *, max_tokens: int | None = None
) -> Iterator[np.ndarray]:
    """Pieces, BOS first, of all documents in order."""
    targets = 0
    for index in range(len(documents)):
        tokens = documents[index]
        for begin in range(1, len(tokens), seq_len):
            yield np.concatenate([tokens[:1], tokens[begin : begin + seq_len]])
        targets += len(tokens) - 1
        if max_tokens is not None and targets >= max_tokens:
            return


def _pad_pieces(
    pieces: Sequence[np.ndarray], seq_len: int, pad_id: int, device: torch.device
) -> Batch:
    tokens = np.full((len(pieces), seq_len), pad_id, dtype=np.int64)
    targets = np.full((len(pieces), seq_len), -1, dtype=np.int64)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece) - 1] = piece[:-1]
        targets[row, : len(piece) - 1] = piece[1:]
    return Batch(torch.from_numpy(tokens).to(device), torch.from_numpy(targets).to(device))

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.errors import TrainerError
from reference.rows.packing import (
    PackedLoader,
    epoch_order,
    validation_batches,
    validation_pieces,
)

BOS = 0


class Corpus:
    """Documents in which every token tells its document and place: BOS, then 1000 * i + place."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths, dtype=np.int64)
        self.digest = f"sha256:{lengths}"

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        tokens = 1000 * (index + 1) + np.arange(self.lengths[index], dtype=np.uint32)
        tokens[0] = BOS
        return tokens


lengths_lists = st.lists(st.integers(2, 40), min_size=1, max_size=60)


def loader(corpus: Corpus, **options) -> PackedLoader:
    return PackedLoader(
        corpus, options.pop("batch_size", 3), options.pop("seq_len", 15), options.pop("seed", 1),
        **{"prefetch": False, "buffer_pieces": 8, **options},
    )  # fmt: skip


def rows_of(batch) -> list[list[int]]:
    """The packed rows (T + 1 tokens) behind a batch."""
    tokens, targets = batch
    return torch.cat([tokens, targets[:, -1:]], dim=1).tolist()


def pieces_of(row: list[int]) -> list[list[int]]:
    """A row cut before every BOS."""
    starts = [i for i, token in enumerate(row) if token == BOS] + [len(row)]
    return [row[a:b] for a, b in itertools.pairwise(starts)]


def all_pieces(corpus: Corpus, seq_len: int = 15) -> list[list[int]]:
    """BOS and at most seq_len tokens, cut from each document in turn."""
    texts = [corpus[i].tolist()[1:] for i in range(len(corpus))]
    return [
        [BOS, *text[begin : begin + seq_len]]
        for text in texts
        for begin in range(0, len(text), seq_len)
    ]


@settings(max_examples=60, deadline=None)
@given(lengths_lists, st.integers(0, 3))
def test_rows_are_full_begin_with_bos_and_hold_whole_pieces_but_the_last(
    lengths: list[int], seed: int
) -> None:
    corpus = Corpus(lengths)
    pieces = all_pieces(corpus)
    packed = loader(corpus, seed=seed)
    for _ in range(5):
        tokens, targets = packed.next_batch()
        assert tokens.shape == targets.shape == (3, 15) and tokens.dtype == torch.int64
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        for row in rows_of((tokens, targets)):
            *whole, last = pieces_of(row)
            assert row[0] == BOS and len(row) == 16
            assert all(piece in pieces for piece in whole)
            assert any(piece[: len(last)] == last for piece in pieces)  # BOS alone, too


@settings(max_examples=60, deadline=None)
@given(lengths_lists)
def test_packing_equals_the_rule_written_down_naively(lengths: list[int]) -> None:
    corpus, capacity = Corpus(lengths), 16
    pieces = all_pieces(corpus)
    stream = (int(i) for epoch in range(10**6) for i in epoch_order(len(pieces), 1, epoch))
    buffer: list[tuple[int, int]] = []  # (tokens, piece) in order of arrival
    packed = loader(corpus)
    for _ in range(4):
        for row in rows_of(packed.next_batch()):
            expected: list[int] = []
            while len(expected) < capacity:
                while len(buffer) < min(8, len(pieces)):
                    index = next(stream)
                    buffer.append((len(pieces[index]), index))
                space = capacity - len(expected)
                if space == 1:
                    expected.append(BOS)
                    break
                fitting = [entry for entry in buffer if entry[0] <= space]
                tokens = max(fitting)[0] if fitting else min(buffer)[0]
                if not expected:
                    tokens = buffer[0][0]
                chosen = next(entry for entry in buffer if entry[0] == tokens)
                buffer.remove(chosen)
                expected += pieces[chosen[1]][:space]
            assert row == expected


def test_long_documents_are_read_to_their_end() -> None:
    corpus = Corpus([91])  # six full pieces
    packed = loader(corpus, batch_size=1, buffer_pieces=1)
    rows = [rows_of(packed.next_batch())[0] for _ in range(6)]
    assert {token for row in rows for token in row} == set(corpus[0].tolist())


def test_one_epoch_reads_every_document_once_and_the_next_in_another_order() -> None:
    assert sorted(epoch_order(50, 3, 0)) == list(range(50))
    assert list(epoch_order(50, 3, 0)) != list(epoch_order(50, 3, 1))
    assert list(epoch_order(50, 3, 0)) != list(epoch_order(50, 4, 0))
    corpus = Corpus([8] * 40)  # two a row: nothing is cropped
    packed = loader(corpus, batch_size=1)
    seen = Counter(
        piece[1] // 1000 - 1
        for _ in range(16)  # 32 of the 40 documents; 8 wait in the buffer
        for piece in pieces_of(rows_of(packed.next_batch())[0])
    )
    assert max(seen.values()) == 1 and len(seen) == 32
    assert packed.epoch == 0 and packed.crop_rate == 0.0
    packed.next_batch()
    assert packed.epoch == 1


def test_short_documents_do_not_wait_for_the_long_ones() -> None:
    lengths = [16, 5] * 500  # of one mixture, half of them fill a row alone
    corpus = Corpus(lengths)
    packed = loader(corpus, batch_size=60, buffer_pieces=100)
    rows = rows_of(packed.next_batch())
    seen = {piece[1] // 1000 - 1 for row in rows for piece in pieces_of(row) if len(piece) > 1}
    order = epoch_order(1000, 1, 0)[: len(seen)].tolist()
    assert len(seen & set(order)) > 0.7 * len(seen)


def test_crop_rate_counts_what_was_dropped() -> None:
    packed = loader(Corpus([11]), batch_size=1, buffer_pieces=1)
    packed.next_batch()  # BOS and 10 tokens, then BOS and 4 of 10
    assert packed.crop_rate == 6 / 20


def test_a_larger_buffer_crops_less() -> None:
    lengths = np.random.default_rng(0).integers(2, 16, 500).tolist()
    rates = []
    for buffer in (1, 100):
        packed = loader(Corpus(lengths), buffer_pieces=buffer)
        for _ in range(20):
            packed.next_batch()
        rates.append(packed.crop_rate)
    assert rates[1] < rates[0] / 2


@settings(max_examples=30, deadline=None)
@given(lengths_lists, st.integers(0, 12), st.booleans(), st.booleans())
def test_resumed_loader_continues_exactly(
    lengths: list[int], before: int, first_prefetches: bool, second_prefetches: bool
) -> None:
    corpus = Corpus(lengths)
    first = loader(corpus, prefetch=first_prefetches)
    for _ in range(before):
        first.next_batch()
    state = first.state_dict()
    expected = [rows_of(first.next_batch()) for _ in range(3)]
    second = loader(corpus, prefetch=second_prefetches, state=state)
    assert [rows_of(second.next_batch()) for _ in range(3)] == expected
    second.load_state_dict(state)
    assert [rows_of(second.next_batch()) for _ in range(3)] == expected
    assert second.state_dict() == first.state_dict()
    first.close()
    second.close()


def test_state_survives_torch_save_with_weights_only(tmp_path) -> None:
    packed = loader(Corpus([5, 9, 30]))
    packed.next_batch()
    torch.save(packed.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == packed.state_dict()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"seed": 2}, "seed 1 is 2 now"), ({}, "digest")],
)
def test_state_of_another_run_is_refused(options: dict, name: str) -> None:
    state = loader(Corpus([5, 9, 30])).state_dict()
    corpus = Corpus([5, 9, 31]) if name == "digest" else Corpus([5, 9, 30])
    with pytest.raises(TrainerError, match=name):
        loader(corpus, state=state, **options)


def test_errors_of_the_read_ahead_thread_reach_the_caller() -> None:
    class Broken(Corpus):
        def __getitem__(self, index: int) -> np.ndarray:
            if index == 3:
                raise OSError("disk is gone")
            return super().__getitem__(index)

    packed = loader(Broken([9] * 6), prefetch=True, buffer_pieces=2)
    with pytest.raises(OSError, match="disk is gone"):
        for _ in range(4):
            packed.next_batch()
    packed.close()


@settings(max_examples=60, deadline=None)
@given(lengths_lists, st.integers(1, 20), st.integers(1, 5))
def test_validation_predicts_every_token_but_bos_exactly_once(
    lengths: list[int], seq_len: int, batch_size: int
) -> None:
    corpus = Corpus(lengths)
    targets = [
        target
        for batch in validation_batches(corpus, batch_size, seq_len)
        for target in batch.targets[batch.targets >= 0].tolist()
    ]
    expected = [token for i in range(len(corpus)) for token in corpus[i].tolist()[1:]]
    assert targets == expected


def test_validation_pieces_begin_with_bos_and_stay_within_a_document() -> None:
    pieces = [piece.tolist() for piece in validation_pieces(Corpus([6, 3]), 2)]
    assert pieces == [[0, 1001, 1002], [0, 1003, 1004], [0, 1005], [0, 2001, 2002]]


def test_validation_batches_pad_with_uncounted_targets_and_keep_their_shape() -> None:
    batches = list(validation_batches(Corpus([6, 3]), 3, 4, pad_id=7))
    assert [batch.tokens.tolist() for batch in batches] == [
        [[0, 1001, 1002, 1003], [0, 7, 7, 7], [0, 2001, 7, 7]]
    ]
    assert batches[0].targets.tolist() == [
        [1001, 1002, 1003, 1004],
        [1005, -1, -1, -1],
        [2001, 2002, -1, -1],
    ]
    assert [b.tokens.shape for b in validation_batches(Corpus([6, 3]), 2, 4)] == [(2, 4), (2, 4)]


def test_validation_stops_after_the_document_that_reaches_the_limit() -> None:
    documents = {w[1] // 1000 for w in validation_pieces(Corpus([6, 6, 6]), 100, max_tokens=6)}
    assert documents == {1, 2}

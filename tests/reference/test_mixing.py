"""Rows worth another look and conversations among new rows: which, how many, resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference.chat.conversation import Rendered
from reference.errors import TrainerError
from reference.experiments.replay_rows.buffer import ReplayBuffer
from reference.model.gpt import GPT, ModelConfig
from reference.rows.conversations import ConversationLoader, hold_out_seed
from reference.rows.mixing import COLLECT_FROM, MixedLoader, Replay, Talks
from reference.rows.packing import PackedLoader
from reference.train.snapshot import load_snapshot, save_snapshot

T = 8
NEW, TALK = 1, 50  # tokens from which each source counts its documents


class Numbered:
    """Documents that fill a row each, all of one token, so that a row says which it is."""

    digest = "numbered"

    def __init__(self, count: int = 400) -> None:
        self._documents = [np.array([0] + [NEW + i] * T) for i in range(count)]
        self.lengths = np.full(count, T + 1)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._documents[index]


def buffer(capacity: int = 3) -> ReplayBuffer:
    return ReplayBuffer(capacity, 2, seed=1)


def row(token: int) -> np.ndarray:
    return np.array([0, token])


def tokens_of(kept: ReplayBuffer, slots: list[int]) -> list[int]:
    return [int(kept.rows[slot, 1]) for slot in slots]


def test_what_falls_fastest_is_replayed_and_neither_noise_nor_the_known_is():
    kept = buffer(4)
    noise, known, learnable, slower = 7, 8, 9, 10
    first = {noise: 3.0, known: -2.0, learnable: 1.0, slower: 0.5}  # relative to the mean
    second = {noise: 3.0, known: -1.9, learnable: 0.2, slower: 0.2}
    for token, loss in first.items():
        kept.offer(row(token), loss)
    slots = kept.draw(9)
    assert tokens_of(kept, slots) == list(first)  # second looks, in the order of arrival
    assert kept.draw(1) == []  # none twice before its loss is known
    kept.saw(slots, np.array([second[token] for token in tokens_of(kept, slots)]))
    assert tokens_of(kept, kept.draw(4)) == [learnable, slower]
    # Learnt by heart: no fall is left, so the other one comes first from now on.
    kept.saw([2, 3], np.array([0.2, 0.1]))
    assert tokens_of(kept, kept.draw(4)) == [slower]


def test_half_of_the_replays_are_second_looks():
    kept = buffer(6)
    for token in range(6):
        kept.offer(row(token), 1.0)
    kept.saw(kept.draw(2), np.array([0.0, 0.5]))
    assert tokens_of(kept, kept.draw(4)) == [2, 0, 3, 1]
    assert tokens_of(kept, kept.draw(9)) == [4, 5]  # the rest, as there are no others


def test_a_full_buffer_gives_up_what_taught_nothing_and_never_what_taught():
    kept = buffer(3)
    for token in (1, 2, 3):
        kept.offer(row(token), 1.0)
    kept.saw(kept.draw(3), np.array([0.1, 1.4, 1.1]))
    kept.offer(row(4), 0.0)  # in place of the least
    kept.offer(row(5), 0.0)
    assert sorted(kept.rows[:, 1].tolist()) == [1, 4, 5]
    for token in range(6, 400):
        kept.offer(row(token), 0.0)
    assert 1 in kept.rows[:, 1] and len(kept) == 3


def test_rows_of_the_first_pass_enter_with_equal_chances():
    seen = np.zeros(60)
    for seed in range(400):
        kept = ReplayBuffer(6, 2, seed)
        for token in range(60):
            kept.offer(row(token), 0.0)
        seen[kept.rows[:, 1]] += 1
    # 400 * 6 / 60 = 40 expected each, deviation 6.
    assert abs(seen[:20].mean() - 40) < 6 and abs(seen[40:].mean() - 40) < 6
    assert seen.min() > 15


def mixed(state: dict[str, Any] | None = None, *, rows: int = 4, **changes: Any) -> MixedLoader:
    inner = state["mixed"] if state else None
    talks = [Rendered([0, TALK, TALK + 1], [0, 0, 1]) for _ in range(8)]
    source = ConversationLoader(talks, 1, T, 3, 0, state=state["talks"] if state else None)
    settings: dict[str, Any] = {
        "seq_len": T, "full_seq_len": T, "device": "cpu", "pad_id": 0,
        "replay": Replay(0.25, 0.5, 6, 5, ReplayBuffer), "talks": Talks(0.125, 0.75, source, True),
        "state": state, **changes,
    }  # fmt: skip
    loader = PackedLoader(Numbered(), rows, T, seed=1, prefetch=False, state=inner)
    return MixedLoader(loader, **settings)


def steps(loader: MixedLoader, first: int, last: int, of: int, micro_batches: int = 2):
    """Steps first to last - 1: their batches, and a loss for each row that its token decides."""
    for step in range(first, last):
        loader.at(step / of)
        batches = [loader.next_batch() for _ in range(micro_batches)]
        rows = torch.cat([batch.tokens for batch in batches])
        losses = 4.0 - 0.01 * step * (rows[:, 1] % 5).float()
        figures = loader.learned(losses) if loader.by_row else {}
        yield batches, figures


def test_shares_begin_where_they_should_and_hold_over_a_run():
    seen = list(steps(mixed(), 0, 40, of=40))
    for step, (_, figures) in enumerate(seen):
        assert bool(figures.get("replayed_rows")) == (step >= 20)
        assert bool(figures.get("sft_rows")) == (step >= 30)
        assert bool(figures) == (step >= 40 * 0.5 * COLLECT_FROM)
    assert sum(f["replayed_rows"] for _, f in seen[20:]) == 0.25 * 8 * 20
    assert sum(f["sft_rows"] for _, f in seen[30:]) == 0.125 * 8 * 10
    # Every new row once, in the order of the plain loader: none is skipped or read twice.
    new = [
        int(token)
        for batches, figures in seen
        for batch in batches
        for token in batch.tokens[:, 1]
        if token != TALK
    ]
    plain = PackedLoader(Numbered(), 4, T, seed=1, prefetch=False)
    order = [int(t) for _ in range(80) for t in plain.next_batch().tokens[:, 1]]
    first_looks = list(dict.fromkeys(new))
    assert first_looks == order[: len(first_looks)]
    assert len(new) - len(first_looks) == 40  # what was replayed had been read before


def test_a_share_that_is_no_whole_row_is_carried_over():
    loader = mixed(rows=1, replay=None)
    found = [figures["sft_rows"] for _, figures in steps(loader, 30, 40, of=40, micro_batches=4)]
    assert found == [0, 1] * 5  # an eighth of four rows


@pytest.mark.parametrize("through_snapshot", [False, True])
def test_a_mixed_loader_resumes_exactly(tmp_path: Path, through_snapshot: bool):
    whole = [batch for batches, _ in steps(mixed(), 0, 40, of=40) for batch in batches]
    for cut in (3, 17, 27, 36):
        loader = mixed()
        for _ in steps(loader, 0, cut, of=40):
            pass
        state = loader.state_dict()
        for _ in steps(loader, cut, cut + 2, of=40):  # a state does not follow its loader
            pass
        if through_snapshot:
            save_snapshot(tmp_path, cut, state)
            state = load_snapshot(tmp_path / f"snapshots/step-{cut:08}.safetensors")[1]
        again = [b for batches, _ in steps(mixed(state), cut, 40, of=40) for b in batches]
        for mine, theirs in zip(again, whole[2 * cut :], strict=True):
            assert torch.equal(mine.tokens, theirs.tokens)
            assert torch.equal(mine.targets, theirs.targets)


def test_a_step_that_was_not_trained_on_leaves_no_mark():
    loader = mixed()
    for _ in steps(loader, 0, 30, of=40):
        pass
    loader.at(0.6)
    loader.next_batch()
    loader.at(0.6)  # begun again
    assert sum(figures["replayed_rows"] for _, figures in steps(loader, 30, 34, of=40)) == 8


@pytest.mark.parametrize("learn_all", [True, False])
def test_conversations_are_whole_and_padding_is_not_learnt(learn_all: bool):
    talk = Rendered([0, 60, 61, 62], [0, 0, 1, 1])
    source = ConversationLoader([talk, talk], 1, T, 3, 0)
    loader = mixed(rows=2, replay=None, talks=Talks(0.5, 0.0, source, learn_all), bos=0)
    loader.at(0.0)
    batch = loader.next_batch()
    assert loader.uneven and loader.by_row
    # Two whole conversations of four tokens; the ninth place is padding, of which only the input
    # would be seen, so it is cut off as the last input.
    assert batch.tokens[1].tolist() == [0, 60, 61, 62, 0, 60, 61, 62]
    expected = [60, 61, 62, 0, 60, 61, 62, -1] if learn_all else [-1, 61, 62, -1, -1, 61, 62, -1]
    assert batch.targets[1].tolist() == expected
    assert (batch.targets[0] >= 0).all()
    assert batch.documents.starts[1].tolist() == [0, 0, 0, 0, 4, 4, 4, 4]


def test_rows_of_another_length_are_not_kept():
    loader = mixed(seq_len=4, talks=None)
    loader.resize(8, 4)
    for _ in steps(loader, 10, 20, of=40, micro_batches=1):
        pass
    loader.resize(4, T)
    loader.at(0.6)
    assert loader.next_batch().tokens.shape == (4, T)
    assert len(loader.state_dict()["buffer"]["value"]) == 0
    short = mixed(seq_len=4)
    short.resize(8, 4)
    short.at(0.9)
    with pytest.raises(TrainerError, match="rows of 4 tokens"):
        short.next_batch()


@pytest.mark.parametrize("fused", [True, False])
def test_each_loss_is_handed_out_and_changes_nothing(fused: bool):
    config = ModelConfig(300, n_layer=1, n_embd=32, n_head=2, n_kv_head=2, seq_len=16)
    model = GPT(config)
    model.init_weights(1)
    model.full_loss = not fused
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(300, (3, 16), generator=draw)
    targets = torch.randint(300, (3, 16), generator=draw)
    targets[1, 4:] = -1
    found = []
    for each in (None, torch.empty(3, 16)):
        model.zero_grad(set_to_none=True)
        loss = model.loss(tokens, targets, each=each)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    expected = model.loss(tokens, targets, "none").detach()
    torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)


def test_both_stages_hold_out_the_same_conversations_where_both_read_them():
    plain = {"pretrain": {"sft_share": 0}}
    assert hold_out_seed(plain, 1) != hold_out_seed(plain, 2)
    mixing = {"pretrain": {"sft_share": 0.1}}
    assert hold_out_seed(mixing, 1) == hold_out_seed(mixing, 2)

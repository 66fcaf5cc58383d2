"""Phases of a run, rows of changing length, memory running out, checkpoints in the background."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import reference.train.checkpoint
from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.model.cost import estimate
from reference.model.gpt import GPT
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import ScheduleConfig, schedule_at
from reference.rows.packing import PackedLoader
from reference.train.checkpoint import BackgroundSaver, load_latest_state
from reference.train.curriculum import Curriculum, rows_at
from reference.train.memory import GIB, fitting_micro_batch, plan_vram
from reference.train.step import Stepper, is_out_of_memory

CONFIG = ModelConfig(64, n_layer=2, n_embd=32, n_head=2, n_kv_head=2, seq_len=32, short_window=16)
RATES = {
    "total_batch_size": 128, "matrix_lr": 0.02, "embedding_lr": 0.05, "unembedding_lr": 0.008,
    "value_embedding_lr": 0.05, "resid_lr": 0.005, "x0_lr": 0.05, "gate_lr": 0.05,
    "weight_decay": 0.1, "scale_lr": False, "device_batch_size": 4,
}  # fmt: skip


class Corpus:
    """Documents of made-up tokens, each with a number of its own in it."""

    def __init__(self, lengths, bos=0):
        self.lengths = np.array(lengths) + 1
        self.digest = "sha256:made"
        self.documents = [
            np.concatenate([[bos], 1 + i * 1000 + np.arange(n)]) for i, n in enumerate(lengths)
        ]

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        return self.documents[index]


def corpus(count=120, seed=0):
    return Corpus(np.random.default_rng(seed).integers(3, 60, count).tolist())


def read(loader, batches):
    return [loader.next_batch().tokens.numpy().copy() for _ in range(batches)]


# Phases


def test_a_run_without_ramps_is_one_phase():
    curriculum = Curriculum.from_recipe(CONFIG, RATES)
    assert curriculum.begins == (0.0,)
    phase = curriculum.at(0.7)
    assert (phase.seq_len, phase.windows, phase.batch_tokens) == (32, CONFIG.windows, 128)
    assert not phase.eight_bit and not phase.tied
    assert curriculum.lr_scale(phase) == 1.0


def test_phases_change_where_their_ramps_say():
    config = ModelConfig(64, n_layer=4, n_embd=32, n_head=2, n_kv_head=2, seq_len=2048,
                         window_pattern="SSSL", tied_until=0.6)  # fmt: skip
    section = {
        "total_batch_size": 1 << 16, "matmul": "fp8", "matmul_until": 0.9,
        "seq_len_ramp": [[0.0, 1024], [0.3, 2048]], "window_ramp": [[0.0, 0.25], [0.5, 1.0]],
        "batch_ramp": [[0.0, 1 << 14], [0.1, 1 << 16]],
    }  # fmt: skip
    curriculum = Curriculum.from_recipe(config, section)
    assert curriculum.begins == (0.0, 0.1, 0.3, 0.5, 0.6, 0.9)
    first, last = curriculum.at(0.0), curriculum.at(1.0)
    assert first.windows == (128, 128, 128, 512) and first.seq_len == 1024
    assert first.batch_tokens == 1 << 14 and first.eight_bit and first.tied
    assert curriculum.lr_scale(first) == 0.5
    assert last.windows == (512, 512, 512, 2048) and last.seq_len == 2048
    assert not last.eight_bit and not last.tied and curriculum.lr_scale(last) == 1.0
    assert curriculum.at(0.0999) == first and curriculum.at(0.1).batch_tokens == 1 << 16
    assert curriculum.at(0.59).tied and not curriculum.at(0.6).tied
    assert curriculum.at(0.89).eight_bit
    # The same tokens in a micro-batch of shorter rows; a small batch may hold fewer.
    assert rows_at(first, 4, 2048) == 8 and rows_at(last, 4, 2048) == 4
    assert rows_at(first._replace(batch_tokens=3 * 1024), 4, 2048) == 1


# Rows of another length


@pytest.mark.parametrize("lengths", [(8, 32), (32, 8), (8, 16, 32)])
def test_a_change_of_length_reads_no_document_twice_in_an_epoch(lengths):
    material = corpus()
    loader = PackedLoader(material, 2, lengths[0], 1, buffer_pieces=16)
    owners = []
    for length in lengths:
        loader.resize(2, length)
        rows = np.concatenate([batch.ravel() for batch in read(loader, 6)])
        owners.append(set((rows[rows > 0] - 1) // 1000))
    assert loader.epoch == 0, "the test means one epoch"
    for i, mine in enumerate(owners):
        for other in owners[i + 1 :]:
            # Pieces that waited in the buffer when the length changed are read later, whole.
            assert not mine & other
    loader.close()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("stop_after", [0, 2, 4, 7])
def test_a_resumed_loader_gives_the_same_batches_over_a_change_of_length(prefetch, stop_after):
    """Resumed from a saved position, before or after the change, with other read-ahead."""

    def shape(i):
        return (4, 8) if i < 3 else (1, 32) if i < 6 else (2, 16)

    def batches(loader, first, last):
        for i in range(first, last):
            loader.resize(*shape(i))
            yield loader.next_batch().tokens.clone()

    loader = PackedLoader(corpus(), 4, 8, 5, buffer_pieces=10, prefetch=prefetch)
    expected = list(batches(loader, 0, 10))
    loader.close()
    loader = PackedLoader(corpus(), 4, 8, 5, buffer_pieces=10, prefetch=2)
    begun = list(batches(loader, 0, stop_after))
    state = json.loads(json.dumps(loader.state_dict()))
    loader.close()
    loader = PackedLoader(
        corpus(), *shape(stop_after), 5, buffer_pieces=10, prefetch=prefetch, state=state
    )
    begun += list(batches(loader, stop_after, 10))
    loader.close()
    assert all(torch.equal(a, b) for a, b in zip(begun, expected, strict=True))


def test_later_epochs_visit_every_document_again():
    material = Corpus([5, 9, 20, 30, 7, 12])
    loader = PackedLoader(material, 1, 8, 3, buffer_pieces=2)
    read(loader, 2)
    loader.resize(1, 16)
    rows = np.concatenate([batch.ravel() for batch in read(loader, 30)])
    assert set((rows[rows > 0] - 1) // 1000) == set(range(6))
    assert loader.epoch > 1 and "earlier" not in loader.state_dict()
    loader.close()


def test_the_number_of_rows_moves_no_token():
    one, other = (PackedLoader(corpus(), rows, 8, 5) for rows in (4, 2))
    both = np.concatenate(read(other, 4))
    assert np.array_equal(np.concatenate(read(one, 2)), both)
    one.resize(2, 8)
    assert np.array_equal(np.concatenate(read(one, 2)), np.concatenate(read(other, 2)))
    for loader in (one, other):
        loader.close()


def test_batches_say_where_documents_begin():
    loader = PackedLoader(corpus(), 2, 32, 1, bos=0)
    batch = loader.next_batch()
    begins = batch.tokens == 0
    assert torch.equal(~batch.documents.goes_on, begins) and begins.sum() > 2
    loader.close()


# Memory


def trainer(seed=0, config=CONFIG):
    model = GPT(config)
    model.init_weights(seed)
    return model.place(), None


def steps(model, fail_at=None, parts=1, count=4):
    """Losses, weights and notes of a few steps; memory runs out in loss call number `fail_at`."""
    optimizer = MuonAdamW(parameter_groups(model, RATES))
    stepper = Stepper(model, optimizer, parts=parts)
    generator = torch.Generator().manual_seed(2)
    real, calls = model.loss, []

    def loss(tokens, *args, **options):
        calls.append(len(tokens))
        if fail_at is not None and len(calls) in fail_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(tokens, *args, **options)

    model.loss = loss
    losses = []
    for step in range(count):
        rows = torch.randint(0, 64, (2, 4, 33), generator=generator)
        batches = ((row[:, :-1], row[:, 1:]) for row in rows)
        multipliers = schedule_at(0.0, step, ScheduleConfig())
        losses.append(stepper.step(batches, multipliers, count=2 * 4 * 32))
    return losses, model.blocks[0].mlp.c_fc.weight.detach(), stepper, calls


@pytest.mark.parametrize("fail_at", [{1}, {2}, {4}])
def test_a_step_out_of_memory_is_done_again_in_halves_with_the_same_batch(fail_at):
    expected, weight, _, _ = steps(trainer()[0])
    losses, found, stepper, calls = steps(trainer()[0], fail_at)
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found, weight, atol=1e-5, rtol=1e-4)
    assert stepper.parts == 2 and len(stepper.notes) == 1
    assert "out of memory" in stepper.notes[0] and "in 2 parts" in stepper.notes[0]
    assert set(calls[max(fail_at) :]) == {2}


def test_memory_that_runs_out_twice_halves_twice_and_at_one_row_it_ends():
    losses, _, stepper, calls = steps(trainer()[0], {1, 2})
    assert stepper.parts == 4 and calls[2:6] == [1, 1, 1, 1] and len(losses) == 4
    with pytest.raises(TrainerError, match="one sequence at a time") as error:
        steps(trainer()[0], {1, 2, 3})
    assert error.value.kind == "out_of_memory"


def test_parts_are_the_rounding_of_a_run_that_had_them_from_the_start():
    assert steps(trainer()[0], {1})[0] == steps(trainer()[0], parts=2)[0]


def test_only_memory_is_caught_and_never_in_the_middle_of_an_update(monkeypatch):
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    model = trainer()[0]
    monkeypatch.setattr(
        MuonAdamW,
        "_step_matrices",
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("late")),
    )
    with pytest.raises(torch.OutOfMemoryError, match="late"):
        steps(model)


def test_the_micro_batch_follows_the_memory_plan():
    large = ModelConfig(49152, n_layer=20, n_embd=1280, n_head=10, n_kv_head=10)
    section = {"device_batch_size": 64, "total_batch_size": 524288}
    small, big = (fitting_micro_batch(large, section, gib * GIB) for gib in (24, 80))
    assert small < big <= 64 and 524288 % (small * 2048) == 0
    assert sum(plan_vram(large, small, section).values()) <= 0.9 * 24 * GIB
    assert sum(plan_vram(large, 2 * small, section).values()) > 0.9 * 24 * GIB
    free = {**section, "device_batch_size": 0}
    assert fitting_micro_batch(large, free, 24 * GIB) == small
    assert fitting_micro_batch(large, free, None) == 8
    assert fitting_micro_batch(large, section, None) == 64, "a CPU takes the recipe at its word"
    assert fitting_micro_batch(large, {**section, "device_batch_size": 6}, GIB) == 1


def test_the_estimate_is_of_the_micro_batch_that_fits():
    recipe = {
        "model": {"n_layer": 20, "n_embd": 1280, "n_head": 10, "n_kv_head": 10, "seq_len": 2048},
        "tokenizer": {"vocab_size": 32768},
        "pretrain": {"num_steps": 10, "device_batch_size": 0, "total_batch_size": 524288},
    }
    whole = estimate(recipe)
    assert whole["vram_bytes"]["fits_24gb"] and whole["micro_batch"]["sequences"] > 1
    recipe["pretrain"]["vram_cap_gib"] = 16
    capped = estimate(recipe)
    assert capped["micro_batch"]["sequences"] < whole["micro_batch"]["sequences"]
    assert capped["vram_bytes"]["total"] < 0.9 * 16 * GIB
    assert capped["micro_batch"]["per_step"] * capped["micro_batch"]["sequences"] == 256


# Checkpoints in the background


def test_a_state_is_that_of_the_moment_it_was_asked_for(tmp_path, monkeypatch):
    gate, real = threading.Event(), reference.train.checkpoint.save_state

    def slow(*args):
        gate.wait(10)
        return real(*args)

    monkeypatch.setattr(reference.train.checkpoint, "save_state", slow)
    saver, weight = BackgroundSaver(tmp_path), torch.ones(3)
    state = {"model": {"w": weight}, "more": [{"x": weight, "n": 1}], "none": None}
    assert saver.save(1, state) == [] and saver.finished() == []
    weight.fill_(2.0)
    gate.set()
    [saved] = saver.wait()
    assert (saved.step, saved.bytes) == (1, next(Path(tmp_path).rglob("*.pt")).stat().st_size)
    step, found = load_latest_state(tmp_path)
    assert step == 1 and found["more"][0]["n"] == 1 and found["none"] is None
    assert torch.equal(found["model"]["w"], torch.ones(3))
    assert torch.equal(found["more"][0]["x"], torch.ones(3))
    assert saver.finished() == [] and saver.save(2, state) == []
    assert [part.step for part in saver.save(3, state)] == [2]
    saver.close()


@pytest.mark.parametrize("background", [False, True])
def test_an_error_of_the_thread_reaches_the_run(tmp_path, monkeypatch, background):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference.train.checkpoint, "save_state", full)
    saver = BackgroundSaver(tmp_path, background=background)
    with pytest.raises(OSError, match="No space"):
        saver.save(1, {})
        saver.wait()
    saver.close()

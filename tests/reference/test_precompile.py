"""What is compiled before the first step is all that a run needs, evaluations included."""

from __future__ import annotations

import pytest
import torch
from support.tiny_training import BENCH, tiny_recipe

from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.train import loop
from reference.train import step as training_step
from reference.train.loop import TrainState
from reference.train.step import compiled_graphs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning",
                            "ignore:The .grad attribute of a Tensor:UserWarning")  # fmt: skip
@pytest.mark.parametrize("changes", [{}, {"window_ramp": [[0.0, 0.5], [0.5, 1.0]]}], ids=str)
def test_the_first_evaluation_compiles_nothing(changes, monkeypatch, tmp_path):
    torch._dynamo.reset()

    def compile_blocks(model):
        for block in model.blocks:
            block.compile(dynamic=False, backend="eager")

    monkeypatch.setattr(training_step, "compile_blocks", compile_blocks)
    recipe = tiny_recipe(**BENCH, **changes)
    state = TrainState.of_recipe(
        ModelConfig.from_recipe(recipe["model"], 320),
        recipe["pretrain"],
        device=torch.device("cpu"),
        seed=0,
        horizon_tokens=None,
    )
    state.prepare(lambda *_, **__: None, compile_setting="on", bos=0)
    before = compiled_graphs()
    tokens = torch.ones((2, 32), dtype=torch.int64)
    state.evaluate([(tokens, tokens)], torch.ones(320, dtype=torch.int64))
    assert before > 0 and compiled_graphs() == before
    torch._dynamo.reset()


def prepared(monkeypatch, refused, **changes):
    """A state whose compiling runs out of memory while a piece has `refused` rows or more."""
    seen = []

    def precompile(model, section, decisions, shapes, bos, *, evaluation_rows):
        seen.append([rows for _, rows in shapes])
        if max(seen[-1]) >= refused:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB.")

    monkeypatch.setattr(loop, "precompile", precompile)
    monkeypatch.setattr(loop, "maybe_compile", lambda *_, **__: True)
    recipe = tiny_recipe(**{**BENCH, **changes})
    state = TrainState.of_recipe(
        ModelConfig.from_recipe(recipe["model"], 320),
        recipe["pretrain"],
        device=torch.device("cpu"),
        seed=0,
        horizon_tokens=None,
    )
    notes = []
    state.prepare(lambda text, **_: notes.append(text), bos=0)
    return state, seen, notes


def test_compiling_on_a_card_that_is_partly_filled_takes_smaller_pieces(monkeypatch):
    changes = {"device_batch_size": 4, "total_batch_size": 256}
    state, seen, notes = prepared(monkeypatch, 2, **changes)
    assert seen == [[4], [2], [1]]
    assert state.parts == state._stepper.parts == 4 and not state._stepper.notes
    assert sum("out of memory" in note and "parts" in note for note in notes) == 2
    # A resumed run begins with the pieces that fitted.
    monkeypatch.setattr(loop, "precompile", lambda *_, **__: None)
    state.prepare(lambda *_, **__: None, bos=0)
    assert state.parts == 4


def test_one_sequence_that_does_not_fit_is_an_error_with_a_remedy(monkeypatch):
    with pytest.raises(TrainerError, match="one sequence at a time") as error:
        prepared(monkeypatch, 1)
    assert "lower n_layer" in error.value.hint


@pytest.mark.parametrize("bos", [0, 5])
def test_documents_are_compiled_at_the_size_that_steps_have(monkeypatch, bos):
    """Rows full of BOS were compiled before: another graph, and 24 GiB for d12 by `varlen`."""
    from reference.kernels import attention

    sizes, plain = [], attention.find_documents

    def find_documents(tokens, bos):
        found = plain(tokens, bos)
        sizes.append(len(found.offsets))
        return found

    monkeypatch.setattr(attention, "find_documents", find_documents)
    recipe = tiny_recipe(**{**BENCH, "document_mask": True})
    state = TrainState.of_recipe(
        ModelConfig.from_recipe(recipe["model"], 320),
        recipe["pretrain"],
        device=torch.device("cpu"),
        seed=0,
        horizon_tokens=None,
    )
    monkeypatch.setattr(loop, "maybe_compile", lambda *_, **__: True)
    state.prepare(lambda *_, **__: None, bos=bos)
    one_a_row = plain(torch.full((state.micro_batch, 32), bos + 1).numpy(), bos)
    assert sizes and set(sizes) == {len(one_a_row.offsets)}

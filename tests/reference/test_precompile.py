"""What is compiled before the first step is all that a run needs, evaluations included."""

from __future__ import annotations

import pytest
import torch
from support.tiny_training import BENCH, tiny_recipe

from reference.config.model import ModelConfig
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

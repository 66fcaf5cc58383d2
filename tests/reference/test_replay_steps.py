"""Replay makes the steps of pretraining again to the bit, with every switch of the recipe."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import MORE_SWITCHES, SWITCHES, Recorder, make_world, training_request

from reference.train import loop, pretrain, replay
from reference.train.device import forget_determinism

ROOT = Path(__file__).parents[2]
ALL = {**SWITCHES, **MORE_SWITCHES}
BRIEF = {"snapshot_every": 3, "eval_every": 0, "checkpoint_every": 0, "eval_tokens": 64}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("replay"))


def run_and_replay(world: Path, folder: Path, name: str, **section: Any) -> tuple[Recorder, ...]:
    """The events of a run and of a replay of all its steps, in windows from each snapshot."""
    changes = {**ALL[name], "pretrain": {**ALL[name].get("pretrain", {}), **BRIEF, **section}}
    asked, events, again = training_request(world, folder / "run", changes), Recorder(), Recorder()
    pretrain.run(asked, events)
    steps = events.data("step")
    windows = [
        {"step": first, "progress": [step["progress"] for step in steps[first : first + 3]]}
        for first in (0, 3, 6)
    ]
    path = folder / "windows.json"
    path.write_text(json.dumps({"windows": windows, "validate": False}))
    paths = {**asked.paths, "replay": path, "base": folder / "run"}
    replay.run(replace(asked, stage="replay", paths=paths), again)
    return events, again


@pytest.fixture(autouse=True)
def tokenized_and_not_deterministic(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(replay, "_tokenize", lambda *_, **__: None)
    yield
    forget_determinism()


@pytest.mark.parametrize("name", ALL)
def test_replayed_losses_equal_those_of_the_run_to_the_bit(
    world: Path, tmp_path: Path, name: str
) -> None:
    events, again = run_and_replay(world, tmp_path, name)
    assert again.losses == events.losses and len(again.losses) == 8
    [of_run], [of_replay] = events.data("model"), again.data("model")
    assert of_replay["initial_weights"] == of_run["initial_weights"]


def test_replay_sets_up_device_memory_and_optimizer_as_the_run_did(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def small_memory(device: Any, cap_gib: float, measure: bool = False) -> int:
        calls.append(("memory", cap_gib))
        return int(cap_gib * 2**30)

    def optimizer(model: Any, section: Any, finished: Any) -> Any:
        calls.append(("optimizer", section["compile_optimizer"], finished.n_layer))
        return real(model, section, finished)

    real = loop.new_optimizer
    monkeypatch.setattr(loop, "memory_limit_bytes", small_memory)
    monkeypatch.setattr(loop, "plannable_bytes", small_memory)
    monkeypatch.setattr(loop, "new_optimizer", optimizer)
    monkeypatch.setattr(loop, "make_deterministic", lambda: calls.append(("deterministic",)))
    wanted = {"deterministic": True, "vram_cap_gib": 0.0006, "compile_optimizer": True}
    events, again = run_and_replay(world, tmp_path, "none", **wanted)
    assert {data["micro_batches"] for data in events.data("step")} == {4}, "1 row instead of 2"
    assert again.losses == events.losses
    setup = [("deterministic",), ("memory", 0.0006), ("optimizer", True, 2)]
    # The run says so once more for its note; the replay opens a state for the digest and each of
    # three windows.
    assert [call for call in calls if call != ("memory", 0.0006)] == 5 * [setup[0], setup[2]]
    assert calls[:3] == setup


def test_a_step_is_made_in_one_place() -> None:
    """Only the loop calls the function that computes gradients and updates the weights."""
    makers = {"Stepper", "train_step", "schedule_at"}
    told = {"reference/config/course.py": {"schedule_at"}}  # what `verify` expects of a log
    for path in (ROOT / "reference").rglob("*.py"):
        names = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        file = path.relative_to(ROOT).as_posix()
        if file != "reference/train/loop.py":
            assert not names & makers - told.get(file, set()), path

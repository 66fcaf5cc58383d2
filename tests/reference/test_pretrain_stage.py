"""The pretraining stage with its switches: stopped anywhere, resumed to the bit, out of memory."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import SWITCHES, Recorder, make_world, training_request

from reference.errors import TrainerError
from reference.model.cost import RunCost
from reference.model.gpt import GPT
from reference.request import Request
from reference.stage import Stopped
from reference.train import loop, pretrain, replay
from reference.train.checkpoint import load_model
from reference.train.step import Stepper


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("pretrain"))


def request(world: Path, out: Path, name: str, *, attempt: int = 0, **section: Any) -> Request:
    changes = SWITCHES[name]
    pretrain_section = {**changes.get("pretrain", {}), **section}
    return training_request(world, out, {**changes, "pretrain": pretrain_section}, attempt=attempt)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_run_stopped_in_any_phase_and_resumed_repeats_every_bit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = Recorder()
    pretrain.run(request(world, tmp_path / "whole", name), whole)
    assert [step for step, _, _ in whole.losses] == list(range(8))
    assert whole.losses[0][2] == pytest.approx(math.log(320), abs=0.7)
    parts, losses = tmp_path / "parts", []
    for attempt, stop_at in enumerate((2, 5, None)):
        events = Recorder()

        def stopped(events: Recorder = events, stop_at: int | None = stop_at) -> bool:
            return stop_at is not None and bool(events.losses) and events.losses[-1][0] >= stop_at

        monkeypatch.setattr(pretrain, "stop_requested", stopped)
        try:
            pretrain.run(request(world, parts, name, attempt=attempt), events)
        except Stopped:
            assert stop_at is not None
        losses += events.losses
    assert losses == whole.losses
    assert events.data("eval")[-1]["value"] == whole.data("eval")[-1]["value"]
    file = "model.safetensors"
    assert (parts / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    model, config = load_model(parts)
    assert model.tied == config.tied == (SWITCHES[name].get("model", {}).get("tied_until") == 1)
    assert not (parts / "state").exists()


def test_evaluations_between_the_first_and_the_last_may_be_shorter(
    world: Path, tmp_path: Path
) -> None:
    full, brief = Recorder(), Recorder()
    pretrain.run(request(world, tmp_path / "full", "none", eval_every=2), full)
    section = {"eval_every": 2, "eval_tokens_between": 64}
    pretrain.run(request(world, tmp_path / "brief", "none", **section), brief)
    assert brief.losses == full.losses
    values = [
        [row["value"] for row in run.data("eval") if row["name"] == "val_bpb"]
        for run in (full, brief)
    ]
    same = [a == b for a, b in zip(*values, strict=True)]
    assert same == [True, False, False, False, True]  # steps 0, 2, 4, 6, 8


def test_a_killed_run_goes_on_from_a_checkpoint_of_an_earlier_phase(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    name, whole = "untied late, 8 bits, short rows", Recorder()
    pretrain.run(request(world, tmp_path / "whole", name), whole)
    first = Recorder()

    def die() -> bool:
        if len(first.losses) == 5:  # one step past untying; the last state is of before it
            raise Killed
        return False

    monkeypatch.setattr(pretrain, "stop_requested", die)
    with pytest.raises(Killed):
        pretrain.run(request(world, tmp_path / "out", name), first)
    monkeypatch.undo()
    second = Recorder()
    pretrain.run(request(world, tmp_path / "out", name, attempt=1), second)
    assert second.losses == whole.losses[3:] and first.losses == whole.losses[:5]
    file = "model.safetensors"
    same = [(tmp_path / part / file).read_bytes() for part in ("out", "whole")]
    assert same[0] == same[1]


def test_a_grown_run_reports_its_work_and_is_saved_as_the_whole_model(
    world: Path, tmp_path: Path
) -> None:
    events = Recorder()
    asked = request(world, tmp_path / "out", "growth", snapshot_every=4)
    pretrain.run(asked, events)
    assert "step 3: the model grows: n_layer 2 -> 4" in events.notes
    assert "step 5: the model grows: n_embd 32 -> 64, n_head 2 -> 4" in events.notes
    model, config = load_model(tmp_path / "out")
    assert (config.n_layer, config.n_embd) == (4, 64)
    stated = events.data("model")[0]
    assert stated["parameters"] == sum(p.numel() for p in model.parameters())
    cost = RunCost.from_recipe(config, asked.recipe["pretrain"])
    each = [128 * cost.at(step / 8).nanochat for step in range(8)]
    assert [data["flops"] for data in events.data("step")] == pytest.approx(
        list(itertools.accumulate(each))
    )
    assert each[-1] == 128 * stated["flops_per_token"] > 2 * each[0]
    again = replayed(asked, tmp_path)
    assert again.losses == [*events.losses[4:7], *events.losses[:4]]
    assert again.data("model")[0]["initial_weights"] == stated["initial_weights"]


def replayed(asked: Request, folder: Path) -> Recorder:
    """Steps 4 to 6 of the run in `folder`/out done again from its snapshot, and 0 to 3."""
    (folder / "replay.json").write_text(
        json.dumps({"windows": [{"step": 4, "progress": [4 / 8, 5 / 8, 6 / 8]},
                                {"step": 0, "progress": [0.0, 1 / 8, 2 / 8, 3 / 8]}],
                    "validate": False})
    )  # fmt: skip
    paths = {**asked.paths, "base": folder / "out", "replay": folder / "replay.json"}
    again = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "_tokenize", lambda *_, **__: None)
        replay.run(dataclasses.replace(asked, stage="replay", paths=paths), again)
    return again


def test_a_taught_run_says_when_and_what_it_costs_and_can_be_done_again(
    world: Path, tmp_path: Path
) -> None:
    events, plain = Recorder(), Recorder()
    name = "its own teacher"
    asked = request(world, tmp_path / "out", name, snapshot_every=4)
    pretrain.run(asked, events)
    assert events.notes.count("the teacher from here on") == 2  # at steps 3 and 6
    flops = [0.0, *(data["flops"] for data in events.data("step"))]
    each = [after - before for before, after in itertools.pairwise(flops)]
    assert each[3] == pytest.approx(each[2] * 4 / 3) and each[6] == pytest.approx(each[7])
    assert replayed(asked, tmp_path).losses == [*events.losses[4:7], *events.losses[:4]]
    pretrain.run(request(world, tmp_path / "plain", name, distill_from=0), plain)
    # The first step that is taught reports the loss of weights that nobody taught yet.
    assert events.losses[:4] == plain.losses[:4] and events.losses[4] != plain.losses[4]


def test_a_run_that_diverges_after_growing_goes_back_to_the_smaller_model(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, widths = Stepper.step, []

    def breaks_once(self: Any, *args: Any, **options: Any) -> float:
        widths.append(self.model.config.n_layer)
        loss = real(self, *args, **options)
        return math.nan if len(widths) == 5 else loss

    monkeypatch.setattr(Stepper, "step", breaks_once)
    events = Recorder()
    changes = {"rollbacks": 1, "growth_width": [], "growth_layers": [[0, 2], [0.45, 4]]}
    pretrain.run(request(world, tmp_path / "out", "growth", **changes), events)
    assert widths == [2] * 4 + [4] * 5
    assert [data["step"] for data in events.data("step")] == list(range(8))
    assert events.notes.count("n_layer 2 -> 4") == 2  # the state of step 3 is of before growing


def test_phases_are_logged_and_evaluation_always_has_the_full_length(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    real = loop.evaluate_bpb

    def watched(model: GPT, batches: Any, token_bytes: torch.Tensor) -> float:
        batches = list(batches)
        windows = tuple(block.attn.window for block in model.blocks)
        seen.append((batches[0][0].shape, windows))
        return real(model, batches, token_bytes)

    monkeypatch.setattr(loop, "evaluate_bpb", watched)
    events = Recorder()
    pretrain.run(request(world, tmp_path / "out", "all ramps"), events)
    assert set(seen) == {(torch.Size([2, 32]), (16, 32))} and len(seen) == 4
    assert "step 4: seq_len 16 -> 32" in events.notes
    assert "batch_tokens 64 -> 128" in events.notes
    steps = events.data("step")
    assert [data["step_tokens"] for data in steps] == [64] * 4 + [128] * 4
    assert [data["tokens"] for data in steps][-1] == 4 * 64 + 4 * 128
    assert steps[0]["lr"] == pytest.approx(steps[4]["lr"] / 2**0.5, rel=0.5)
    assert [data["micro_batches"] for data in steps] == [1] * 4 + [2] * 4
    assert all(0 <= data["wait_s"] <= data["dt_s"] for data in steps)
    assert [data["step"] for data in events.data("checkpoint")] == [3, 6]


def test_memory_that_runs_out_is_survived_noted_and_remembered(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = GPT.loss

    def loss(self: GPT, tokens: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            calls.append(len(tokens))
            if len(calls) == 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return real(self, tokens, *args, **options)

    whole = Recorder()
    pretrain.run(request(world, tmp_path / "whole", "none"), whole)
    monkeypatch.setattr(GPT, "loss", loss)
    events = Recorder()
    monkeypatch.setattr(pretrain, "stop_requested", lambda: len(events.losses) >= 5)
    with pytest.raises(Stopped):
        pretrain.run(request(world, tmp_path / "out", "none"), events)
    assert "step 2: out of memory" in events.notes and "2 parts" in events.notes
    found = [loss for _, _, loss in events.losses]
    assert found == pytest.approx([loss for _, _, loss in whole.losses[:5]], rel=1e-4)
    assert [data["micro_batches"] for data in events.data("step")] == [2, 2, 4, 4, 4]
    calls.clear()
    calls += [0] * 5
    monkeypatch.setattr(pretrain, "stop_requested", lambda: False)
    resumed = Recorder()
    pretrain.run(request(world, tmp_path / "out", "none", attempt=1), resumed)
    assert {data["micro_batches"] for data in resumed.data("step")} == {4}
    assert resumed.losses[-1][2] == pytest.approx(whole.losses[-1][2], rel=1e-3)


def test_a_kernel_that_cannot_run_is_named_before_the_first_step(
    world: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match="attention = 'fa3' cannot run here: needs a GPU"):
        pretrain.run(request(world, tmp_path / "out", "none", attention="fa3"), Recorder())
    events = Recorder()
    changes = {"matmul": "fastest", "document_mask": True, "num_steps": 1}
    pretrain.run(request(world, tmp_path / "out", "none", **changes), events)
    assert "needs a GPU's clock" in events.notes and "explicit mask" in events.notes


def test_a_deterministic_run_repeats_itself_and_says_so_to_pytorch(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reference.train.device import forget_determinism

    try:
        runs = []
        for name in ("one", "two"):
            events = Recorder()
            pretrain.run(request(world, tmp_path / name, "none", deterministic=True), events)
            assert torch.are_deterministic_algorithms_enabled()
            runs.append(events.losses)
    finally:
        forget_determinism()
    assert runs[0] == runs[1] and not torch.are_deterministic_algorithms_enabled()


def test_steps_with_mixed_rows_are_done_again_alike_from_a_snapshot(
    world: Path, tmp_path: Path
) -> None:
    name, out, events = "rows replayed, conversations late", tmp_path / "run", Recorder()
    asked = request(world, out, name, snapshot_every=3, eval_every=0, checkpoint_every=0)
    pretrain.run(asked, events)
    steps = events.data("step")
    assert [step.get("replayed_rows") for step in steps] == [None, 0, 1, 1, 1, 1, 1, 1]
    assert [step.get("sft_rows") for step in steps] == [None, 0, 0, 0, 1, 1, 1, 1]
    assert "6 rows replayed, 4 rows of conversations" in events.notes
    assert "talks.jsonl" in events.notes and "1 held out" in events.notes
    windows = tmp_path / "windows.json"
    told = [{"step": s, "progress": [e["progress"] for e in steps[s : s + 3]]} for s in (0, 3, 6)]
    windows.write_text(json.dumps({"windows": told, "validate": False}))
    paths = {**asked.paths, "replay": windows, "base": out}
    again = Recorder()
    replay.run(replace(asked, paths=paths), again)
    losses = {data["step"]: data["loss"] for data in again.data("step")}
    assert losses == {step["step"]: step["loss"] for step in steps}


def test_conversations_that_are_missing_and_another_setting_are_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(world, tmp_path / "a", "none", sft_share=0.25)
    with pytest.raises(TrainerError, match="no conversations were given") as caught:
        pretrain.run(replace(asked, paths={**asked.paths, "sft": None}), Recorder())
    assert "--sft DIR" in caught.value.hint
    events = Recorder()
    monkeypatch.setattr(pretrain, "stop_requested", lambda: len(events.losses) == 2)
    with pytest.raises(Stopped):
        pretrain.run(request(world, tmp_path / "b", "none"), events)
    with pytest.raises(TrainerError, match="another replay_share or sft_share"):
        pretrain.run(request(world, tmp_path / "b", "none", attempt=1, replay_share=0.1), events)

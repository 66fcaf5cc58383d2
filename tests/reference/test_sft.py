from __future__ import annotations

import json
import math
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_training import Recorder

from reference.chat.conversation import Rendered, render
from reference.errors import TrainerError
from reference.model.gpt import GPT, ModelConfig
from reference.optim.optimizer import parameter_groups
from reference.request import Request
from reference.stage import Stopped
from reference.tokenizer.bpe import Tokenizer
from reference.train import sft
from reference.train import step as training_step
from reference.train.checkpoint import load_model, save_model
from reference.train.horizon import Horizon
from reference.train.step import Stepper, compiled_graphs

TALKS = [
    [
        {"role": "user", "content": f"What is after {a}?"},
        {"role": "assistant", "content": f"After {a} comes {a + 1}."},
    ]
    for a in range(60)
]
PRETRAIN = {
    "total_batch_size": 1024, "matrix_lr": 0.02, "embedding_lr": 0.3, "unembedding_lr": 0.008,
    "value_embedding_lr": 0.15, "resid_lr": 0.005, "x0_lr": 0.5, "gate_lr": 0.2,
    "weight_decay": 0.28, "scale_lr": True, "compile": "off",
}  # fmt: skip
SFT = {
    "num_steps": 6, "hours": 0, "device_batch_size": 2, "total_batch_size": 256, "lr_frac": 0.8,
    "warmdown_ratio": 0.5, "final_lr_frac": 0.0, "eval_every": 0, "checkpoint_every": 2,
    "sources": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a small base model and conversations."""
    root = tmp_path_factory.mktemp("sft")
    texts = [message["content"] for talk in TALKS for message in talk]
    tokenizer = Tokenizer.train(texts, 300)
    tokenizer.save(root / "tokenizer")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, n_layer=2, n_embd=32, n_head=2, n_kv_head=2, seq_len=64
    )
    model = GPT(config)
    model.init_weights(1)
    save_model(root / "base", model.place("cpu"), config, root / "tokenizer")
    (root / "sft").mkdir()
    (root / "sft" / "talks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in TALKS))
    return root


def request(
    world: Path, out: Path, *, attempt: int = 0, seconds: float = 600, **section
) -> Request:
    now = clock_gettime_ns(CLOCK_BOOTTIME)
    document = {
        "contract": 1, "stage": "sft", "run_id": "r", "seed": 7, "attempt": attempt,
        "device": "cpu", "threads": 1,
        "recipe": {
            "model": {"dtype": "auto"},
            "pretrain": {**PRETRAIN, "scale_lr": False},
            "sft": {**SFT, **section},
        },
        "paths": {
            "out": str(out), "sft": str(world / "sft"), "base": str(world / "base"),
            "tokenizer": str(world / "tokenizer"),
        },
        "clock": {
            "start_ns": now, "stage_start_ns": now,
            "deadline_ns": now + int(seconds * 1e9), "budget_s": 600.0,
        },
    }  # fmt: skip
    path = out.with_name(f"{out.name}-request.json")
    path.write_text(json.dumps(document))
    return Request.load(path)


def losses(events: Recorder) -> list[tuple[int, float]]:
    return [(data["step"], data["loss"]) for data in events.data("step")]


def test_stage_learns_and_leaves_a_chat_model(world: Path, tmp_path: Path) -> None:
    events = Recorder()
    sft.run(request(world, tmp_path / "out", num_steps=30), events)
    before, after = (data for data in events.data("eval"))
    assert (before["name"], before["step"], after["step"]) == ("sft_val_loss", 0, 30)
    assert after["value"] < 0.7 * before["value"]
    assert [data["step"] for data in events.data("step")] == list(range(30))
    assert events.data("step")[-1]["tokens"] == 30 * 256
    model, _ = load_model(tmp_path / "out")
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.digest == Tokenizer.load(world / "base").digest
    assert model.config.vocab_size == tokenizer.vocab_size
    assert not (tmp_path / "out" / "state").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning",
                            "ignore:The .grad attribute of a Tensor:UserWarning")  # fmt: skip
def test_blocks_are_compiled_before_the_first_evaluation(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_blocks(model: GPT) -> None:
        for block in model.blocks:
            block.compile(dynamic=False, backend="eager")

    torch._dynamo.reset()
    monkeypatch.setattr(training_step, "compile_blocks", compile_blocks)
    asked = request(world, tmp_path / "out", num_steps=2)
    asked.recipe["pretrain"]["compile"] = "on"
    graphs: list[int] = []

    class Counting(Recorder):
        def emit(self, ev: str, **data: Any) -> None:
            super().emit(ev, **data)
            graphs.append(compiled_graphs())

    events = Counting()
    sft.run(asked, events)
    torch._dynamo.reset()
    names = [name for name, _ in events.seen]
    ready = graphs[names.index("eval") - 1]  # counted before the first evaluation
    assert ready > graphs[0] and graphs[-1] == ready
    texts = [data["text"] for data in events.data("note")]
    assert any("graphs compiled in advance" in text for text in texts)
    assert not any("on the way" in text for text in texts)


def test_first_value_is_the_base_models_loss_by_hand(world: Path, tmp_path: Path) -> None:
    events = Recorder()
    sft.run(request(world, tmp_path / "out", num_steps=1), events)
    model, config = load_model(world / "base")
    tokenizer = Tokenizer.load(world / "base")
    rendered = [render(tokenizer, talk) for talk in TALKS]
    _, held_out = sft.hold_out(rendered, 7)
    total, count = 0.0, 0
    for ids, mask in held_out:
        with torch.no_grad():
            log_p = model(torch.tensor([ids]))[0].log_softmax(-1)
        for at in range(1, len(ids)):
            if mask[at]:
                total -= float(log_p[at - 1, ids[at]])
                count += 1
    assert events.data("eval")[0]["value"] == pytest.approx(total / count, rel=1e-5)
    assert count and config.seq_len == 64


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    whole = Recorder()
    sft.run(request(world, tmp_path / "whole"), whole)

    first = Recorder()
    monkeypatch.setattr(sft, "stop_requested", lambda: len(first.data("step")) >= stop_at)
    with pytest.raises(Stopped):
        sft.run(request(world, tmp_path / "parts"), first)
    monkeypatch.undo()
    second = Recorder()
    sft.run(request(world, tmp_path / "parts", attempt=1), second)
    assert losses(first) + losses(second) == losses(whole)
    assert second.data("eval")[-1]["value"] == whole.data("eval")[-1]["value"]
    name = "model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_killed_run_goes_on_from_its_last_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Recorder()
    sft.run(request(world, tmp_path / "whole"), whole)

    class Killed(BaseException):
        pass

    first = Recorder()

    def die_after_five_steps() -> bool:
        if len(first.data("step")) == 5:
            raise Killed
        return False

    monkeypatch.setattr(sft, "stop_requested", die_after_five_steps)
    with pytest.raises(Killed):
        sft.run(request(world, tmp_path / "parts"), first)
    monkeypatch.undo()
    second = Recorder()
    sft.run(request(world, tmp_path / "parts", attempt=1), second)
    assert losses(second) == losses(whole)[4:]  # checkpoints at steps 2 and 4


def test_finished_stage_is_not_done_again(world: Path, tmp_path: Path) -> None:
    sft.run(request(world, tmp_path / "out", num_steps=1), Recorder())
    events = Recorder()
    sft.run(request(world, tmp_path / "out", num_steps=1, attempt=1), events)
    assert events.seen == []


def test_deadline_ends_the_stage_with_a_model_and_a_note(world: Path, tmp_path: Path) -> None:
    events = Recorder()
    sft.run(request(world, tmp_path / "out", seconds=0), events)
    assert events.data("step") == []
    assert "deadline" in events.data("note")[-1]["text"]
    load_model(tmp_path / "out")


@pytest.mark.parametrize("second", [1.0, 2.5])
def test_by_hours_a_slow_card_trains_less_and_ends_its_schedule_in_time(
    second: float, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def elapsed(_: Request) -> float:
        clock[0] += second  # each step takes so long on this card
        return clock[0]

    monkeypatch.setattr(Request, "stage_elapsed_s", elapsed)
    events = Recorder()
    sft.run(request(world, tmp_path / "out", num_steps=30, hours=0.01, lr_frac=0.1), events)
    steps = events.data("step")
    assert 0.4 * 36 < len(steps) * second < 36
    assert steps[-1]["progress"] > 0.8 and steps[-1]["lr"] < 0.4 * max(s["lr"] for s in steps)
    assert [data["step"] for data in events.data("eval")] == [0, len(steps)]
    assert not [data for data in events.data("note") if "deadline" in data["text"]]
    load_model(tmp_path / "out")


def test_no_progress_is_negative_however_short_the_hours(world: Path, tmp_path: Path) -> None:
    horizon = Horizon(request(world, tmp_path / "out", hours=0.001), "sft")
    assert 0 <= horizon.progress(0) < 1


def test_nan_loss_is_named(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stepper, "step", lambda *_, **__: math.nan)
    with pytest.raises(TrainerError, match="the loss is nan at step 0") as caught:
        sft.run(request(world, tmp_path / "out"), Recorder())
    assert caught.value.kind == "nan_loss"


def test_learning_rates_are_pretrainings_times_lr_frac_at_this_batch(world: Path) -> None:
    model, _ = load_model(world / "base")
    base = {g["name"]: g["lr"] for g in parameter_groups(model, PRETRAIN)}
    for group in sft.sft_groups(model, PRETRAIN, SFT):
        scale = 1.0 if group["name"] == "gate" else math.sqrt(256 / 1024)
        assert group["lr"] == pytest.approx(0.8 * scale * base[group["name"]])
        assert group["kind"] != "muon" or group["weight_decay"] == 0.0


talks = st.lists(st.integers(1, 30), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(talks, st.integers(0, 6))
def test_rows_hold_whole_conversations_and_learn_only_masked_tokens(
    lengths: list[int], before: int
) -> None:
    # Conversation i is BOS (0), then i + 1 over and over; every second token is learnt.
    made = [
        Rendered([0] + [i + 1] * n, [0] + [at % 2 for at in range(n)])
        for i, n in enumerate(lengths)
    ]
    loader = sft.ConversationLoader(made, 2, 31, seed=1, pad_id=99)
    for _ in range(before):
        loader.next_batch()
    again = sft.ConversationLoader(made, 2, 31, 1, 99, state=loader.state_dict())
    for _ in range(3):
        tokens, targets = loader.next_batch()
        other = again.next_batch()
        assert torch.equal(tokens, other.tokens) and torch.equal(targets, other.targets)
        assert tokens.shape == targets.shape == (2, 31)
        for row, learnt in zip(tokens.tolist(), targets.tolist(), strict=True):
            at = 0
            while at < len(row) and row[at] == 0:
                length = lengths[row[at + 1] - 1] if at + 1 < len(row) else 0
                ids, mask = made[row[at + 1] - 1] if length else ([0], [0])
                shown = ids[: len(row) - at]
                assert row[at : at + len(ids)] == shown
                for place in range(1, len(ids)):
                    expected = ids[place] if mask[place] else -1
                    assert learnt[at + place - 1] == expected
                at += len(ids)
            assert set(row[at:]) <= {99}
            assert set(learnt[max(0, at - 1) :]) <= {-1} or at - 1 >= 31 - 1


def test_every_conversation_is_seen_once_an_epoch() -> None:
    made = [Rendered([0, i + 1, i + 1], [0, 1, 1]) for i in range(30)]
    loader = sft.ConversationLoader(made, 1, 8, seed=3, pad_id=99)  # three a row
    seen = [t for _ in range(10) for t in loader.next_batch().tokens[0].tolist() if 0 < t < 99]
    assert sorted(set(seen)) == list(range(1, 31))


def test_too_long_conversations_are_cut_or_left_out_and_counted(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a"], 265)
    rows = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x" * 50}],
        [{"role": "user", "content": "q" * 50}, {"role": "assistant", "content": "x"}],
        [TALKS[1][0], {"role": "assistant", "content": "fits"}],
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sft.load_conversations([tmp_path / "a.jsonl"], tokenizer, 31, threads=2)
    assert (len(found.rendered), found.truncated, found.dropped) == (2, 2, 1)
    assert len(found.rendered[0].ids) == 32


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a"], 265)
    (tmp_path / "a.jsonl").write_text(json.dumps(TALKS[0][:1]) + "\n")
    with pytest.raises(TrainerError, match=r"0 conversation\(s\) with an answer"):
        sft.load_conversations([tmp_path / "a.jsonl"], tokenizer, 31, 1)


def test_held_out_conversations_are_apart_from_the_others() -> None:
    made = [Rendered([0, i], [0, 1]) for i in range(200)]
    train, held_out = sft.hold_out(made, 5)
    assert len(held_out) == 4
    assert sorted(item.ids[1] for item in [*train, *held_out]) == list(range(200))
    assert sft.hold_out(made, 5) == (train, held_out)
    assert sft.hold_out(made, 6)[1] != held_out


def test_a_source_can_be_read_several_times_and_never_what_is_held_out(
    world: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(world / "tokenizer")
    for name in ("a", "b"):
        talk = [{"role": "user", "content": name}, {"role": "assistant", "content": name}]
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(talk) + "\n") * 20)
    names = ["a", "b*3"]
    paths = sft.find_sources(tmp_path, names)
    assert [path.stem for path in paths] == ["a", "b"]
    found = sft.load_conversations(paths, tokenizer, 31, 1, names)
    train, held_out = sft.hold_out(found.rendered, 5, found.times)
    assert (len(found.rendered), len(held_out)) == (40, 1)
    assert len(train) == 80 - (3 if held_out[0] in found.rendered[20:] else 1)
    assert not any(item is held_out[0] for item in train)
    with pytest.raises(TrainerError, match=r"has no c\.jsonl"):
        sft.find_sources(tmp_path, ["c*2"])

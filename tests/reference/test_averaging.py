"""Averages of weights against their formulas, and what a whole pretraining stage does with them."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import Any

import pytest
import torch

import reference.train.pretrain
from kit.recipe import load_recipe
from reference.errors import TrainerError
from reference.events import Events
from reference.optim.schedule import ScheduleConfig, falling, schedule_at
from reference.request import Request
from reference.stage import Stopped
from reference.stories import write_stories
from reference.tokenizer import stage as tokenizer_stage
from reference.train import pretrain
from reference.train.averaging import WeightAverage
from reference.train.checkpoint import load_model
from reference.train.divergence import Divergence
from reference.train.step import Stepper

TINY = Path(__file__).parent.parent / "assets" / "tiny.toml"


class OneWeight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))


def averaged(kind: str, share: float, values: list[float]) -> tuple[WeightAverage, OneWeight]:
    model = OneWeight()
    average = WeightAverage(model, kind, share)
    for step, value in enumerate(values):
        model.w.data.fill_(value)
        average.update(step, step / len(values))
    return average, model


def test_tail_is_the_mean_over_the_last_share():
    average, model = averaged("tail", 0.3, [float(v) for v in range(10)])
    average.swap()
    assert model.w.item() == pytest.approx((7 + 8 + 9) / 3)


def test_ema_follows_its_recurrence():
    values = [1.0, 3.0, 2.0, 5.0, 4.0, 8.0]
    average, model = averaged("ema", 0.5, values)
    expected = values[0]
    for step, value in enumerate(values[1:], start=1):
        weight = min(1.0, 1.0 / max(0.5 * (step + 1), 1.0))
        expected += weight * (value - expected)
    average.swap()
    assert model.w.item() == pytest.approx(expected)


def test_none_costs_nothing():
    average, model = averaged("none", 0.5, [1.0, 2.0])
    assert not average.exists
    average.swap()
    assert model.w.item() == 2.0


@pytest.mark.parametrize(
    ("losses", "taken"),
    [
        ((1.0, 0.9), True), ((0.9, 1.0), False), ((1.0, 1.0), False), ((1.0, math.nan), False),
        ((math.nan, 1.0), True), ((math.nan, math.nan), False), ((math.inf, math.inf), False),
    ],
)  # fmt: skip
def test_the_average_is_taken_only_where_validation_is_better(
    losses: tuple[float, float], taken: bool
) -> None:
    average, model = averaged("tail", 0.3, [float(v) for v in range(10)])
    measured = []

    def measure(which: str) -> float:
        measured.append((which, model.w.item()))
        return losses[len(measured) - 1]

    assert average.choose(measure) is taken
    assert measured == [("weights", 9.0), ("average", 8.0)]
    assert model.w.item() == (8.0 if taken else 9.0)


def test_a_bf16_weight_is_averaged_in_fp32():
    model = OneWeight().bfloat16()
    average = WeightAverage(model, "tail", 1.0)
    for step, value in enumerate([1.0] * 300 + [2.0]):
        model.w.data.fill_(value)
        average.update(step, 0.9)
    # In bf16 the mean would never leave 1: 1/301 is below half its spacing there.
    [kept] = average.state_dict()["average"].values()
    assert kept.item() == pytest.approx(1 + 1 / 301, abs=1e-5)


@pytest.mark.parametrize("decay", ["linear", "cosine", "sqrt", "square", "inverse_time"])
def test_each_decay_falls_from_one_to_zero(decay):
    values = [falling(decay, share / 20) for share in range(21)]
    assert values[0] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(values))


def test_decays_at_half_of_the_way():
    half = {d: falling(d, 0.5) for d in ("linear", "cosine", "sqrt", "square", "inverse_time")}
    assert half == pytest.approx(
        {"linear": 0.5, "cosine": 0.5, "sqrt": 1 - math.sqrt(0.5), "square": 0.25,
         "inverse_time": (1 / 5.5 - 0.1) / 0.9}
    )  # fmt: skip
    config = ScheduleConfig(decay="square", final_lr_frac=0.2, warmdown_ratio=0.5)
    assert schedule_at(0.75, 1000, config).lr == pytest.approx(0.2 + 0.8 * 0.25)


def test_weight_decay_can_fall_in_a_line_or_stay():
    for name, expected in (("linear", 0.75), ("constant", 1.0)):
        config = ScheduleConfig(weight_decay_schedule=name)
        assert schedule_at(0.25, 50, config).weight_decay == pytest.approx(expected)


def test_divergence_is_no_number_or_a_jump():
    divergence = Divergence(3.0, rollbacks=1)
    assert not any(divergence.seen(loss) for loss in (9.0, 5.0, 4.0, 6.0))
    assert divergence.seen(float("nan"))
    assert divergence.seen(20.0)
    assert divergence.may_go_back()
    divergence.went_back()
    assert divergence.lr_factor == 0.5
    assert not divergence.may_go_back()
    assert not divergence.seen(20.0)  # the mean begins anew
    again = Divergence(3.0, rollbacks=1)
    again.load_state_dict(divergence.state_dict())
    assert (again.lr_factor, again.may_go_back()) == (0.5, False)


def test_a_jump_alone_ends_no_run_that_may_not_go_back():
    divergence = Divergence(3.0, rollbacks=0)
    assert not divergence.seen(1.0)
    assert not divergence.seen(20.0)
    assert divergence.seen(math.inf)


# The whole stage, in process


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A request whose corpus is tokenized."""
    root = tmp_path_factory.mktemp("averaging")
    write_stories(root / "data", seed=1, documents=200)
    recipe = json.loads(json.dumps(load_recipe(str(TINY)).document))
    recipe["pretrain"].update(num_steps=8, eval_every=0, checkpoint_every=2, eval_tokens=1024)
    now = clock_gettime_ns(CLOCK_BOOTTIME)
    paths: dict[str, Path | None] = {
        "run": root, "cache": root / "cache", "data": root / "data" / "pretrain",
        "tokenizer": root / "tokenizer", "out": root / "tokenizer",
    }  # fmt: skip
    request = Request(
        "tokenizer", "r", 7, 0, None, "cpu", 1, recipe, paths, now, now, now + 600 * 10**9, 600.0
    )
    tokenizer_stage.run(request, Events())
    return request


def trained(
    prepared: Request, out: Path, attempt: int = 0, **section: Any
) -> list[tuple[str, dict[str, Any]]]:
    recipe = {**prepared.recipe, "pretrain": {**prepared.recipe["pretrain"], **section}}
    stream = StringIO()
    request = replace(
        prepared, stage="pretrain", recipe=recipe, attempt=attempt,
        paths={**prepared.paths, "out": out},
    )  # fmt: skip
    try:
        pretrain.run(request, Events(stream))
    finally:
        seen = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [(line["ev"], line["data"]) for line in seen]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in load_model(folder)[0].named_parameters()}


def test_the_run_ends_in_the_better_of_weights_and_average(
    prepared: Request, tmp_path: Path
) -> None:
    """Early in training, the mean of the last weights is behind them; near them, before them."""
    taken = set()
    for share, rate in ((0.9, 1.0), (0.3, 60.0)):
        plain = trained(prepared, tmp_path / f"plain-{share}", **rates(prepared, rate))
        options = {"average": "tail", "average_share": share, **rates(prepared, rate)}
        tail = trained(prepared, tmp_path / f"tail-{share}", **options)
        steps = [[data["loss"] for ev, data in events if ev == "step"] for events in (plain, tail)]
        assert steps[0] == steps[1]  # the training itself is untouched
        last = weights(tmp_path / f"plain-{share}")
        evals = {data["name"]: data["value"] for ev, data in tail if ev == "eval"}
        by_weights = [d["value"] for ev, d in plain if ev == "eval" and d["name"] == "val_bpb"][-1]
        assert evals["val_bpb_weights"] == by_weights
        better = evals["val_bpb_average"] < evals["val_bpb_weights"]
        assert evals["val_bpb"] == min(evals["val_bpb_average"], evals["val_bpb_weights"])
        ended = weights(tmp_path / f"tail-{share}")
        assert all(torch.equal(last[name], ended[name]) for name in last) == (not better)
        said = "the average of the weights" if better else "the last weights"
        assert any(said in data["text"].split(":")[0] for ev, data in tail if ev == "note")
        taken.add(better)
    assert taken == {True, False}


def rates(prepared: Request, factor: float) -> dict[str, float]:
    """The learning rates, times `factor`."""
    section = prepared.recipe["pretrain"]
    return {
        name: section[name] * factor for name in ("matrix_lr", "embedding_lr", "unembedding_lr")
    }


def test_a_resumed_run_ends_in_the_same_average(
    prepared: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"average": "ema", "average_share": 0.4}
    trained(prepared, tmp_path / "whole", **options)
    calls = iter([False] * 5 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(reference.train.pretrain, "stop_requested", lambda: next(calls))
        with pytest.raises(Stopped):
            trained(prepared, tmp_path / "parts", **options)
    trained(prepared, tmp_path / "parts", attempt=1, **options)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_divergence_goes_back_to_the_checkpoint_and_halves_the_rate(
    prepared: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Stepper.step
    count = 0

    def breaks_once(self: Any, *args: Any, **kwargs: Any) -> float:
        nonlocal count
        count += 1
        loss = step(self, *args, **kwargs)
        if count == 6:
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(math.nan)
            return math.nan
        return loss

    monkeypatch.setattr(Stepper, "step", breaks_once)
    events = trained(prepared, tmp_path / "out", rollbacks=1)
    steps = [data for ev, data in events if ev == "step"]
    assert [data["step"] for data in steps] == list(range(8))
    assert all(math.isfinite(data["loss"]) for data in steps)
    notes = " ".join(data["text"] for ev, data in events if ev == "note")
    assert "the weights are those of step 4 again" in notes
    plain = [
        schedule_at(k / 8, k, ScheduleConfig.from_recipe(prepared.recipe["pretrain"])).lr
        for k in range(8)
    ]
    rates = [data["lr"] for data in steps]
    assert rates[:5] == pytest.approx(plain[:5])
    assert rates[5:] == pytest.approx([lr / 2 for lr in plain[5:]])


def test_divergence_ends_a_run_that_may_not_go_back(
    prepared: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stepper, "step", lambda *_, **__: math.nan)
    with pytest.raises(TrainerError, match="the loss is nan at step 0"):
        trained(prepared, tmp_path / "out")

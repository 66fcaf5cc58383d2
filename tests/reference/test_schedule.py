"""Schedule points worked out by hand."""

from __future__ import annotations

import math

import pytest

from reference.optim.schedule import ScheduleConfig, schedule_at

CONFIG = ScheduleConfig()  # 40 steps up, down over the last 65 % to 5 %


@pytest.mark.parametrize(
    ("progress", "step", "lr"),
    [
        (0.0, 0, 1 / 40),
        (0.001, 19, 0.5),
        (0.01, 39, 1.0),
        (0.35, 1000, 1.0),
        (0.675, 1000, 0.525),  # half of the way down to 0.05
        (1.0, 2000, 0.05),
        (1.7, 2000, 0.05),  # a run past its budget
        (0.5, 0, 1 / 40),  # a first step after a long start-up
    ],
)
def test_learning_rate_warms_up_stays_and_comes_down(progress, step, lr):
    assert schedule_at(progress, step, CONFIG).lr == pytest.approx(lr)


@pytest.mark.parametrize(
    ("progress", "step", "momentum"),
    [(0.0, 0, 0.85), (0.1, 200, 0.91), (0.2, 400, 0.97), (0.675, 900, 0.935), (1.0, 999, 0.90)],
)
def test_momentum_rises_by_steps_and_falls_with_the_warm_down(progress, step, momentum):
    assert schedule_at(progress, step, CONFIG).momentum == pytest.approx(momentum)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_weight_decay_falls_along_a_cosine_to_zero(progress):
    expected = (1 + math.cos(math.pi * progress)) / 2
    assert schedule_at(progress, 50, CONFIG).weight_decay == pytest.approx(expected)


def test_a_schedule_without_warm_up_or_warm_down_is_flat():
    flat = ScheduleConfig(warmup_steps=0, warmdown_ratio=0.0)
    assert [schedule_at(p, 0, flat).lr for p in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


def test_a_recipe_section_overrides_what_it_names():
    config = ScheduleConfig.from_recipe({"warmdown_ratio": 0.5, "final_lr_frac": 0.0, "lr": 3})
    assert (config.warmup_steps, config.warmdown_ratio) == (40, 0.5)
    assert schedule_at(0.75, 100, config).lr == pytest.approx(0.5)


def test_a_power_cooldown_over_the_whole_run():
    section = {"decay": "power", "decay_exponent": 2.5, "warmdown_ratio": 1.0, "final_lr_frac": 0.0}
    config = ScheduleConfig.from_recipe({**section, "warmup_steps": 0})
    for progress in (0.0, 0.25, 0.64, 1.0):
        assert schedule_at(progress, 9, config).lr == pytest.approx((1 - progress) ** 2.5)
    flat = ScheduleConfig(decay="power", warmdown_ratio=0.5, warmup_steps=0)
    assert schedule_at(0.5, 9, flat).lr == 1.0
    assert schedule_at(0.75, 9, flat).lr == pytest.approx(0.05 + 0.95 * 0.5**1.25)


def test_momentum_follows_the_recipe_at_every_corner():
    section = {"momentum": [0.5, 0.9, 0.6], "momentum_steps": 10, "warmdown_ratio": 0.5}
    config = ScheduleConfig.from_recipe(section)
    got = [schedule_at(p, s, config).momentum for p, s in ((0, 0), (0, 5), (0.5, 10), (1.0, 10))]
    assert got == pytest.approx([0.5, 0.7, 0.9, 0.6])
    constant = ScheduleConfig.from_recipe({"momentum": [0.9, 0.95, 0.95], "momentum_steps": 0})
    assert schedule_at(0.0, 0, constant).momentum == pytest.approx(0.95)

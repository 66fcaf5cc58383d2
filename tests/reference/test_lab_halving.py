"""The ladder: who runs next, who goes on, and that it always comes to an end."""

import random

import pytest

pytest.importorskip("scipy")

from reference.lab.halving import Ladder, Slot
from reference.lab.study import BASELINE, Halving

SCALES = ("s", "m", "l")


def play(
    arms: int, halving: Halving, *, slots: int = 2, seeds: int = 2, controls: tuple[str, ...] = ()
) -> tuple[Ladder, list[Slot]]:
    """Runs a whole study in which arm `c<i>` loses i; trials end in a random order."""
    losses: dict[Slot, float] = {}
    names = [BASELINE, *(f"c{i}" for i in range(arms))]
    ladder = Ladder(names, SCALES, range(seeds), halving, losses, controls)
    order: list[Slot] = []
    running: list[Slot] = []
    rng = random.Random(4)
    while True:
        while len(running) < slots and (slot := ladder.next()):
            running.append(slot)
            order.append(slot)
        if not running:
            return ladder, order
        done = running.pop(rng.randrange(len(running)))
        losses[done] = 50.0 if done.arm == BASELINE else float(done.arm[1:])


def test_every_trial_is_started_once_and_the_study_ends() -> None:
    _, order = play(9, Halving(eta=3, keep_at_least=1))
    assert len(order) == len(set(order))
    assert {slot.arm for slot in order if slot.scale == "s"} == {
        BASELINE,
        *(f"c{i}" for i in range(9)),
    }


def test_the_best_reach_the_top_and_the_worst_do_not() -> None:
    ladder, order = play(9, Halving(eta=3, keep_at_least=1))
    assert "c0" in ladder.members("l")
    assert "c8" not in ladder.members("m")
    assert len(ladder.members("m")) <= 5
    assert len([slot for slot in order if slot.scale == "l"]) < 9


def test_a_control_goes_to_the_top_whatever_its_rank_and_costs_nobody_their_place() -> None:
    without, _ = play(9, Halving(eta=3, keep_at_least=1))
    ladder, order = play(9, Halving(eta=3, keep_at_least=1), controls=("c8",))
    assert "c8" in ladder.members("l") and len(order) == len(set(order))
    assert "c0" in ladder.members("l") and "c7" not in ladder.members("m")
    assert set(without.members("l")) <= set(ladder.members("l"))


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_the_baseline_runs_first_wherever_an_arm_goes(slots: int) -> None:
    _, order = play(6, Halving(eta=2, keep_at_least=2), slots=slots)
    for scale in SCALES:
        here = [slot.arm for slot in order if slot.scale == scale]
        assert here[:2] == [BASELINE, BASELINE]


def test_eta_of_one_takes_everybody_up() -> None:
    ladder, order = play(5, Halving(eta=1, keep_at_least=1))
    assert len(order) == 6 * 3 * 2
    assert len(ladder.members("l")) == 5


def test_at_least_so_many_go_on() -> None:
    ladder, _ = play(4, Halving(eta=100, keep_at_least=3))
    assert sorted(ladder.members("m")) == ["c0", "c1", "c2"]


def test_a_broken_arm_never_goes_on() -> None:
    losses: dict[Slot, float] = {}
    ladder = Ladder([BASELINE, "a"], ("s", "m"), [0], Halving(eta=1), losses)
    while slot := ladder.next():
        losses[slot] = float("inf") if slot.arm == "a" else 1.0
    assert ladder.members("m") == []
    assert not any(slot.scale == "m" for slot in losses)


def test_promotions_do_not_wait_for_the_rest_of_the_scale() -> None:
    losses: dict[Slot, float] = {}
    ladder = Ladder([BASELINE, "a", "b", "c", "d"], ("s", "m"), [0], Halving(2, 1), losses)
    started = [ladder.next() for _ in range(3)]
    assert [slot.arm for slot in started if slot] == [BASELINE, "a", "b"]
    losses[Slot("a", "s", 0)], losses[Slot("b", "s", 0)] = 2.0, 1.0
    upward = ladder.next()
    assert upward == Slot(BASELINE, "m", 0)
    assert ladder.members("m") == ["b"]
    assert "rank 1 of 2" in str(ladder.promotions[0])


def test_a_trial_that_is_put_back_comes_again() -> None:
    ladder = Ladder([BASELINE, "a"], ("s",), [0], Halving(), {})
    first = ladder.next()
    assert first is not None
    ladder.put_back(first)
    assert ladder.next() == first


def test_an_arm_stops_at_its_last_scale_and_each_scale_has_its_own_seeds() -> None:
    losses: dict[Slot, float] = {}
    seeds = {"s": (1, 2, 3), "m": (1, 2), "l": (1,)}
    names = [BASELINE, "a", "b"]
    ladder = Ladder(names, SCALES, seeds, Halving(eta=1), losses, up_to={"a": "s", "b": "m"})
    while slot := ladder.next():
        losses[slot] = 1.0 if slot.arm == BASELINE else 0.9
    assert {slot.scale for slot in losses if slot.arm == "a"} == {"s"}
    assert {slot.scale for slot in losses if slot.arm == "b"} == {"s", "m"}
    assert {slot.seed for slot in losses if slot.scale == "m"} == {1, 2}
    assert not ladder.members("l")
    assert Slot(BASELINE, "l", 1) in losses  # the baseline's curve spans the whole ladder

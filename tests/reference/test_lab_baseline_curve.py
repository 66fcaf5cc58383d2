"""The baseline's curve over the ladder, and multipliers read off it, against laws set by hand."""

import math

import pytest

pytest.importorskip("scipy")

from reference.lab.baseline_curve import PUBLISHED_SLOPE, Rung, fit_curve, multiplier
from reference.lab.statistics import Gain

BUDGETS = (1e11, 1e12, 1e13)
SURE = Gain(-math.log(0.97), 1e-9, 10, 3)  # 3 % fewer bits per byte


def rungs(floor: float, power: float, error: float = 1e-6) -> list[Rung]:
    """A baseline of bpb = floor + C^-power * 1e12^power."""
    return [Rung(C, math.log(floor + (C / 1e12) ** -power), error) for C in BUDGETS]


def test_a_power_law_without_a_floor_gives_the_closed_form() -> None:
    ladder = rungs(0.0, 0.1)
    times = multiplier(SURE, ladder, BUDGETS[1])
    assert times is not None
    assert times.value == pytest.approx(0.97**-10, rel=1e-3)
    assert times.low < times.value < times.high
    assert fit_curve(ladder).slope(BUDGETS[0]) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("floor", [0.3, 0.8])
def test_a_floor_is_found_and_the_multiplier_inverts_the_curve(floor: float) -> None:
    ladder = rungs(floor, 0.3)
    curve = fit_curve(ladder)
    assert curve.power == pytest.approx(0.3, rel=0.02)
    assert curve.slope(1e13) < curve.slope(1e11)
    for C in BUDGETS:
        times = multiplier(SURE, ladder, C)
        assert times is not None
        wanted = 0.97 * (floor + (C / 1e12) ** -0.3)
        exact = 1e12 * (wanted - floor) ** (-1 / 0.3) / C
        assert times.value == pytest.approx(exact, rel=0.1)
        assert curve.bpb(C * times.value) == pytest.approx(wanted, rel=1e-3)


def test_all_rungs_count_not_only_the_neighbours() -> None:
    straight = rungs(0.0, 0.1)
    bent = [straight[0]._replace(mean=straight[0].mean + 0.2), *straight[1:]]
    both = [multiplier(SURE, ladder, BUDGETS[2]) for ladder in (straight, bent)]
    assert both[0] is not None and both[1] is not None
    assert both[1].value > 1.1 * both[0].value  # flatter at the top: a gain is worth more compute


def test_one_rung_takes_the_published_power_and_says_so() -> None:
    curve = fit_curve(rungs(0.0, 0.1)[:1])
    assert curve.published and curve.power == PUBLISHED_SLOPE
    nowhere = [*rungs(0.0, 0.1)[:1], Rung(1e13, math.nan, 0.0)]
    assert fit_curve(nowhere) == curve
    assert multiplier(SURE, nowhere, 1e11) is not None


def test_no_multiplier_where_compute_does_not_help_or_nothing_is_known() -> None:
    flat = [Rung(C, 0.5, 0.01) for C in BUDGETS]
    assert multiplier(SURE, flat, 1e12) is None
    assert multiplier(Gain(0.01, 0.0, 0, 1), rungs(0.0, 0.1), 1e12) is None
    assert multiplier(SURE, [Rung(1e12, math.nan, 0.0)], 1e12) is None


def test_a_gain_below_the_floor_stays_a_finite_number() -> None:
    times = multiplier(Gain(5.0, 0.1, 10, 3), rungs(0.5, 0.3), 1e12)
    assert times is not None and math.isfinite(times.high) and times.value > 1e9

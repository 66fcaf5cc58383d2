"""How rows are ranked: by what chance could not have ordered, groups as one, records by a gain."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.board import statistics


def test_ranks_share_what_chance_could_have_ordered() -> None:
    one = statistics.Contender
    places = statistics.ranks(
        [one("a", 0.26, 1), one("b", 0.255, 1), one("c", 0.24, 1), one("d", 0.25, 4)], 0.0052
    )
    assert {key: place.rank for key, place in places.items()} == {"a": 1, "b": 1, "c": 4, "d": 2}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.2, 0.3), st.integers(1, 5)), min_size=1, max_size=30))
def test_ranks_are_those_of_comparing_every_pair(rows: list[tuple[float, int]]) -> None:
    contenders = [statistics.Contender(str(i), v, n) for i, (v, n) in enumerate(rows)]
    found = statistics.ranks(contenders, 0.0052)
    for mine in contenders:
        better = ties = 0
        for other in contenders:
            far = statistics.margin(mine.n, other.n, 0.0052)
            better += other.value >= mine.value + far
            ties += mine.value - far < other.value < mine.value + far
        assert found[mine.key] == (1 + better, ties - 1)


def test_the_rules_hold_at_their_published_margins() -> None:
    for n, listing, record in ((1, 0.0086, 0.0122), (3, 0.0050, 0.0070), (5, 0.0038, 0.0054)):
        for z, margin in ((1.645, listing), (2.326, record)):
            target = statistics.TARGET_CORE
            assert statistics.reaches(target + margin + 5e-5, n, sigma=0.0052, z=z)
            assert not statistics.reaches(target + margin - 1.5e-4, n, sigma=0.0052, z=z)


def test_honest_reproductions_are_confirmed_at_the_rate_the_rule_says() -> None:
    rng, noise = random.Random(7), statistics.noise_of("rtx4090-24h")
    base = {"s_per_step": 11.6, "matmul_tflops": 165.0, "score": 0.25}
    confirmed = contradicted = caught = 0
    rounds = 20_000
    for _ in range(rounds):
        claim = {**base, "gpu_hash": "a", "val_bpb": rng.gauss(0.75, noise.val_bpb)}
        again = {**base, "gpu_hash": "b", "val_bpb": rng.gauss(0.75, noise.val_bpb)}
        confirmed += statistics.compare_run(claim, again, noise)[1] == "confirmed"
        contradicted += statistics.clearly_worse(claim, again, noise)
        forged = {**claim, "val_bpb": claim["val_bpb"] - 0.002}
        caught += statistics.compare_run(forged, again, noise)[1] == "worse"
    assert confirmed / rounds == pytest.approx(0.95, abs=0.006)
    assert contradicted / rounds == pytest.approx(0.005, abs=0.002)
    assert caught / rounds > 0.99


def test_speed_is_compared_by_what_the_card_can_do() -> None:
    noise = statistics.noise_of("rtx4090-24h")
    claim = {"val_bpb": 0.8, "s_per_step": 10.0, "matmul_tflops": 170.0, "gpu_hash": "a"}
    slower_card = {**claim, "gpu_hash": "b", "s_per_step": 10.6, "matmul_tflops": 160.0}
    assert statistics.compare_run(claim, slower_card, noise)[1] == "confirmed"
    same_card = {**slower_card, "matmul_tflops": 170.0}
    assert statistics.compare_run(claim, same_card, noise)[1] == "worse"


def row_facts(row_id: str, **changes: Any) -> Any:
    from kit.board.layout import SubmissionPath
    from kit.board.row import Facts

    base = Facts(
        id=row_id,
        path=SubmissionPath("2026", "ann", row_id),
        key="key",
        recipe_digest="recipe",
        track="rtx4090-24h",
        division="closed",
        group=None,
        group_index=None,
        group_runs=None,
        status="complete",
        claimed_ranked=True,
        why_not=(),
        gpu_class="4090",
        gpu_hash="card",
        seed=int(row_id, 36),
        log_head=row_id,
        prints=(),
        val_bpb=None,
        core=0.27,
        score=0.27,
        total_s=80_000.0,
        has_model=True,
    )
    return base._replace(**{"score": changes.get("core", 0.27), **changes})


def places(*rows: Any) -> dict[str, Any]:
    from kit.board.ranking import rank_rows
    from kit.board.tiers import Standing

    facts = {row.id: row for row in rows}
    listed = {row.id: Standing("T2", "", "listed", "") for row in rows}
    return rank_rows(facts, listed, {}, {row.id: row.id for row in rows})


def group(name: str, count: int, **changes: Any) -> list[Any]:
    return [
        row_facts(f"{name}{n}", group=name, group_index=n, group_runs=count, key=name, **changes)
        for n in range(count)
    ]


def test_a_whole_group_is_one_ranked_row_with_the_mean_of_its_runs() -> None:
    runs = [one._replace(total_s=70_000.0 + 1000 * n) for n, one in enumerate(group("g", 3))]
    found = places(*runs)
    assert found["g0"].rank == 1 and found["g0"].pool.total_s.value == 71_000
    assert found["g0"].pool.members == ("g0", "g1", "g2")
    assert [found[name].rank for name in ("g1", "g2")] == [None, None]
    assert "which g0 stands for" in found["g1"].why_not[0]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda runs: runs[:1] + runs[2:], "a missing run counts as failed"),
        (lambda runs: runs[:2], "a missing run counts as failed"),
        (lambda runs: [*runs[:2], runs[2]._replace(status="failed")], "is failed"),
        (lambda runs: [*runs[:2], runs[2]._replace(seed=runs[0].seed)], "a seed twice"),
    ],
)
def test_a_group_with_a_run_missing_failed_or_repeated_does_not_rank(
    spoil: Any, reason: str
) -> None:
    found = places(*spoil(group("g", 3)))
    assert all(place.rank is None for place in found.values())
    assert all(any(reason in why for why in place.why_not) for place in found.values())


def test_a_record_wants_three_runs_the_target_and_a_gain_beyond_chance() -> None:
    first = group("a", 3, total_s=80_000.0)
    found = places(*first)
    assert found["a0"].standing == "record"
    # Three runs each: chance explains 1.645 * 2.5 % * sqrt(2/3), 3.4 %.
    within = group("b", 3, total_s=78_000.0)
    found = places(*first, *within)
    assert found["a0"].standing == "record" and found["b0"].standing == "pooled"
    assert (found["a0"].rank, found["b0"].rank) == (1, 1)
    beyond = group("c", 3, total_s=77_000.0)
    found = places(*first, *beyond)
    assert found["c0"].standing == "record" and found["a0"].rank == 2
    single = row_facts("d", total_s=40_000.0)
    found = places(*first, single)
    assert found["d"].rank == 1 and found["d"].standing == "single"
    assert found["a0"].standing == "record"
    below = group("e", 3, core=0.259, total_s=40_000.0)
    found = places(*first, *below)
    assert found["e0"].standing == "pooled" and found["e0"].reaches_target is False
    assert found["e0"].rank == 2


def test_each_ranked_track_is_a_board_of_its_own() -> None:
    first = group("a", 3, total_s=80_000.0)
    other = {"track": "rtx5090-24h", "gpu_class": "5090"}
    faster = group("b", 3, total_s=50_000.0, **other)
    slower = group("c", 3, total_s=70_000.0, **other)
    found = places(*first, *faster, *slower)
    assert [found[name].rank for name in ("a0", "b0", "c0")] == [1, 1, 2]
    assert found["a0"].standing == found["b0"].standing == "record"
    assert found["c0"].standing == "pooled" and found["a0"].ties == 0
    (wrong,) = places(row_facts("d", track="rtx5090-24h")).values()
    assert wrong.rank is None and "measured as class 4090, not 5090" in wrong.why_not[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"track": "open"}, "track open is not ranked"),
        ({"gpu_class": "5090"}, "measured as class 5090"),
        ({"core": None}, "not scored on all of CORE"),
        ({"claimed_ranked": False, "why_not": ("over the time budget",)}, "over the time budget"),
    ],
)
def test_each_reason_against_ranking_is_told(changes: dict[str, Any], reason: str) -> None:
    (place,) = places(row_facts("a", **changes)).values()
    assert place.rank is None and any(reason in why for why in place.why_not)

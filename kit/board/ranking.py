"""Ranks, pools and records: which rows compete, with the mean of which runs, and who is ahead.

Rows that reach the target come first, by time; the others behind them, by CORE. Within each part a
rank is 1 + the number of rows that are significantly better, so rows that chance could have ordered
share one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kit.board.row import Facts
from kit.board.statistics import (
    RECORD_RUNS,
    Z_RECORD,
    Contender,
    Mean,
    Noise,
    margin,
    noise_of,
    pooled,
    ranks,
    reaches,
)
from kit.board.tiers import Standing
from kit.tracks import RANKED


class Pool(NamedTuple):
    """The runs behind a row's headline."""

    members: tuple[str, ...]
    core: Mean | None  # of CORE, or of another score that all runs have
    total_s: Mean
    is_core: bool

    def to_json(self) -> dict[str, Any]:
        value, low, high = self.core or (None, None, None)
        core = (value, low, high) if self.is_core else (None, None, None)
        score = (None, None, None) if self.is_core else (value, low, high)
        return {
            "n": len(self.members),
            **dict(zip(("core", "core_low", "core_high"), core, strict=True)),
            **dict(zip(("score", "score_low", "score_high"), score, strict=True)),
            "total_s": self.total_s.value,
            "total_s_low": self.total_s.low,
            "total_s_high": self.total_s.high,
            "members": list(self.members),
        }


class Ranked(NamedTuple):
    """What ranking adds to a row."""

    pool: Pool
    why_not: tuple[str, ...]
    rank: int | None = None
    rank_in_division: int | None = None
    ties: int = 0
    reaches_target: bool | None = None
    standing: str = "single"


def rank_rows(
    facts: Mapping[str, Facts],
    standings: Mapping[str, Standing],
    counted: Mapping[str, list[str]],
    submitted_at: Mapping[str, str],
) -> dict[str, Ranked]:
    """Pool, rank and reasons of every row.

    Args:
        counted: Row -> results of the reproducing runs that count for it.
        submitted_at: When each row was first accepted; decides who held a record first.
    """
    groups, loose = _groups(facts)
    reproduces = {result: row for row, results in counted.items() for result in results}
    places: dict[str, Ranked] = {}
    for one in facts.values():
        why = list(_reasons(one, standings[one.id]))
        members = [one.id]
        if one.id in loose:
            why.append(loose[one.id])
        elif lead := groups.get(one.id):
            if lead[0] != one.id:
                why.append(f"one of the runs of group {one.group}, which {lead[0]} stands for")
            else:
                members = lead
        if one.id in reproduces:
            why.append(f"counted as a reproduction of {reproduces[one.id]}")
        members = [*members, *(m for m in counted.get(one.id, []) if m not in members)]
        pool = _pool([facts[m] for m in members], one.track)
        standing = "pooled" if len(members) > 1 else "single"
        places[one.id] = Ranked(pool, tuple(dict.fromkeys(why)), standing=standing)
    for track in RANKED:  # each is a board of its own
        own = {row_id: place for row_id, place in places.items() if facts[row_id].track == track}
        places |= _with_ranks(track, facts, own, submitted_at)
    return places


def _with_ranks(
    track: str,
    facts: Mapping[str, Facts],
    places: dict[str, Ranked],
    submitted_at: Mapping[str, str],
) -> dict[str, Ranked]:
    """The rows of one track with their ranks."""
    noise = noise_of(track)
    there: list[str] = []
    short: list[str] = []
    for row_id, place in places.items():
        if place.why_not or place.pool.core is None:
            continue
        n = len(place.pool.members)
        there_yet = reaches(place.pool.core.value, n, sigma=noise.score)
        places[row_id] = place._replace(reaches_target=there_yet)
        (there if there_yet else short).append(row_id)
    for division in (None, "closed", "open"):
        first = [i for i in there if division in (None, facts[i].division)]
        rest = [i for i in short if division in (None, facts[i].division)]
        by_time = ranks([_by_time(i, places[i]) for i in first], noise.time)
        by_core = ranks([_by_core(i, places[i]) for i in rest], noise.score)
        for row_id, found in (*by_time.items(), *by_core.items()):
            rank = found.rank + (len(first) if row_id in by_core else 0)
            if division is None:
                changes: dict[str, Any] = {"rank": rank, "ties": found.ties}
            else:
                changes = {"rank_in_division": rank}
            places[row_id] = places[row_id]._replace(**changes)
    holder = _record_holder(there, places, submitted_at, noise)
    if holder:
        places[holder] = places[holder]._replace(standing="record")
    return places


def _by_time(row_id: str, place: Ranked) -> Contender:
    return Contender(row_id, -math.log(place.pool.total_s.value), len(place.pool.members))


def _by_core(row_id: str, place: Ranked) -> Contender:
    assert place.pool.core is not None
    return Contender(row_id, place.pool.core.value, len(place.pool.members))


def _record_holder(
    there: Iterable[str],
    places: Mapping[str, Ranked],
    submitted_at: Mapping[str, str],
    noise: Noise,
) -> str | None:
    """The last row that was significantly faster than the holder before it."""
    holder: str | None = None
    for row_id in sorted(there, key=lambda one: (submitted_at[one], one)):
        pool = places[row_id].pool
        n = len(pool.members)
        assert pool.core is not None
        if n < RECORD_RUNS or not reaches(pool.core.value, n, sigma=noise.score, z=Z_RECORD):
            continue
        if holder is not None:
            held = places[holder].pool
            gain = math.log(held.total_s.value / pool.total_s.value)
            if gain < margin(n, len(held.members), noise.time):
                continue
        holder = row_id
    return holder


def _reasons(one: Facts, standing: Standing) -> Iterable[str]:
    """Why a row is not ranked, whatever the others are."""
    yield from one.why_not
    track = RANKED.get(one.track)
    if track is None:
        yield f"track {one.track} is not ranked"
    elif one.gpu_class != track.gpu_class:
        yield f"measured as class {one.gpu_class}, not {track.gpu_class}"
    if not one.claimed_ranked and not one.why_not:
        yield "its result does not claim a rank"
    if standing.tier == "T0":
        yield "evidence for some checks is missing"
    if standing.tier in ("T0", "T1"):
        yield "self-reported: the board has not scored its weights and found the same answers"
    if not one.bound:
        yield "the run's own key does not name its submitter (`n4090-kit submit` signs that)"
    if standing.state != "listed":
        yield standing.state_reason
    if one.core is None and not one.why_not:
        yield "not scored on all of CORE"


def _groups(facts: Mapping[str, Facts]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Registered groups: row -> runs of its group, first run first; and rows of broken groups."""
    found: dict[tuple[str, str, str], list[Facts]] = defaultdict(list)
    for one in facts.values():
        if one.group is not None:
            found[one.group, one.key, one.recipe_digest].append(one)
    whole: dict[str, list[str]] = {}
    broken: dict[str, str] = {}
    for (name, _, _), runs in found.items():
        runs.sort(key=lambda one: (one.group_index if one.group_index is not None else -1, one.id))
        indices = [one.group_index for one in runs]
        failed = [one for one in runs if one.status != "complete"]
        registered = {one.group_runs for one in runs}
        if registered != {len(runs)} or indices != list(range(len(runs))):
            problem = f"group {name} is not whole: runs {indices}; a missing run counts as failed"
        elif failed:
            problem = f"run {failed[0].group_index} of group {name} is {failed[0].status}"
        elif len({one.seed for one in runs}) < len(runs):
            problem = f"group {name} uses a seed twice"
        else:
            whole.update({one.id: [other.id for other in runs] for one in runs})
            continue
        broken.update({one.id: problem[:300] for one in runs})
    return whole, broken


def _pool(runs: list[Facts], track: str) -> Pool:
    noise = noise_of(track)
    scores = [one.score for one in runs if one.score is not None]
    times = pooled([one.total_s for one in runs], 0.0)
    half = times.value * (pooled([0.0] * len(runs), noise.time).high)
    return Pool(
        tuple(one.id for one in runs),
        pooled(scores, noise.score) if len(scores) == len(runs) else None,
        Mean(times.value, max(0.0, times.value - half), times.value + half),
        all(one.core is not None for one in runs),
    )

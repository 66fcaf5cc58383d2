"""The board's statistics: what noise allows to conclude. One place, for code and documents alike.

Known-sigma z tests throughout. A run costs a day, so n is 1 to 3, and a t test at n = 2 would ask
for margins four times as wide. Sigma stands for the spread between identical runs: nanochat's seven
runs of one recipe (CORE 0.25119 to 0.26765, sd 0.0052; val_bpb sd 0.0002), and 2.5 % of time
between RTX 4090s (nine public rows). All provisional until ten reference runs on three cards
replace them.

    listing at a target   (mean - target) * sqrt(n) >= 1.645 * sigma
    record                the same with 2.326, three runs or more
    not worse             found - claimed <= 1.645 * sigma * sqrt(1/n1 + 1/n2)
    significantly better  difference >= 1.645 * sigma * sqrt(1/n1 + 1/n2); otherwise a tie
    disputed              worse at p < 0.01, two-sided (2.576), by two different people
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from kit.core_eval.naming import is_core
from kit.tracks import RANKED

TARGET_CORE = 0.256525  # GPT-2 1.5B
Z_LISTING = 1.645
Z_RECORD = 2.326
Z_DISPUTE = 2.576
Z_INTERVAL = 1.96
RECORD_RUNS = 3
# Seconds a step times measured matmul rate, reproduction over claim.
SPEED_MARGIN = 0.05
RAW_SPEED_MARGIN = 0.08
# The same checkpoint scored again.
EVALUATION_BPB = 0.0005
EVALUATION_CORE = 0.002

Document = dict[str, Any]
Verdict = Literal["confirmed", "worse", "inconclusive"]


class Noise(NamedTuple):
    """Standard deviations between identical runs. `time` is a share, between cards."""

    score: float
    val_bpb: float
    time: float
    source: str


_NANOCHAT = "nanochat's seven identical runs; provisional"
_SMALL = "assumed for short runs of small models, not measured"
NOISE = {
    **{track: Noise(0.0052, 0.0002, 0.025, _NANOCHAT) for track in RANKED},
    "open": Noise(0.02, 0.01, 0.025, _SMALL),
    "smoke": Noise(0.03, 0.02, 0.025, _SMALL),
}


def noise_of(track: str) -> Noise:
    return NOISE.get(track, NOISE["open"])


class Mean(NamedTuple):
    value: float
    low: float
    high: float


def pooled(values: Sequence[float], sigma: float) -> Mean:
    """Mean of runs with its 95 % interval; `sigma` in the values' unit."""
    mean = math.fsum(values) / len(values)
    half = Z_INTERVAL * sigma / math.sqrt(len(values))
    return Mean(mean, mean - half, mean + half)


def reaches(mean: float, n: int, *, sigma: float, z: float = Z_LISTING) -> bool:
    """The listing rule at CORE's target."""
    return (mean - TARGET_CORE) * math.sqrt(n) >= z * sigma


def margin(n1: int, n2: int, sigma: float, z: float = Z_LISTING) -> float:
    """How far apart two means may lie by chance."""
    return z * sigma * math.sqrt(1 / n1 + 1 / n2)


class Contender(NamedTuple):
    """A row as ranking sees it: `value` is better when it is larger."""

    key: str
    value: float
    n: int


class Place(NamedTuple):
    rank: int
    ties: int


def ranks(contenders: Sequence[Contender], sigma: float) -> dict[str, Place]:
    """Rank of each contender: 1 + how many are significantly better; and its ties, pairwise.

    Ranks so defined need no order among rows that cannot be told apart. Few values of n occur, so
    each is compared with sorted lists, one a value of n: O(rows * log(rows)).
    """
    by_n: dict[int, list[float]] = defaultdict(list)
    for one in contenders:
        by_n[one.n].append(one.value)
    for values in by_n.values():
        values.sort()
    places = {}
    for one in contenders:
        better = ties = 0
        for n, values in by_n.items():
            far = margin(one.n, n, sigma)
            above = bisect_left(values, one.value + far)
            below = bisect_right(values, one.value - far)
            better += len(values) - above
            ties += above - below
        places[one.key] = Place(1 + better, ties - 1)
    return places


def figures_of(result: Document) -> Document:
    """What reproductions compare, from a result."""
    training, quality = result["training"], result["quality"]
    before = result["hardware"]["before"] or {}
    probes = before.get("probes") or {}
    gpu, cpu = probes.get("gpu") or {}, probes.get("cpu") or {}
    gpus = before.get("gpus") or [{}]
    rate = gpu.get("bf16_tflops")
    if rate is None and cpu.get("matmul_gflops"):
        rate = cpu["matmul_gflops"] / 1000
    tokens_per_s, steps = training.get("tokens_per_s"), training["steps"]
    core = quality["core"]
    return {
        "total_s": result["timing"]["total_s"],
        "core": core["value"] if is_core(core) else None,
        "score": core["value"] if core else None,
        "val_bpb": quality["val_bpb"]["last"] if quality["val_bpb"] else None,
        "s_per_step": training["tokens"] / steps / tokens_per_s if steps and tokens_per_s else None,
        "matmul_tflops": rate,
        "gpu_hash": gpus[0].get("uuid_hash"),
    }


def compare_run(
    claimed: Document, found: Document, noise: Noise, *, n_claimed: int = 1
) -> tuple[list[Document], Verdict]:
    """A run of the same recipe against the claim: the checks, and what they amount to.

    Quality is val_bpb, which varies 50 times less between runs than CORE; the score decides only
    where there is no val_bpb. Speed decides on GPUs; a CPU's cores are shared with whatever else
    runs, so there it is only shown.
    """
    checks = []
    quality: list[str] = []
    for name, sigma, sign in (("val_bpb", noise.val_bpb, 1.0), ("score", noise.score, -1.0)):
        a, b = claimed.get(name), found.get(name)
        if a is None or b is None:
            checks.append(_check(name, "skip", "not in both runs", a, b))
            continue
        allowed = margin(n_claimed, 1, sigma)
        good = sign * (b - a) <= allowed
        if quality and not good:
            checks.append(
                _check(name, "skip", "noisier than val_bpb, which decides", a, b, allowed)
            )
            continue
        message = "not worse than the claim beyond chance" if good else "worse than the claim"
        checks.append(_check(name, "pass" if good else "fail", message, a, b, allowed))
        quality.append(checks[-1]["status"])
    checks.append(_compare_speed(claimed, found))
    if any(check["status"] == "fail" for check in checks):
        return checks, "worse"
    return checks, "confirmed" if quality else "inconclusive"


def _compare_speed(claimed: Document, found: Document) -> Document:
    a, b = claimed.get("s_per_step"), found.get("s_per_step")
    if not a or not b:
        return _check("speed", "skip", "seconds a step are not known of both runs", a, b)
    if claimed.get("gpu_hash") is None or found.get("gpu_hash") is None:
        return _check("speed", "skip", "a CPU's time says little about another's", a, b)
    limit = RAW_SPEED_MARGIN
    words = "seconds a step"
    if claimed.get("matmul_tflops") and found.get("matmul_tflops"):
        a, b = a * claimed["matmul_tflops"], b * found["matmul_tflops"]
        limit, words = SPEED_MARGIN, "seconds a step times measured matmul rate"
    good = b / a <= 1 + limit
    message = f"{words}: {b / a:.3f} of the claim's"
    return _check("speed", "pass" if good else "fail", message, a, b, limit)


def compare_check(claimed: Document, found: Document) -> tuple[list[Document], Verdict]:
    """The published checkpoint, scored again, against the claim."""
    checks = []
    for name, limit in (("val_bpb", EVALUATION_BPB), ("score", EVALUATION_CORE)):
        a, b = claimed.get(name), found.get(name)
        if a is None or b is None:
            checks.append(_check(name, "skip", "not scored again", a, b, limit))
            continue
        good = abs(b - a) <= limit
        message = "the same score again" if good else "another score than the claim"
        checks.append(_check(name, "pass" if good else "fail", message, a, b, limit))
    statuses = {check["status"] for check in checks}
    if "fail" in statuses:
        return checks, "worse"
    return checks, "confirmed" if "pass" in statuses else "inconclusive"


def clearly_worse(claimed: Document, found: Document, noise: Noise) -> bool:
    """Whether a run contradicts the claim at p < 0.01, two-sided; two such by different people
    make a row disputed.
    """
    a, b = claimed.get("val_bpb"), found.get("val_bpb")
    if a is not None and b is not None:
        return bool(b - a > margin(1, 1, noise.val_bpb, Z_DISPUTE))
    a, b = claimed.get("score"), found.get("score")
    return a is not None and b is not None and a - b > margin(1, 1, noise.score, Z_DISPUTE)


def _check(
    name: str,
    status: str,
    message: str,
    claimed: float | None,
    found: float | None,
    limit: float | None = None,
) -> Document:
    return {
        "name": name,
        "status": status,
        "message": message,
        "claimed": claimed,
        "found": found,
        "limit": limit,
    }

"""What was predicted of a GPU before one was there, and which of it a measurement bears out.

Every prediction is computed here, by the time model or the memory plan, or is a rule that the code
promises. `judged` sets it beside what `reference.gpu_check` measured. A prediction whose part was
not reached, or that is for another card, is listed as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

from reference.model.step_time import (
    BANDWIDTH_SHARE,
    COMPILED,
    INT8_SHARE,
    RATES,
    Kind,
    fitted_share,
    leave_one_out,
    predict_recipe,
    speed_points,
)

Verdict = Literal["held", "did not hold", "not measured", "for another card"]
MEMORY_TOLERANCE = 0.07  # of the planned peak
WAIT_SHARE = 0.005  # of a step, waiting for rows
LOSS_DIFFERENCE = 0.005  # nats between 8-bit and 16-bit products after the same steps
EIGHT_BIT_GAIN = 1.1  # speed over bf16 at which `reference` would take 8-bit products


class Prediction(NamedTuple):
    """A prediction beside its measurement; `low` and `high` bound what bears it out."""

    about: str
    predicted: str
    low: float
    high: float
    measured: float | None
    applies: bool = True

    @property
    def verdict(self) -> Verdict:
        if not self.applies:
            return "for another card"
        if self.measured is None:
            return "not measured"
        return "held" if self.low <= self.measured <= self.high else "did not hold"

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "verdict": self.verdict}


def card_of(device_name: str) -> str:
    """The time model's name of a card, such as "rtx4090"; "" for one that it does not know."""
    name = device_name.lower().removeprefix("nvidia ").removeprefix("geforce ").replace(" ", "")
    return name if name in RATES else ""


def judged(parts: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> list[Prediction]:
    """All predictions, with what `parts` of the report bear out so far.

    Args:
        parts: Name of a part to {"result": …}.
        recipes: The recipe of each part that trains.
    """
    steps = {name: _figures(parts, name) for name in recipes}
    device = str(_figures(parts, "environment").get("device", ""))
    return [
        *_numerics(parts),
        *_speeds(steps, recipes, card_of(device)),
        *_ratios(steps),
        *_products(parts, card_of(device)),
        *_memory(steps),
        *_promises(steps),
    ]


@cache
def worst_error() -> float:
    """The time model's largest relative error for a published speed that it was not fitted to."""
    points = leave_one_out(speed_points())
    return max(abs(speed / point.tokens_per_s - 1) for point, speed in points)


def _figures(parts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    result = parts.get(name, {}).get("result")
    return result if isinstance(result, Mapping) else {}


def _numerics(parts: Mapping[str, Any]) -> Iterator[Prediction]:
    rows = _figures(parts, "numerics").get("rows")
    wrong = sum(not row["ok"] for row in rows) if rows else None
    yield Prediction("kernels with wrong results", "0", 0, 0, wrong)


def _speeds(
    steps: Mapping[str, Mapping[str, Any]], recipes: Mapping[str, Mapping[str, Any]], card: str
) -> Iterator[Prediction]:
    """The time model's tokens/s, within its largest error for a published speed."""
    worst = worst_error()
    for name, recipe in recipes.items():
        if recipe["pretrain"]["matmul"] == "fastest":
            continue
        speed = predict_recipe(recipe, "rtx4090").tokens_per_s
        yield Prediction(
            f"{name}: tokens/s on an RTX 4090",
            f"{speed:,.0f}, give or take {worst:.0%}",
            speed * (1 - worst),
            speed * (1 + worst),
            steps[name].get("tokens_per_s"),
            card == "rtx4090",
        )


def _ratios(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[Prediction]:
    """8-bit products beside 16-bit ones of the same depth: speed and loss."""
    for name, row in steps.items():
        depth = name.split()[0]
        base = steps.get(f"{depth} ours, bf16", {})
        if "bf16" in name or "baseline" in name:
            continue
        faster = _ratio(row.get("tokens_per_s"), base.get("tokens_per_s"))
        yield Prediction(
            f"{name}: speed against bf16", f"at least {EIGHT_BIT_GAIN}", EIGHT_BIT_GAIN, 99, faster
        )
        losses = row.get("loss_last"), base.get("loss_last")
        apart = None if None in losses else abs(losses[0] - losses[1])  # type: ignore[operator]
        yield Prediction(
            f"{name}: last loss apart from bf16's",
            f"below {LOSS_DIFFERENCE} nats",
            0,
            LOSS_DIFFERENCE,
            apart,
        )


def _products(parts: Mapping[str, Any], card: str) -> Iterator[Prediction]:
    """What one product gains by 8-bit factors, by the time model's rates and bytes."""
    for name, part in parts.items():
        rows = part.get("result")
        if not name.startswith("products") or not isinstance(rows, list):
            continue
        for row in rows:
            if row["kind"] in ("fp8", "int8") and row["which"] == "forward":
                n, k = map(int, row["shape"].split("x"))
                gain = product_gain(n, k, row["tokens"], row["kind"])
                yield Prediction(
                    f"d{row['depth']} {row['map']}: {row['kind']} product on an RTX 4090, rounding "
                    "included, against bf16",
                    f"{gain:.2f}, give or take {worst_error():.0%}",
                    gain * (1 - worst_error()),
                    gain * (1 + worst_error()),
                    row.get("speed"),
                    card == "rtx4090",
                )


def product_gain(n: int, k: int, tokens: int, kind: Kind) -> float:
    """How much faster the time model has a product (tokens, k) @ (n, k).T with 8-bit factors."""
    rates, share = RATES["rtx4090"], fitted_share()
    flops, factors = 2.0 * n * k * tokens, tokens * k + n * k
    rate = share * (INT8_SHARE * rates.int8 if kind == "int8" else rates.fp8)
    rounding_s = COMPILED.rounding * factors / (BANDWIDTH_SHARE * rates.bandwidth)
    scales_s = rates.scales_s(flops / 2) if kind == "int8" else 0.0
    return flops / (share * rates.bf16) / (flops / rate + rounding_s + scales_s)


def _memory(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[Prediction]:
    for name, row in steps.items():
        planned, peak = row.get("planned_bytes"), row.get("peak_bytes")
        yield Prediction(
            f"{name}: peak memory over plan",
            f"1, give or take {MEMORY_TOLERANCE:.0%}",
            1 - MEMORY_TOLERANCE,
            1 + MEMORY_TOLERANCE,
            _ratio(peak, planned),
        )


def _promises(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[Prediction]:
    """What holds for every step, the worst of those that were made."""
    for about, key, most in (
        ("graphs compiled inside steps", "graphs_in_steps", 0.0),
        ("share of a step spent waiting for rows", "wait_share", WAIT_SHARE),
    ):
        seen = [row[key] for row in steps.values() if row.get(key) is not None]
        yield Prediction(about, f"at most {most:g}", 0, most, max(seen, default=None))


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value and base else None

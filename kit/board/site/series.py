"""Curves of a run: loss, val_bpb, throughput, power. Thinned to what a screen can show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from kit.board.layout import TEXT_LIMITS
from kit.board.load import Submission
from kit.errors import SchemaError
from kit.events import Event

POINTS = 240
_LEAST = {"heat": 20, "clock": 400}  # a smaller range would magnify noise
Point = tuple[float, float]


def curves(submission: Submission) -> list[dict[str, Any]]:
    """What the charts of a row's page draw; only those there is data for.

    Returns:
        For each chart: id, title, unit of x, end of x, and series of (x, y).
    """
    loss, bpb, speed = _training(submission)
    power, heat, clock, load = _telemetry(submission.folder / "telemetry.jsonl")
    charts = [
        ("loss", "Training loss", "nats a token", False, [("loss", loss, False)]),
        ("bpb", "Validation bits per byte", "", False, [("val_bpb", bpb, True)]),
        ("speed", "Throughput", "tokens a second", True, [("tokens/s", speed, False)]),
        ("power", "GPU power", "watts", True, [("W", power, False)]),
        ("heat", "GPU temperature", "°C", False, [("°C", heat, False)]),
        ("clock", "GPU clock", "MHz", False, [("MHz", clock, False)]),
    ]
    if not power:
        charts.append(("cpu", "CPU load", "percent of all cores", True, [("%", load, False)]))
    last = max((p[-1][0] for _, _, _, _, s in charts for _, p, _ in s if p), default=0.0)
    divisor, unit = (3600.0, "hours") if last >= 5400 else (60.0, "minutes")
    return [
        {
            "id": f"chart-{name}",
            "title": title,
            "note": note,
            "zero": zero,
            "least": _LEAST.get(name, 0),
            "unit": unit,
            "end": _short(last / divisor),
            "label": _label(title, series, unit, divisor),
            "series": [
                {
                    "name": label,
                    "dots": dots,
                    "points": [(_short(x / divisor), _short(y)) for x, y in thin(points)],
                }
                for label, points, dots in series
            ],
        }
        for name, title, note, zero, series in charts
        if all(len(points) > 1 for _, points, _ in series)
    ]


def thin(points: list[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points: means of equal parts, first and last as they were."""
    if len(points) <= limit:
        return points
    inner = points[1:-1]
    parts = limit - 2
    edges = [round(i * len(inner) / parts) for i in range(parts + 1)]
    means = [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in (inner[a:b] for a, b in pairwise(edges))
        if part
    ]
    return [points[0], *means, points[-1]]


def _training(submission: Submission) -> tuple[list[Point], list[Point], list[Point]]:
    """Loss, val_bpb and tokens a second over seconds since the run's start."""
    try:
        log = submission.log
    except SchemaError:
        return [], [], []
    start = log.run_start
    if start is None:
        return [], [], []

    def at_s(event: Event[Any]) -> float:
        return (event.t_ns - start.t_ns) / 1e9

    steps = log.steps()
    loss = [(at_s(step), step.data.loss) for step in steps]
    bpb = [
        (at_s(found), float(found.data.value))
        for found in log.evaluations("val_bpb")
        if _is_number(found.data.value)
    ]
    speed = [
        (at_s(step), step.data.step_tokens / step.data.dt_s)
        for step in steps
        if step.data.step_tokens and step.data.dt_s
    ]
    # From running totals, for trainers that report no tokens of a step.
    speed = speed or [
        (at_s(step), (step.data.tokens - before.data.tokens) / (at_s(step) - at_s(before)))
        for before, step in pairwise(steps)
        if step.data.tokens > before.data.tokens and step.t_ns > before.t_ns
    ]
    return loss, bpb, speed


def _telemetry(path: Path) -> tuple[list[Point], list[Point], list[Point], list[Point]]:
    """Power, temperature, SM clock and CPU load over seconds; empty where nothing was read."""
    names = ("gpu_power_w", "gpu_temp_c", "gpu_sm_mhz", "cpu_util")
    found: dict[str, list[Point]] = {name: [] for name in names}
    for record in _records(path):
        at_ms = record.get("t_ms")
        if record.get("ev") != "sample" or not _is_number(at_ms):
            continue
        for name in names:
            _add(found[name], at_ms / 1000, record.get(name))
    power, heat, clock, load = (found[name] for name in names)
    return power, heat, clock, load


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_symlink() or not path.is_file():
        return
    if path.stat().st_size > TEXT_LIMITS["telemetry.jsonl"]:
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if isinstance(record, dict):
                yield record


def _label(
    title: str, series: Iterable[tuple[str, list[Point], bool]], unit: str, divisor: float
) -> str:
    """A chart in a sentence, for those who cannot see it."""
    said = [
        f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g} "
        f"over {(points[-1][0] - points[0][0]) / divisor:.3g} {unit}, "
        f"between {min(y for _, y in points):.4g} and {max(y for _, y in points):.4g}"
        for name, points, _ in series
        if points
    ]
    return f"{title}: {'; '.join(said)}."


def _add(points: list[Point], at_s: float, value: Any) -> None:
    # Time only moves forward in a log that was accepted; a chart of another would run backwards.
    if _is_number(value) and (not points or at_s >= points[-1][0]):
        points.append((float(at_s), float(value)))


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: float) -> float:
    return float(f"{value:.5g}")

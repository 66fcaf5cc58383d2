"""The state of a run for onlookers: stages, loss, speed, power, memory, and the time left."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
_POINTS = 400  # of the loss curve
_WINDOW = 64  # reports that the time left is read from
_SMOOTHING = 0.1
_FIT_LEAST, _FIT_POINTS = 16, 40  # losses that the expected curve needs, and points it has


@dataclass
class StageView:
    """A stage's state. `fraction` is None where the stage reports no progress."""

    name: str
    status: str = "waiting"
    fraction: float | None = None
    seconds: float = 0.0


@dataclass
class RunView:
    """What is known of a run so far; `take` its records in order."""

    stages: list[StageView]
    budget_s: float
    run: str = ""
    status: str = "preflight"
    loss: list[tuple[int, float]] = field(default_factory=list)
    evals: dict[str, float] = field(default_factory=dict)
    tokens_per_s: float | None = None
    power_w: float | None = None
    memory_bytes: float | None = None  # in use on the whole GPU, or machine, by all programs
    memory_of: str = "machine"
    elapsed_s: float = 0.0
    _stride: int = 1
    _seen: int = 0
    _step: int = 0
    _start_ns: int | None = None
    _stage_ns: int = 0
    _recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    @property
    def stage(self) -> StageView | None:
        return next((one for one in self.stages if one.status == "running"), None)

    def take(self, record: Record) -> None:
        """Moves on by one record of the event log or the telemetry."""
        ev = record["ev"]
        if ev == "sample":
            self._take_sample(record)
            return
        data, now = record.get("data") or {}, record["t_ns"]
        if self._start_ns is not None:
            self.elapsed_s = (now - self._start_ns) / 1e9
        if ev == "header":
            self.run = str(data.get("run"))
        elif ev == "run_start":
            self._start_ns, self.status = now, "running"
        elif ev == "resume":
            self.status = "running"
        elif ev == "run_stop":
            self.status = str(data.get("status"))
        elif ev in ("stage_start", "stage_stop"):
            self._take_stage(ev, data, now)
        elif ev == "step":
            self._take_step(data, now)
        elif ev == "progress" and data.get("total"):
            self._advance(data["done"] / data["total"], now)
        elif ev == "eval":
            name, value = str(data.get("name")), data.get("value")
            if name != "core_task" and isinstance(value, int | float):
                self.evals[name] = value

    def time_left(self) -> tuple[float, float] | None:
        """Seconds to the end of the stage and their error, from the pace of recent reports.

        The error is the spread of the pace over four parts of the recent reports.
        """
        stage, points = self.stage, list(self._recent)
        if stage is None or stage.fraction is None or len(points) < 8:
            return None
        rest = 1 - stage.fraction
        size = len(points) // 4
        parts = [points[i * size : (i + 1) * size + 1] for i in range(4)]
        paces = [
            (b[1] - a[1]) / (b[0] - a[0])
            for a, b in ((part[0], part[-1]) for part in parts)
            if b[0] > a[0] and b[1] > a[1]
        ]
        if len(paces) < 2 or rest <= 0:
            return None
        whole = (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
        error = statistics.stdev(paces) / len(paces) ** 0.5
        return rest / whole, rest / whole * min(1.0, error / whole)

    def expected(self) -> list[tuple[float, float]]:
        """The loss to expect, as (step, loss) from early in the run to its end; empty at first.

        A power law, loss = a * step ** -b, through the losses so far without their first twentieth.
        It knows nothing of the learning rate's decay, which lowers the end of a real curve.
        """
        stage = next((one for one in self.stages if one.name == "pretrain"), None)
        if stage is None or not stage.fraction or len(self.loss) < _FIT_LEAST:
            return []
        last = self.loss[-1][0]
        used = [(s, y) for s, y in self.loss if s >= max(1, last / 20) and 0 < y < math.inf]
        if len(used) < _FIT_LEAST // 2 or used[0][0] == used[-1][0]:
            return []
        slope, level = statistics.linear_regression(
            [math.log(step) for step, _ in used], [math.log(loss) for _, loss in used]
        )
        first, end = used[0][0], last / stage.fraction
        steps = [first * (end / first) ** (i / _FIT_POINTS) for i in range(_FIT_POINTS + 1)]
        return [(step, math.exp(level) * step**slope) for step in steps]

    def to_json(self) -> dict[str, Any]:
        """The state, for the page."""
        left = self.time_left()
        return {
            "run": self.run,
            "status": self.status,
            "stages": [vars(stage) for stage in self.stages],
            "loss": self.loss,
            "expected": self.expected(),
            "evals": self.evals,
            "tokens_per_s": self.tokens_per_s,
            "power_w": self.power_w,
            "memory_bytes": self.memory_bytes,
            "memory_of": self.memory_of,
            "elapsed_s": self.elapsed_s,
            "budget_s": self.budget_s,
            "left_s": left and left[0],
            "left_error_s": left and left[1],
        }

    def _take_sample(self, row: Record) -> None:
        self.power_w = row.get("gpu_power_w", self.power_w)
        if (used := row.get("gpu_used_bytes")) is not None:
            self.memory_of, self.memory_bytes = "GPU", used
        else:
            self.memory_bytes = row.get("ram_used_bytes", self.memory_bytes)

    def _take_stage(self, ev: str, data: Record, now: int) -> None:
        stage = next((one for one in self.stages if one.name == data.get("stage")), None)
        if stage is None:
            return
        if ev == "stage_start":
            stage.status, stage.fraction = "running", None
            self._stage_ns, self.tokens_per_s = now, None
            self._recent.clear()
        else:
            stage.status = str(data.get("status"))
            stage.fraction = 1.0 if stage.status == "complete" else stage.fraction
            stage.seconds = (now - self._stage_ns) / 1e9

    def _take_step(self, data: Record, now: int) -> None:
        progress, duration, count = (data.get(k) for k in ("progress", "dt_s", "step_tokens"))
        if isinstance(progress, int | float):
            self._advance(float(progress), now)
        if duration and count:
            speed, old = count / duration, self.tokens_per_s
            self.tokens_per_s = speed if old is None else old + _SMOOTHING * (speed - old)
        stage = self.stage
        if stage is None or stage.name != "pretrain":
            return
        while self.loss and self.loss[-1][0] >= data["step"]:
            self.loss.pop()  # a resume goes back
        self._seen += 1
        if self._seen % self._stride == 0:
            self.loss.append((data["step"], data["loss"]))
        if len(self.loss) >= _POINTS:
            self.loss, self._stride = self.loss[::2], self._stride * 2

    def _advance(self, fraction: float, now: int) -> None:
        if (stage := self.stage) is not None:
            stage.fraction = fraction
            stage.seconds = (now - self._stage_ns) / 1e9
            self._recent.append((now / 1e9, fraction))


def view_of(recipe: dict[str, Any]) -> RunView:
    """An empty view for a resolved recipe's document."""
    return RunView([StageView(name) for name in recipe["stages"]], float(recipe["budget_s"]))

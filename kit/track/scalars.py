"""From records of a run to named numbers over steps, the same for every tracker."""

from __future__ import annotations

from typing import Any, NamedTuple

Record = dict[str, Any]
_STEP_FIELDS = ("loss", "lr", "tokens", "grad_norm", "dt_s")
_SAMPLE_FIELDS = {
    "gpu_power_w": "gpu_power_w",
    "gpu_temp_c": "gpu_temp_c",
    "gpu_used_bytes": "gpu_memory_bytes",
    "gpu_util": "gpu_utilisation",
    "ram_used_bytes": "ram_bytes",
    "cpu_util": "cpu_utilisation",
}


class Scalars(NamedTuple):
    """Numbers of one moment. `step` counts over all stages, so that it only rises."""

    step: int
    wall_s: float
    values: dict[str, float]


class Reader:
    """Turns records into `Scalars`; machine rows belong to the newest step."""

    def __init__(self) -> None:
        self.stage = "preflight"
        self.config: Record = {}
        self._first = 0  # step of the whole run at which the stage began
        self._step = 0

    def take(self, record: Record) -> Scalars | None:
        """The numbers of a record, or None."""
        ev = record["ev"]
        if ev == "sample":
            named = _SAMPLE_FIELDS.items()
            values = {f"machine/{new}": record.get(old) for old, new in named}
            return self._scalars(record, values)
        data = record.get("data") or {}
        if ev == "header":
            self.config = {key: data.get(key) for key in ("run", "recipe", "seed", "kit")}
        elif ev == "stage_start":
            self.stage, self._first = str(data.get("stage")), self._step
        elif ev == "step":
            self._step = max(self._step, self._first + int(data.get("step", 0)) + 1)
            values = {f"{self.stage}/{name}": data.get(name) for name in _STEP_FIELDS}
            if data.get("dt_s") and data.get("step_tokens"):
                values[f"{self.stage}/tokens_per_s"] = data["step_tokens"] / data["dt_s"]
            return self._scalars(record, values)
        elif ev == "eval":
            task = f"/{data['task']}" if "task" in data else ""
            values = {f"{self.stage}/{data.get('name')}{task}": data.get("value")}
            if data.get("answer_bpb") is not None:
                values[f"{self.stage}/answer_bpb{task}"] = data["answer_bpb"]
            return self._scalars(record, values)
        elif ev == "memory":
            return self._scalars(record, {f"{self.stage}/peak_bytes": data.get("peak_bytes")})
        return None

    def _scalars(self, record: Record, values: dict[str, Any]) -> Scalars | None:
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        return Scalars(self._step, record["wall_ms"] / 1000, numbers) if numbers else None

"""The trainer contract: how the kit asks a process for a stage, and what it may report back.

A stage's command gets the path of a JSON request as its last argument, and in the environment
variable N4090_EVENTS_FD the number of an open pipe. It writes one JSON object a line there,
`{"ev": NAME, "data": {…}}`, leaves its outputs under `paths.out`, and exits 0. It stops by itself
at `clock.deadline_ns` and within seconds of SIGTERM (exit 3). Started again (`attempt` above 0) it
goes on from what it left, or does the stage over, with the same result. `resume_step` is then the
step after the last one whose report is stored. A kill may have lost reports of later ones, so it
goes on from there or from before.

What a trainer says is testimony: it is stored, never trusted. Lines that are no JSON, too long, of
an unknown kind or past the limit of a stage are counted and dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import events
from kit.errors import SchemaError
from kit.recipe import Recipe
from kit.timing import ClockSample, boottime_ns
from kit.trust.digest import sha256_bytes

CONTRACT = 1
EVENTS_FD_VARIABLE = "N4090_EVENTS_FD"
MAX_LINE_BYTES = 65_536
MAX_EVENTS_PER_STAGE = 200_000
MAX_TEXT = 2_000  # characters kept of one string

INPUTS = ("data", "sft", "chat_eval", "core")
STOPPED_EXIT = 3


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage: 31 bits of sha256("<seed>:<stage>")."""
    return int(sha256_bytes(f"{seed}:{stage}".encode()).removeprefix("sha256:")[:8], 16) >> 1


def stage_outputs(stage: str) -> str:
    """The folder of a stage's outputs, relative to the run folder."""
    return {
        "tokenizer": "tokenizer",
        "pretrain": "checkpoints/pretrain",
        "sft": "checkpoints/sft",
        "core": "eval",
        "chat_eval": "eval",
    }[stage]


def stage_command(stage: str, recipe: Recipe, python: str) -> list[str]:
    """The program that does `stage`; CORE is the kit's own business, whoever trained."""
    if stage == "core":
        return [python, "-m", "kit.core_eval"]
    return trainer_command(recipe, python)


def trainer_command(recipe: Recipe, python: str) -> list[str]:
    """The recipe's trainer with its placeholders filled in."""
    command = [
        str(part).replace("{recipe_dir}", str(recipe.folder))
        for part in recipe.section("trainer")["command"]
    ]
    return [python, *command[1:]] if command[0] == "python" else command


def build_request(
    stage: str,
    *,
    recipe: Recipe,
    run_id: str,
    run: Path,
    cache: Path,
    inputs: Mapping[str, Path | None],
    seed: int,
    attempt: int,
    device: str,
    threads: int,
    clock: Mapping[str, Any],
    resume_step: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """The request of one stage as the trainer reads it."""
    paths = {
        "run": run,
        "out": out or run / stage_outputs(stage),
        "cache": cache,
        "tokenizer": run / "tokenizer",
        "base": run / "checkpoints" / "pretrain",
        "chat": run / "checkpoints" / "sft",
        "recipe_dir": recipe.folder,
        **{name: inputs.get(name) for name in INPUTS},
    }
    return {
        "contract": CONTRACT,
        "stage": stage,
        "run_id": run_id,
        "seed": stage_seed(seed, stage),
        "attempt": attempt,
        "resume_step": resume_step,
        "device": device,
        "threads": threads,
        "recipe": recipe.document,
        "paths": {key: None if value is None else str(value) for key, value in paths.items()},
        "clock": dict(clock),
    }


@dataclass(frozen=True)
class StageReport:
    """One accepted line of a stage, and the clocks when it came."""

    ev: str
    data: dict[str, Any]
    at: ClockSample


class Redactor:
    """Replaces the places of this machine in what a trainer says; they never leave it."""

    def __init__(self, places: Mapping[str, Path | None]) -> None:
        # Longest first, so that a folder inside another keeps its own name.
        pairs = [(str(path), f"<{name}>") for name, path in places.items() if path is not None]
        self._pairs = sorted(
            ((path, name) for path, name in pairs if len(path) > 1),
            key=lambda pair: len(pair[0]),
            reverse=True,
        )
        # Nearly nothing that a trainer says is a path: one look tells.
        self._mark = "/" if all("/" in path for path, _ in self._pairs) else ""

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            if self._mark in value:
                for path, name in self._pairs:
                    value = value.replace(path, name)
            return value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"
        if isinstance(value, list):
            return [self(item) for item in value]
        if isinstance(value, dict):
            return {str(self(key)): self(item) for key, item in value.items()}
        return value


def parse_report(line: bytes, redact: Redactor, at: ClockSample) -> StageReport | None:
    """One line of a stage that came at `at`, or None when it breaks the contract."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        message = _DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or set(message) != {"ev", "data"}:
        return None
    ev, data = message["ev"], message["data"]
    if not isinstance(ev, str) or not isinstance(data, dict) or not _storable(data):
        return None
    try:
        events.parse_report(ev, data)
    except SchemaError:
        return None
    redacted = redact(data)
    assert isinstance(redacted, dict)
    return StageReport(ev, redacted, at)


def deadline_ns(start_ns: int, budget_s: float) -> int:
    """The moment, on the run's clock, at which `budget_s` seconds are over."""
    return start_ns + int(budget_s * 1e9)


def remaining_s(deadline: int) -> float:
    """Seconds left until `deadline`; negative when it has passed."""
    return (deadline - boottime_ns()) / 1e9


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _storable(value: Any, depth: int = 0) -> bool:
    """Whether the canonical form can hold `value`: shallow, integers below 2^53, plain text."""
    if depth > 8:
        return False
    if isinstance(value, dict):
        return all(
            _storable(key, depth + 1) and _storable(item, depth + 1) for key, item in value.items()
        )
    if isinstance(value, list):
        return all(_storable(item, depth + 1) for item in value)
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, int):
        return abs(value) < 2**53
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return value is None

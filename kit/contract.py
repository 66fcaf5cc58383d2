"""The trainer contract: how the kit asks a process for a stage, and what it may report back.

A stage's command gets the path of a JSON request as its last argument, and in the environment
variable N4090_EVENTS_FD the number of an open pipe. It writes one JSON object a line there,
`{"ev": NAME, "data": {…}}`, leaves its outputs under `paths.out`, and exits 0. It stops by itself
at `clock.deadline_ns` and within seconds of SIGTERM (exit 3). Started again (`attempt` above 0) it
goes on from what it left, or does the stage over, with the same result. `resume_step` is then the
step after the last one whose report is stored. A kill may have lost reports of later ones, so it
goes on from there or from before.

What a trainer says is testimony: it is stored, never trusted. A line that is not JSON, is too long,
has an unknown kind, or holds a value that no result could state is counted and dropped. `limits.py`
says how much one stage may report.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kit import events
from kit.errors import SchemaError
from kit.events import Data
from kit.limits import MAX_LINE_BYTES, MAX_TEXT
from kit.recipe import Recipe
from kit.timing import ClockSample, boottime_ns
from kit.trust.digest import sha256_bytes

CONTRACT = 1
EVENTS_FD_VARIABLE = "N4090_EVENTS_FD"

# Names of evaluations whose value stands in the result.
_STATED_EVALUATIONS = ("val_bpb", "sft_val_loss")
# A result multiplies and adds figures of reports; larger ones would not stay finite.
_MAX_NUMBER = 1e24
_NOT_NEGATIVE = (
    *("dt_s", "cuda_s", "flops", "flops_per_token", "mfu", "peak_flops", "step_tokens"),
    "progress",
)
_MAX_KIND = 200  # characters of an error's kind, which becomes the result's reason
# Reports that no check needs: they have a limit of their own, so that a flood of them ends nothing.
REMARKS = ("note", "progress")
_REPORT_FIELDS = frozenset(
    item.name
    for kind in events.EVENTS.values()
    if kind.by == "stage"
    for item in fields(kind)  # type: ignore[arg-type]
)
_COMMON_NAMES = {"root", "localhost"}  # they tell nothing
INPUTS = ("data", "sft", "chat_eval", "core")
# How the names of an input's files end, in any case.
INPUT_ENDINGS = {"data": ".parquet", "sft": ".jsonl", "chat_eval": ".jsonl"}
STOPPED_EXIT = 3


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage: 31 bits of sha256("<seed>:<stage>").

    >>> stage_seed(1337, "pretrain") == stage_seed(1337, "sft")
    False
    """
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


def stage_inputs(stage: str, inputs: Mapping[str, Path | None]) -> dict[str, Path | None]:
    """The inputs whose place a stage is told: questions of an evaluation go to that stage alone."""
    return {
        name: path
        for name, path in inputs.items()
        if name not in ("core", "chat_eval") or name == stage
    }


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
        "dtype": recipe.facts.dtype,
        "paths": {key: None if value is None else str(value) for key, value in paths.items()},
        "clock": dict(clock),
    }


@dataclass(frozen=True)
class StageReport:
    """One accepted line of a stage, and the clocks when it arrived."""

    data: Data
    at: ClockSample

    @property
    def ev(self) -> str:
        return self.data.ev


class Redactor:
    """Replaces places and names of this machine in what a trainer says; they never leave it.

    Args:
        places: Folders by the word that replaces them; the rest of a longer path stays.
        names: Names (of the host, the user) by the word that replaces them, where they stand as
            whole words, in any case.
    """

    def __init__(
        self, places: Mapping[str, Path | None], names: Mapping[str, str] | None = None
    ) -> None:
        folders = {str(path): name for name, path in places.items() if path is not None}
        words = {path.lower(): f"<{name}>" for path, name in folders.items() if len(path) > 1}
        # Longest first, so that a folder inside another keeps its own name.
        parts = [
            rf"(?<![\w.-]){re.escape(folder)}(?![\w-])"
            for folder in sorted(words, key=len, reverse=True)
        ]
        parts.append(r"/(?:home|users)/[^/\s\"'<>:]+")
        for word, name in (names or {}).items():
            words[name.lower()] = f"<{word}>"
            parts.append(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])")  # `_` may stand beside it
        self._words = words
        self._pattern = re.compile("|".join(parts), re.IGNORECASE)

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            if value not in _STATED_EVALUATIONS:
                value = self._pattern.sub(self._word, value)
            return value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"
        if isinstance(value, list):
            return [self(item) for item in value]
        if isinstance(value, dict):
            return {
                key if key in _REPORT_FIELDS else str(self(key)): self(item)
                for key, item in value.items()
            }
        return value

    def _word(self, match: re.Match[str]) -> str:
        return self._words.get(match[0].lower(), "<home>")


def machine_names() -> dict[str, str]:
    """Names of this host and user that must not leave the machine, by what replaces them."""
    host = socket.gethostname()
    found = {"host": host, "short host": host.partition(".")[0], "user": ""}
    with contextlib.suppress(KeyError, OSError):  # a user without an entry has no name
        found["user"] = getpass.getuser()
    named: dict[str, str] = {}
    for word, name in found.items():
        if len(name) > 1 and name.lower() not in _COMMON_NAMES | {
            n.lower() for n in named.values()
        }:
            named[word] = name
    return named


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
        report = StageReport(events.parse_report(ev, redact(data)), at)
    except SchemaError:
        return None
    return report if _statable(ev, data) else None


def deadline_ns(start_ns: int, budget_s: float) -> int:
    """The moment, on the run's clock, at which `budget_s` seconds are over."""
    return start_ns + int(budget_s * 1e9)


def remaining_s(deadline: int) -> float:
    """Seconds left until `deadline`; negative when it has passed."""
    return (deadline - boottime_ns()) / 1e9


def _statable(ev: str, data: Mapping[str, Any]) -> bool:
    """Whether a result could state every figure that it takes from this report."""
    if ev in ("step", "model"):
        given = [data[name] for name in _NOT_NEGATIVE if data.get(name) is not None]
        if not all(_is_number(value) and value >= 0 for value in given):
            return False
    if ev == "eval":
        value = data.get("value", "")
        return _is_number(value) or (value is None and data["name"] not in _STATED_EVALUATIONS)
    if ev == "error":
        return len(data["kind"]) <= _MAX_KIND
    return ev != "step" or _is_number(data["loss"])


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= _MAX_NUMBER


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

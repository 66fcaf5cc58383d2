"""One trial: a real trainer process through the stage contract, held to its limits.

The tokenizer stage is shared by all trials that ask for the same tokenizer of the same data. A
trial leaves its outcome and its curves; the weights go unless they are wanted.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from reference.errors import TrainerError
from reference.events import FD_VARIABLE
from reference.files import write_whole
from reference.request import CONTRACT

STAGE_LIMIT_S = 24 * 3600.0
GRACE_S = 30.0  # between asking a stage to stop and ending it
POLL_S = 0.25
COMPLETE, STOPPED, DIVERGED, FAILED = "complete", "stopped", "diverged", "failed"
OUTCOME = "outcome.json"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
Report = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Trial:
    """What a trial needs; plain data, so that it can go to another machine.

    Args:
        limits: (progress, val_bpb) pairs: at the first evaluation from `progress` on, a higher
            value ends the trial.
        gpu: The one GPU it may see; None leaves what is visible.
    """

    id: str
    arm: str
    scale: str
    seed: int
    recipe: dict[str, Any]
    folder: str
    shared: str
    data: str | None
    core: str | None
    recipe_dir: str
    device: str
    threads: int
    sft: str | None = None
    gpu: int | None = None
    limits: tuple[tuple[float, float], ...] = ()
    keep_weights: bool = False


@dataclass
class Outcome:
    """How a trial ended.

    Attributes:
        status: complete, stopped (by a rule), diverged or failed.
        reason: Why, for all but complete.
        evals: Rows (progress, step, tokens, flops, seconds, val_bpb).
        curve: Rows (step, tokens, flops, seconds, loss), thinned; seconds are of training.
        core: Task -> centred accuracy, where the study asks for tasks.
    """

    status: str
    reason: str | None = None
    val_bpb: float | None = None
    evals: list[list[float]] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)
    train_s: float = 0.0
    wall_s: float = 0.0
    tokens_per_s: float | None = None
    peak_bytes: int | None = None
    core: dict[str, float] | None = None

    @property
    def loss(self) -> float:
        """ln val_bpb; infinite for a trial that did not get there."""
        if self.status == COMPLETE and self.val_bpb:
            return math.log(self.val_bpb)
        return math.inf

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Outcome:
        return cls(**document)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_trial(trial: Trial, report: Report | None = None, stop: Event | None = None) -> Outcome:
    """Runs `trial` to its end and keeps the outcome in its folder, unless `stop` was set meanwhile.

    Never raises for what goes wrong inside a stage: that is an outcome.
    """
    began = time.perf_counter()
    folder = Path(trial.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    watch = _Watch(trial, report)
    try:
        tokenizer = _shared_tokenizer(trial, stop)
        code = _stage(trial, "pretrain", tokenizer, watch, stop)
        if code == 0 and trial.recipe["stages"][-1] == "core":
            code = _stage(trial, "core", tokenizer, watch, stop)
            watch.read_core(folder / "eval" / "core.json")
    except (TrainerError, OSError) as error:
        watch.error = {"kind": "bad_input", "message": str(error)}
        code = 1
    outcome = watch.outcome(code)
    outcome.wall_s = time.perf_counter() - began
    if not trial.keep_weights:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if not (stop and stop.is_set()):
        write_whole(folder / OUTCOME, (json.dumps(outcome.to_json()) + "\n").encode())
    return outcome


class _Watch:
    """What a trial's processes reported, and whether a limit is broken."""

    POINTS = 250  # of a curve

    def __init__(self, trial: Trial, report: Report | None) -> None:
        self._trial, self._report = trial, report
        self._steps: list[list[float]] = []
        self._evals: list[list[float]] = []
        self._progress = 0.0
        self._flops_per_token = math.nan
        self._train_s = 0.0
        self._peak: int | None = None
        self._core: dict[str, float] | None = None
        self.error: dict[str, Any] | None = None
        self.broken: str | None = None

    def take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            ev, data = event["ev"], event["data"]
        except (ValueError, KeyError, TypeError):
            return
        if ev == "model":
            self._flops_per_token = float(data["flops_per_token"])
        elif ev == "step":
            self._train_s += float(data.get("dt_s") or 0.0)
            # The sum where a token's cost changes on the way.
            flops = data.get("flops", data["tokens"] * self._flops_per_token)
            row = [data["step"], data["tokens"], flops, self._train_s, data["loss"]]
            self._steps.append(row)
            self._progress = float(data.get("progress") or 0.0)
        elif ev == "eval" and data.get("name") == "val_bpb":
            self._take_eval(data)
        elif ev == "memory":
            self._peak = max(self._peak or 0, data["peak_bytes"])
        elif ev == "error":
            self.error = data
        if self._report and ev in ("step", "eval"):
            self._report(ev, {**data, "progress": self._progress})

    def _take_eval(self, data: Mapping[str, Any]) -> None:
        step = data.get("step") or 0
        horizon = self._trial.recipe["pretrain"]["num_steps"]
        progress = step / horizon if horizon else (self._progress if step else 0.0)
        tokens, flops = self._steps[-1][1:3] if self._steps and step else (0, 0.0)
        self._evals.append([progress, step, tokens, flops, self._train_s, data["value"]])
        for milestone, limit in self._trial.limits:
            if milestone <= progress < 1.0 and data["value"] > limit:
                self.broken = (
                    f"val_bpb {data['value']:.4f} at {progress:.0%} is above the stop rule's "
                    f"{limit:.4f}"
                )

    def read_core(self, path: Path) -> None:
        if not path.is_file():
            return
        tasks = json.loads(path.read_text())["tasks"]
        self._core = {task["label"]: task["centered"] for task in tasks}

    def outcome(self, code: int) -> Outcome:
        every = max(1, len(self._steps) // self.POINTS)
        final = self._evals[-1][5] if self._evals else None
        status, reason = COMPLETE, None
        if self.broken:
            status, reason = STOPPED, self.broken
        elif self.error and self.error.get("kind") == "nan_loss":
            status, reason = DIVERGED, str(self.error.get("message"))
        elif code:
            told = self.error or {"message": f"exit code {code} without a word"}
            status, reason = FAILED, str(told.get("message"))
        elif final is None or not math.isfinite(final):
            status, reason = DIVERGED, "no finite val_bpb"
        speed = self._steps[-1][1] / self._train_s if self._train_s else None
        return Outcome(
            status=status,
            reason=reason,
            val_bpb=final if status == COMPLETE else None,
            evals=self._evals,
            curve=[_rounded(row) for row in self._steps[::every]],
            train_s=self._train_s,
            tokens_per_s=speed,
            peak_bytes=self._peak,
            core=self._core,
        )


def _rounded(row: list[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in row]


def _shared_tokenizer(trial: Trial, stop: Event | None) -> str:
    """Runs the tokenizer stage once for all trials that share it; returns its run id."""
    wanted = {key: trial.recipe[key] for key in ("data", "tokenizer")}
    text = json.dumps([wanted, trial.data], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(trial.shared) / name
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if not (folder / "done").is_file():
            watch = _Watch(trial, None)
            code = _stage(trial, "tokenizer", name, watch, stop)
            if code:
                told = (watch.error or {}).get("message", f"exit code {code}")
                raise TrainerError("bad_input", f"the tokenizer stage failed: {told}")
            write_whole(folder / "done", b"")
    return name


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stage(trial: Trial, stage: str, tokenizer: str, watch: _Watch, stop: Event | None) -> int:
    """Runs one stage's process; its exit code, or 3 where it was asked to stop."""
    folder, shared = Path(trial.folder), Path(trial.shared) / tokenizer
    outputs = {
        "tokenizer": shared / "tokenizer",
        "pretrain": folder / "checkpoints" / "pretrain",
        "core": folder / "eval",
    }
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    hours = trial.recipe["pretrain"]["hours"]
    limit_s = 2 * 3600 * hours + 600 if hours else STAGE_LIMIT_S
    request = {
        "contract": CONTRACT,
        "stage": stage,
        # The token cache goes by this name: the tokenizer's trials share it.
        "run_id": tokenizer,
        "seed": trial.seed,
        "attempt": 0,
        "device": trial.device,
        "threads": trial.threads,
        "recipe": trial.recipe,
        "paths": {
            "run": str(folder),
            "out": str(outputs[stage]),
            "cache": str(shared / "cache"),
            "tokenizer": str(outputs["tokenizer"]),
            "base": str(outputs["pretrain"]),
            "chat": None,
            "recipe_dir": trial.recipe_dir,
            "data": trial.data,
            "core": trial.core,
            "sft": trial.sft,
            "chat_eval": None,
        },
        "clock": {
            "start_ns": now,
            "stage_start_ns": now,
            "deadline_ns": now + int(limit_s * 1e9),
            "budget_s": limit_s,
        },
    }
    path = folder / f"request-{stage}.json"
    write_whole(path, json.dumps(request).encode())
    command = trial.recipe["trainer"]["command"]
    if stage == "core":
        command = ["python", "-m", "kit.core_eval"]
    if command[0] == "python":
        command = [sys.executable, *command[1:]]
    command = [part.replace("{recipe_dir}", trial.recipe_dir) for part in command]
    return _listen([*command, str(path)], trial, folder / f"{stage}.txt", watch, stop)


def _die_with_parent() -> None:
    """In the child: a killed worker leaves no training behind that holds the GPU."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(
    command: list[str], trial: Trial, output: Path, watch: _Watch, stop: Event | None
) -> int:
    reader, writer = os.pipe()
    threads = str(trial.threads)
    environment = {
        **os.environ,
        FD_VARIABLE: str(writer),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "GOMP_SPINCOUNT": "10000",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if trial.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(trial.gpu)
    try:
        with output.open("wb") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=(writer,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
    finally:
        os.close(writer)
    asked_at: float | None = None
    rest = b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        open_pipe = True
        while open_pipe or process.poll() is None:
            if open_pipe and select.select([pipe], [], [], POLL_S)[0]:
                chunk = pipe.read(65536)
                open_pipe = bool(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    watch.take(line)
            elif not open_pipe:
                time.sleep(POLL_S / 10)
            if asked_at is None and (watch.broken or (stop and stop.is_set())):
                asked_at = time.monotonic()
                process.send_signal(signal.SIGTERM)
            if asked_at is not None and time.monotonic() - asked_at > GRACE_S:
                process.kill()
    return process.wait()

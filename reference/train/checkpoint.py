"""Checkpoints: the model others load, and the private state a killed run goes on from.

The model is a folder of safetensors, config.json and the tokenizer. `model.safetensors` is renamed
into place last, so where it exists the folder is whole.

The state is `state/step-N.pt` beside it: written under another name, forced to disk, then renamed;
the one before is removed only after that. A digest beside it tells a damaged file from a whole one,
and the older one is then used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from reference.errors import TrainerError
from reference.model.gpt import GPT, ModelConfig
from reference.request import Request

MODEL_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
STATE_FOLDER = "state"
FORMAT = 1
_KEPT_STATES = 2


def save_model(folder: Path, model: GPT, config: ModelConfig, tokenizer: Path) -> None:
    """Writes the model with its config and a copy of the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(tokenizer.iterdir()):
        if source.is_file():
            rename_whole(
                folder / source.name, lambda path, source=source: shutil.copyfile(source, path)
            )
    document = {"loader": "reference", "format": FORMAT, **config.to_json()}
    text = json.dumps(document, indent=2) + "\n"
    rename_whole(folder / CONFIG_NAME, lambda path: path.write_text(text))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    rename_whole(folder / MODEL_NAME, lambda path: save_file(tensors, path))


def weights_digest(model: GPT) -> str:
    """Digest of all tensors with their names, types and shapes, in the order of the state dict."""
    sha256 = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous()
        sha256.update(values.view(-1).view(torch.uint8).numpy().data)
    return "sha256:" + sha256.hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a whole model."""
    return (folder / MODEL_NAME).is_file()


def load_model(
    folder: Path, device: torch.device | str = "cpu", dtype: str = "auto"
) -> tuple[GPT, ModelConfig]:
    """The model in `folder`, on `device`, in evaluation mode.

    Args:
        dtype: Of the activations: "auto", "float32" or "bfloat16".

    Raises:
        TrainerError: No whole model, or its tensors do not fit its config.
    """
    try:
        config = ModelConfig.from_json(json.loads((folder / CONFIG_NAME).read_text()))
        tensors = load_file(folder / MODEL_NAME)
    except FileNotFoundError as error:
        raise TrainerError(
            "bad_input",
            f"{folder} holds no whole model: {Path(error.filename or MODEL_NAME).name} is missing",
            "Name a folder that a finished stage has written.",
        ) from error
    except Exception as error:
        raise TrainerError("bad_input", f"{folder}: the model cannot be read: {error}") from error
    model = GPT.empty(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise TrainerError(
            "bad_input", f"{folder}: the tensors do not fit config.json: {error}"
        ) from error
    return model.place(device, dtype).eval(), config


def save_state(folder: Path, step: int, state: dict[str, Any]) -> int:
    """Stores what it takes to go on at `step`; returns its size in bytes."""
    states = folder / STATE_FOLDER
    states.mkdir(parents=True, exist_ok=True)
    path = states / f"step-{step:08}.pt"

    def write(temporary: Path) -> None:
        # Through a Python file: PyTorch's own writer does not say why a write failed.
        with temporary.open("wb") as file:
            torch.save({"step": step, **state}, file)

    rename_whole(path, write)
    digest = _digest(path)
    rename_whole(path.with_suffix(".sha256"), lambda temporary: temporary.write_text(digest))
    for old in _states(folder)[_KEPT_STATES:]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path.stat().st_size


class BackgroundSaver:
    """Writes states in a thread: training waits for the copy out of its tensors, not for the disk.

    A state is as crash-safe as one of `save_state`, which does the writing. One at a time: a second
    request waits for the first. An error of the thread is raised by the next call.

    Args:
        background: False: write at once.
    """

    def __init__(self, folder: Path, *, background: bool = True) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1, "checkpoints") if background else None
        self._writing: Future[Saved] | None = None

    def save(self, step: int, state: dict[str, Any]) -> list[Saved]:
        """Stores `state` as it is now; returns what has been finished since the last call."""
        finished = self.wait()
        if self._pool is None:
            return [self._write(step, state, 0.0)]
        began = perf_counter()
        copy = _copied(state)
        self._writing = self._pool.submit(self._write, step, copy, perf_counter() - began)
        return finished

    def finished(self) -> list[Saved]:
        """States written since the last call, without waiting."""
        return self.wait() if self._writing is not None and self._writing.done() else []

    def wait(self) -> list[Saved]:
        """Waits for what is being written."""
        writing, self._writing = self._writing, None
        return [] if writing is None else [writing.result()]

    def close(self) -> None:
        """Ends the thread; what is being written is finished first."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _write(self, step: int, state: dict[str, Any], copied_s: float) -> Saved:
        began = perf_counter()
        size = save_state(self._folder, step, state)
        elapsed_s = copied_s + perf_counter() - began
        return Saved(step, size, elapsed_s, copied_s if self._pool else elapsed_s)


class Saved(NamedTuple):
    """A written state: its size, how long it took, and how long training stood still for it."""

    step: int
    bytes: int
    elapsed_s: float
    stalled_s: float


def _copied(value: Any) -> Any:
    """`value` with every tensor copied to the CPU's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value


def load_latest_state(
    folder: Path, resume_step: int | None = None
) -> tuple[int, dict[str, Any]] | None:
    """The newest state that is whole, or None when there is none to go on from.

    Args:
        resume_step: Of the request: a state behind it is passed over, for steps before that state
            were never reported. If it is the stage's first, the stage begins anew; but if each of
            several lies behind it, the newest is taken: missing reports are no lost work.

    Raises:
        TrainerError: There are states, and all of them are damaged.
    """
    paths = [path for path in _states(folder) if path.with_suffix(".sha256").is_file()]
    reported = [path for path in paths if resume_step is None or _step(path) <= resume_step]
    if len(paths) == 1 and not reported:
        return None
    for path in [*reported, *(path for path in paths if path not in reported)]:
        if path.with_suffix(".sha256").read_text() == _digest(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
            return state["step"], state
    if paths:
        raise TrainerError(
            "bad_input",
            f"{paths[0]} is damaged, and so is every older state",
            "Check the disk; remove the folder to begin this stage again.",
        )
    return None


def latest_state(request: Request) -> dict[str, Any]:
    """The checkpoint to resume from, or the state before the first step; later ones are removed."""
    out = request.path("out")
    latest = load_latest_state(out, request.resume_step) if request.attempt else None
    step, state = latest or (0, {"loader": None, "tokens": 0})
    drop_states_after(out, step)
    return {"parts": 1, **state, "step": step}


def drop_states_after(folder: Path, step: int) -> None:
    """Removes the states that a stage which goes on at `step` will write once more."""
    for path in _states(folder):
        if _step(path) > step:
            path.with_suffix(".sha256").unlink(missing_ok=True)
            path.unlink()


def clear_states(folder: Path) -> None:
    """Removes what only an unfinished stage needs."""
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((folder / STATE_FOLDER).glob(f"step-{'[0-9]' * 8}.pt"), reverse=True)


def _step(state: Path) -> int:
    return int(state.stem.removeprefix("step-"))


def rename_whole(path: Path, write: Any) -> None:
    """Has `write` fill a temporary file, forces it to disk, and gives it its name."""
    temporary = path.with_name(f"{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from reference.errors import TrainerError
from reference.model import GPT, ModelConfig

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
    model = GPT(config)
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
    rename_whole(path, lambda temporary: torch.save({"step": step, **state}, temporary))
    digest = _digest(path)
    rename_whole(path.with_suffix(".sha256"), lambda temporary: temporary.write_text(digest))
    for old in sorted(states.glob("step-*.pt"))[:-_KEPT_STATES]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path.stat().st_size


def load_latest_state(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest state that is whole, or None when there is none to go on from.

    Raises:
        TrainerError: There are states, and all of them are damaged.
    """
    paths = sorted((folder / STATE_FOLDER).glob("step-*.pt"), reverse=True)
    for path in paths:
        digest = path.with_suffix(".sha256")
        if digest.is_file() and digest.read_text() == _digest(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
            return state["step"], state
    finished = [path for path in paths if path.with_suffix(".sha256").is_file()]
    if finished:
        raise TrainerError(
            "bad_input",
            f"{finished[0]} is damaged, and so is every older state",
            "Check the disk; remove the folder to begin this stage again.",
        )
    return None


def clear_states(folder: Path) -> None:
    """Removes what only an unfinished stage needs."""
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)


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

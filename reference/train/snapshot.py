"""Snapshots: whole training states that stay with a run, so that others can do steps of it again.

Unlike the private state that a run resumes from, a snapshot is meant for strangers: one safetensors
file, nothing in it can run. Tensors lie under their path in the state; everything else (step
counts, settings, the loader's position) is JSON in the header, with the tensors' places in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reference.errors import TrainerError
from reference.train.checkpoint import rename_whole

FOLDER = "snapshots"


def save_snapshot(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Stores `state` before step `step` under `folder`/snapshots."""
    path = snapshot_path(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    tree = _take_out(state, "", tensors)
    metadata = {"step": str(step), "tree": json.dumps(tree)}
    rename_whole(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_snapshot(path: Path) -> tuple[int, dict[str, Any]]:
    """The step that comes next, and the state before it.

    Raises:
        TrainerError: No snapshot, or not a whole one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return int(metadata["step"]), _put_back(json.loads(metadata["tree"]), tensors)
    except Exception as error:
        raise TrainerError(
            "bad_input", f"{path.name} is not a snapshot: {error}", "Fetch the run's files again."
        ) from error


def snapshot_path(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step-{step:08}.safetensors"


def _take_out(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with its tensors moved into `tensors`; pairs keep what keys of dicts are."""
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[key, _take_out(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"pairs": pairs}
    if isinstance(value, list | tuple):
        return {"list": [_take_out(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    return value


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "list" in value:
        return [_put_back(item, tensors) for item in value["list"]]
    return {key: _put_back(item, tensors) for key, item in value["pairs"]}

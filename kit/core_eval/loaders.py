"""Finds and calls the loader of a model: by entry point, from a recipe's folder, or Hugging Face's.

A checkpoint's `config.json` may name an installed loader, never a file: a checkpoint is data. Only
a recipe, which the caller chose to run, may name code beside itself (`file.py:function`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kit.core_eval.model import EvalModel
from kit.core_eval.model_files import INDEX, SINGLE, check_finite, refuse_stand_in
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.recipe_code import from_recipe

GROUP = "n4090_kit.models"
_MAX_CONFIG_BYTES = 4 * 2**20

Loader = Callable[..., EvalModel]


def load_model(
    path: Path,
    *,
    loader: str | None = None,
    recipe_dir: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> EvalModel:
    """The model at `path`, ready to evaluate.

    Args:
        path: A checkpoint folder, a Hugging Face folder, or a GGUF file.
        loader: An entry point of `n4090_kit.models`, or `file.py:function` in `recipe_dir`.
            Needed when `config.json` names none.
        device: "cpu", "cuda", "mps", or "auto" for the CUDA device if there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": fp32 on a CPU, bf16 on a GPU.
        trust_remote_code: Let a Hugging Face folder bring its own code.
    """
    if not path.exists():
        link = f": a link to {path.readlink()}, which does not exist" if path.is_symlink() else ""
        raise PrerequisiteError(f"there is no model at {path}{link}")
    device = resolve_device(device)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise SchemaError(
                f"{path.name} is neither a checkpoint folder nor a GGUF file",
                hint="Name the folder that holds config.json.",
            )
        return _huggingface(path, device, dtype, trust_remote_code=False)
    config = read_config(path)
    if (path / SINGLE).exists() or (path / INDEX).exists():
        check_finite(path)
    if loader is not None and ":" in loader:
        return _call(from_recipe(loader, recipe_dir), loader, path, device, dtype)
    name = config.get("loader") or loader
    if name is None and ("model_type" in config or "architectures" in config):
        return _huggingface(path, device, dtype, trust_remote_code)
    if not isinstance(name, str):
        raise SchemaError(
            f"{path.name}/config.json names no loader",
            hint=f"Name one with --loader; installed: {', '.join(_installed()) or 'none'}.",
        )
    found = _installed().get(name)
    if found is None:
        raise PrerequisiteError(
            f"the model needs the loader {name!r}, which is not installed",
            hint=f"Installed: {', '.join(_installed()) or 'none'} (entry points {GROUP}).",
        )
    return _call(found.load(), name, path, device, dtype)


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`."""
    path = folder / "config.json"
    try:
        if path.exists():
            refuse_stand_in(path)
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise SchemaError(f"{folder.name}/config.json is larger than {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise PrerequisiteError(
            f"{folder} holds no config.json",
            hint="Name a checkpoint folder, a Hugging Face model folder or a GGUF file.",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise SchemaError(f"{folder.name}/config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise SchemaError(f"{folder.name}/config.json is no JSON object")
    return config


def resolve_device(device: str) -> str:
    """ "auto" as the CUDA device if there is one, else the CPU.

    Raises:
        PrerequisiteError: The device that is asked for is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] == "cuda" and not torch.cuda.is_available():
        raise PrerequisiteError(
            "device cuda was asked for, and PyTorch sees no GPU",
            hint="Check `nvidia-smi`, or use --device cpu.",
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise PrerequisiteError(
            "device mps was asked for, and PyTorch sees no Apple GPU",
            hint="It takes a Mac with an Apple processor; or use --device cpu.",
        )
    return device


def _installed() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _call(loader: Loader, name: str, path: Path, device: str, dtype: str) -> EvalModel:
    """Loads, and turns what a loader explains about itself into the kit's error."""
    try:
        model = loader(path, device=device, dtype=dtype)
    except KitError:
        raise
    except Exception as error:
        message = getattr(error, "message", None)
        if not isinstance(message, str):
            raise
        raise SchemaError(message, hint=getattr(error, "hint", None) or None) from error
    if not isinstance(model, EvalModel):
        missing = [m for m in ("vocab_size", "bos_id", "encode", "logits") if not hasattr(model, m)]
        raise SchemaError(f"loader {name!r} gave a model without {', '.join(missing)}")
    return model


def _huggingface(path: Path, device: str, dtype: str, trust_remote_code: bool) -> EvalModel:
    from kit.core_eval import hf

    return hf.load(path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

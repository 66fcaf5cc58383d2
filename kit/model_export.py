"""A run's model in the forms of other programs; the trainer that made it knows how.

A checkpoint's `config.json` names its loader. The exporter of the same name, an entry point of
`n4090_kit.exporters`, writes the files::

    export(checkpoint, out, form, *, name, chat, dtype) -> names of the files in `out`
"""

from __future__ import annotations

import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from kit.core_eval.loaders import read_config
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.run.finished import refuse_unfinished

GROUP = "n4090_kit.exporters"
FORMS = ("hf", "gguf")
# Part of a run -> the folder of its checkpoint, the chat model first.
PARTS = {"chat": "checkpoints/sft", "base": "checkpoints/pretrain"}


class Source(NamedTuple):
    """A checkpoint folder, and whether it was finetuned on conversations."""

    folder: Path
    chat: bool


def find_source(run: Path, part: str = "auto") -> Source:
    """The checkpoint that `run` means: of a run folder the chat model if there is one.

    Args:
        run: A run folder or a checkpoint folder.
        part: "chat", "base", or "auto".

    Raises:
        PrerequisiteError: There is no such checkpoint, or the run has not ended and `part` leaves
            open which of its models is meant.
    """
    if part == "auto":
        refuse_unfinished(run)
    if (run / "config.json").is_file():
        return Source(run, run.name != "pretrain" if part == "auto" else part == "chat")
    for name, place in PARTS.items():
        if part in ("auto", name) and (run / place / "config.json").is_file():
            return Source(run / place, name == "chat")
    where = "checkpoints/sft or checkpoints/pretrain" if part == "auto" else PARTS[part]
    if run.is_dir():
        problem = f"{run} has no {where}"
    else:
        problem = f"{run} is a file, not a folder" if run.exists() else f"there is no folder {run}"
    raise PrerequisiteError(
        problem,
        hint="Name a folder such as runs/RUN or runs/RUN/checkpoints/sft.",
    )


def export_model(
    source: Source, out: Path, form: str, *, name: str, dtype: str = "auto"
) -> list[str]:
    """Writes the model into the folder `out`, which appears whole or not at all.

    Args:
        form: One of `FORMS`.
        name: The model's name, for the files that carry one.
        dtype: Of the stored weights: "float32", "bfloat16", or "auto" for the trainer's choice.

    Returns:
        Names of the files in `out`.

    Raises:
        KitError: The trainer has no exporter, `out` is in use, or the form cannot hold this model.
    """
    export = _exporter(source.folder)
    if out.is_dir() and any(out.iterdir()):
        raise PrerequisiteError(
            f"{out} is not empty", hint="Name another folder with --out, or remove this one."
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        files = export(source.folder, partial, form, name=name, chat=source.chat, dtype=dtype)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            f"package {error.name} is missing", hint='in the checkout: pip install ".[train,eval]"'
        ) from error
    except (KitError, OSError):
        raise
    except Exception as error:
        message = getattr(error, "message", None)
        if not isinstance(message, str):
            raise
        raise SchemaError(message, hint=getattr(error, "hint", None) or None) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(files)


def _exporter(checkpoint: Path) -> Any:
    config = read_config(checkpoint)
    loader = config.get("loader")
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not isinstance(loader, str) or loader not in installed:
        if "model_type" in config:
            raise SchemaError(
                f"{checkpoint.name} is a model of transformers already",
                hint="Name a run folder, or a checkpoint that a run has written.",
            )
        raise PrerequisiteError(
            f"no exporter is installed for the trainer {loader!r}",
            hint=f"Installed: {', '.join(sorted(installed)) or 'none'} (entry points {GROUP}).",
        )
    try:
        return installed[loader].load()
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            f"package {error.name} is missing", hint='in the checkout: pip install ".[train,eval]"'
        ) from error


def usage(place: str, *, chat: bool, remote_code: bool) -> str:
    """The Python lines that run the exported model with transformers.

    Args:
        place: A Python expression: the folder's path.
        remote_code: Whether the folder brings modelling code of its own.
    """
    options = ", trust_remote_code=True" if remote_code else ""
    asked = '[{"role": "user", "content": "Hello!"}]' if chat else '"Once upon a time"'
    answer = '["generated_text"][-1]["content"]' if chat else '["generated_text"]'
    return (
        "from transformers import pipeline\n"
        f'model = pipeline("text-generation", {place}{options})\n'
        f"print(model({asked})[0]{answer})\n"
    )

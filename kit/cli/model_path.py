"""MODEL on the command line: a folder, a file, a run, or a model of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BASE = Path("checkpoints") / "pretrain"


if TYPE_CHECKING:
    _Path = click.ParamType[Path]
else:  # generic only in newer versions of click
    _Path = click.ParamType


class ModelPath(_Path):
    """A model's local path.

    A run folder (or a model repository of this kit) stands for its base model, `hf:ORG/NAME` for
    what the Hub's own cache holds of it. Nothing is downloaded.
    """

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = str(value)
        if text.startswith("hf:"):
            return self._cached(text.removeprefix("hf:"), param, ctx)
        path = Path(text)
        if not path.exists() and not path.is_symlink():
            hint = f"; a model of the Hub is hf:{text}" if _HUB.fullmatch(text) else ""
            self.fail(f"{text} does not exist{hint}", param, ctx)
        if (path / _BASE / "config.json").is_file():
            return path / _BASE
        if (path / "recipe.toml").is_file() and not (path / "config.json").is_file():
            self.fail(f"run {text} has no base model: its pretraining did not finish", param, ctx)
        return path

    def _cached(self, name: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from kit.errors import PrerequisiteError

        if not _HUB.fullmatch(name):
            self.fail(f"hf:{name} is not hf:ORG/NAME", param, ctx)
        try:
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import LocalEntryNotFoundError
        except ImportError as error:
            raise PrerequisiteError(
                "hf: needs the package huggingface-hub",
                hint="in the checkout: pip install '.[eval]'",
            ) from error
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except LocalEntryNotFoundError as error:
            local = name.split("/")[1]
            raise PrerequisiteError(
                f"{name} is not on this machine",
                hint=f"Download it: `hf download {name} --local-dir {local}`; then name {local}.",
            ) from error

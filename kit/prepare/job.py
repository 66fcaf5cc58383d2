"""What a call of `prepare` is about: for which recipe, where, how, and who is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kit.prepare import core_files
from kit.prepare.dataset_lock import PARTS
from kit.prepare.inputs import prepared_folder
from kit.prepare.transfer import Progress, Retry
from kit.recipe import Recipe


class Watcher(Progress, Protocol):
    """Who is told what `prepare` does."""

    def begin(self, total_bytes: int, what: str) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Need:
    """What it takes, said before anything is fetched."""

    source: str
    files: int
    total_bytes: int
    here_bytes: int  # of them, from an earlier attempt
    disk_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Settings:
    """What a caller or a test may choose.

    Attributes:
        mirror: A folder, or the base address of a server that speaks like the Hub.
        agree: Asked before the first byte; False ends it.
        parts: What to bring: pretrain, sft, chat_eval, core.
    """

    mirror: str | Path | None = None
    shards: int | None = None
    parts: Sequence[str] = (*PARTS, "core")
    agree: Callable[[Need], bool] = lambda need: True
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    retry: Retry = field(default_factory=Retry)
    core_url: str = core_files.ARCHIVE_URL


@dataclass(frozen=True)
class Job:
    """One call of `prepare`: what for, where, how."""

    recipe: Recipe
    work: Path
    watcher: Watcher
    settings: Settings

    @property
    def folder(self) -> Path:
        return prepared_folder(self.work, self.recipe)

    @property
    def data(self) -> dict[str, Any]:
        return self.recipe.section("data")

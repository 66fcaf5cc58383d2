"""Where numbers go: a CSV file, TensorBoard, Trackio or Weights & Biases."""

from __future__ import annotations

import csv
import importlib
import os
from pathlib import Path
from typing import Any, Protocol

from kit.errors import PrerequisiteError
from kit.track.scalars import Scalars

KINDS = ("trackio", "tensorboard", "wandb", "csv")
_PROJECT = "n4090-kit"


class Sink(Protocol):
    """Takes the numbers of a run; `close` makes them whole on the disk."""

    place: str  # what to open, for people

    def put(self, scalars: Scalars) -> None: ...
    def close(self) -> None: ...


def open_sink(kind: str, run: Path, out: Path, config: dict[str, Any]) -> Sink:
    """A sink of this kind for the run in folder `run`.

    Args:
        out: Folder for files; Trackio keeps its own place (TRACKIO_DIR).

    Raises:
        PrerequisiteError: The tracker's package is missing.
    """
    if kind == "csv":
        return CsvSink(out / f"{run.name}.csv")
    if kind == "tensorboard":
        return TensorBoardSink(out / "tensorboard" / run.name)
    return WandbLikeSink(kind, run.name, out, config)


class CsvSink:
    """One line a number: step, seconds since the first line, name, value."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.place = str(path)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["step", "seconds", "name", "value"])
        self._begun_s: float | None = None

    def put(self, scalars: Scalars) -> None:
        if self._begun_s is None:
            self._begun_s = scalars.wall_s
        seconds = round(scalars.wall_s - self._begun_s, 3)
        for name, value in scalars.values.items():
            self._rows.writerow([scalars.step, seconds, name, repr(value)])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """TensorBoard's event files, by TensorBoard's own writer: no torch is needed."""

    def __init__(self, folder: Path) -> None:
        _load("tensorboard")
        writing = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        self._writer = writing.EventFileWriter(str(folder))
        self.place = f"tensorboard --logdir {folder.parent}"

    def put(self, scalars: Scalars) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in scalars.values.items()
        ]
        summary = self._summary(value=values)
        self._writer.add_event(
            self._event(wall_time=scalars.wall_s, step=scalars.step, summary=summary)
        )

    def close(self) -> None:
        self._writer.close()


class WandbLikeSink:
    """Weights & Biases (offline), and Trackio, which has its interface."""

    def __init__(self, kind: str, name: str, out: Path, config: dict[str, Any]) -> None:
        self._module = _load(kind)
        options: dict[str, Any] = {"project": _PROJECT, "name": name, "config": config}
        if kind == "wandb":
            out.mkdir(parents=True, exist_ok=True)
            mode = os.environ.get("WANDB_MODE", "offline")  # a run has no network
            options |= {"dir": str(out), "mode": mode}
            self.place = f"wandb sync {out / 'wandb'}/offline-run-*"
        else:
            self.place = f"trackio show --project {_PROJECT}"
        self._run = self._module.init(**options)

    def put(self, scalars: Scalars) -> None:
        self._run.log(scalars.values, step=scalars.step)

    def close(self) -> None:
        self._run.finish()


def _load(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            f"package {package} is missing",
            hint=f"pip install {package}; `--to csv` needs no package.",
        ) from error

"""Programs on the null device, and the log of what they ran."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nullgpu_build import variables
from nullgpu_environment import cache_folder

INSIDE = Path(__file__).parent / "inside"
LIMIT_S = 3000


@dataclass
class Log:
    """Events of the null device, a tuple of fields each; the first field is the kind."""

    events: list[tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> Log:
        with path.open() as lines:
            return cls([tuple(line.rstrip("\n").split("\t")) for line in lines])

    def of(self, kind: str) -> list[tuple[str, ...]]:
        return [event[1:] for event in self.events if event[0] == kind]

    def count(self, kind: str) -> Counter[str]:
        return Counter(event[0] if event else "" for event in self.of(kind))

    def between(self, begin: str, end: str) -> Log:
        """The events of the last stretch from `mark begin` to `mark end`."""
        marks = [i for i, event in enumerate(self.events) if event == ("mark", end)]
        starts = [i for i, event in enumerate(self.events) if event == ("mark", begin)]
        return Log(self.events[starts[-1] + 1 : marks[-1]])

    def stretches(self, begin: str, end: str) -> list[Log]:
        """The events of every stretch from `mark begin` to the next `mark end`."""
        found, start = [], None
        for i, event in enumerate(self.events):
            if event == ("mark", begin):
                start = i
            elif event == ("mark", end) and start is not None:
                found.append(Log(self.events[start + 1 : i]))
                start = None
        return found

    def by_case(self) -> dict[str, Log]:
        """The events from each `mark case NAME` to the next, by name."""
        found: dict[str, Log] = {}
        current = Log([])
        for event in self.events:
            if event[0] == "mark" and event[1].startswith("case"):
                current = found.setdefault(event[1].removeprefix("case").strip(), Log([]))
            else:
                current.events.append(event)
        return found


@dataclass
class NullDevice:
    """Runs programs in an environment that sees the null device."""

    python: Path
    folder: Path
    kit: Path  # the unpacked wheel: with its entry points, as installed

    def _variables(self, log: Path, card: str, settings: dict[str, str]) -> dict[str, str]:
        caches = cache_folder() / "compiled"
        return {
            **os.environ,
            **variables(self.folder),
            "PYTHONPATH": str(self.kit),
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "2",
            # Compiled kernels are found again by their content, by later runs of the tests too.
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "CUDA_NULL_CARD": card,
            "CUDA_NULL_LOG": str(log),
            **settings,
        }

    def start(self, *command: str | Path, log: Path, **settings: str) -> subprocess.Popen[str]:
        """Starts `python COMMAND…` on a null RTX 4090, its output in pipes."""
        return subprocess.Popen(
            [str(self.python), *map(str, command)],
            env=self._variables(log, "4090", settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=log.parent,
        )

    def run(
        self,
        *command: str | Path,
        log: Path,
        card: str = "4090",
        check: bool = True,
        **settings: str,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python COMMAND…`; if it fails, the test fails with its output."""
        done = subprocess.run(
            [str(self.python), *map(str, command)],
            env=self._variables(log, card, settings),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=log.parent,
        )
        if check and done.returncode:
            printed = f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
            pytest.fail(f"exit code {done.returncode}\n{printed}")
        return done

    def step(
        self, folder: Path, name: str, spec: dict[str, Any], **settings: str
    ) -> tuple[dict[str, Any], Log, Log]:
        """Steps of a recipe: what they report, the log of all, the log of the last step."""
        (folder / f"{name}.spec.json").write_text(json.dumps(spec))
        log, out = folder / f"{name}.log", folder / f"{name}.json"
        script = INSIDE / "step.py"
        self.run(script, folder / f"{name}.spec.json", out, log=log, **settings)
        whole = Log.read(log)
        return json.loads(out.read_text()), whole, whole.between("step", "end")

"""Small real inputs for whole runs, and the command line as a person types it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ASSETS = Path(__file__).parent.parent / "assets"
CORE_YAML = """icl_tasks:
-
  label: colours
  dataset_uri: world/colours.jsonl
  num_fewshot: [1]
  icl_task_type: multiple_choice
-
  label: rhymes
  dataset_uri: world/rhymes.jsonl
  num_fewshot: [0]
  icl_task_type: language_modeling
"""
CORE_BASELINES = """Eval Task,Task Category,Task Type,#shots,#datapoints,Random baseline
colours,world,multiple choice,1,20,50
rhymes,world,language modeling,0,20,0
"""


@dataclass(frozen=True)
class Bigram:
    """A work folder with everything recipe `bigram` reads."""

    work: Path
    recipe: Path

    @property
    def run_folder(self) -> Path:
        [run] = sorted((self.work / "runs").iterdir())
        return run


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def n4090() -> Command:
    def run(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs `n4090-kit ARGUMENTS`; fails unless it exits with `check`."""
        done = subprocess.run(command(*arguments), capture_output=True, text=True)
        assert done.returncode == check, f"{done.stdout}\n{done.stderr}"
        return done

    return run


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "kit.cli.main", *map(str, arguments)]


@pytest.fixture
def bigram(tmp_path: Path) -> Callable[..., Bigram]:
    def make(*, core: bool = False, **changes: str) -> Bigram:
        """Copies trainer and recipe, with lines of the recipe replaced.

        Without `core` that stage, which takes most of the seconds, is left out.
        """
        if not core:
            changes["stages"] = '["tokenizer", "pretrain", "sft", "chat_eval"]'
        folder = tmp_path / "recipe"
        folder.mkdir()
        text = (ASSETS / "bigram.toml").read_text()
        for key, value in changes.items():
            text = "\n".join(
                f"{key} = {value}" if line.startswith(f"{key} =") else line
                for line in text.splitlines()
            )
        (folder / "bigram.toml").write_text(text)
        trainer = (ASSETS / "bigram_trainer.py").read_text()
        (folder / "bigram_trainer.py").write_text(trainer)
        data = tmp_path / "work" / "data" / "stories-4090-20000"
        (data / "pretrain").mkdir(parents=True)
        for shard in range(3):
            texts = [f"the sky is blue and the grass is green {shard} {i}" for i in range(30)]
            pq.write_table(pa.table({"text": texts}), data / "pretrain" / f"shard-{shard}.parquet")
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        _write_lines(data / "sft" / "talk.jsonl", [turns] * 5)
        _write_lines(data / "chat_eval" / "ask.jsonl", [{"question": "hi", "answer": "hello"}])
        (data / "core" / "eval_data" / "world").mkdir(parents=True)
        (data / "core" / "core.yaml").write_text(CORE_YAML)
        (data / "core" / "eval_meta_data.csv").write_text(CORE_BASELINES)
        colours = [
            {"query": f"the sky {i} is", "choices": ["blue", "xqzj"], "gold": 0} for i in range(20)
        ]
        rhymes = [{"context": f"grass {i} is", "continuation": "e"} for i in range(20)]
        _write_lines(data / "core" / "eval_data" / "world" / "colours.jsonl", colours)
        _write_lines(data / "core" / "eval_data" / "world" / "rhymes.jsonl", rhymes)
        return Bigram(tmp_path / "work", folder / "bigram.toml")

    return make


def _write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

"""Experiments build on core, never the other way round, and core works without them."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reference.config.experiment import experiments, load
from reference.config.pretrain import Pretrain
from reference.config.trainer import TRAINER, section_defaults
from reference.optim.rules import rules

ROOT = Path(__file__).parents[2]


def test_core_imports_nothing_of_an_experiment() -> None:
    for path in (ROOT / "reference").rglob("*.py"):
        if "experiments" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            module = getattr(node, "module", None) or ""
            for name in (module, *(names if isinstance(node, ast.Import) else ())):
                assert not name.startswith("reference.experiments"), path


def test_a_shipped_recipe_trains_without_the_experiments_folder(tmp_path: Path) -> None:
    copy = tmp_path / "reference"
    shutil.copytree(ROOT / "reference", copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(copy / "experiments")
    code = (
        "import torch\n"
        "from reference.config.model import ModelConfig\n"
        "from reference.config.trainer import TRAINER, section_defaults\n"
        "from reference.train.loop import TrainState\n"
        "from reference.bench.train import GivenRows\n"
        "fields = TRAINER.sections()['pretrain']['properties']\n"
        "assert 'growth_layers' not in fields and 'replay_share' not in fields\n"
        "config = ModelConfig(90, n_layer=2, n_embd=32, n_head=2, n_kv_head=2, seq_len=16)\n"
        "section = {**section_defaults('pretrain'), 'total_batch_size': 32,\n"
        "           'device_batch_size': 2, 'num_steps': 2}\n"
        "state = TrainState.of_recipe(config, section, device=torch.device('cpu'), seed=1,\n"
        "                             horizon_tokens=64)\n"
        "state.prepare(print, bos=0)\n"
        "state.rows = rows = GivenRows(2)\n"
        "tokens = torch.zeros((2, 16), dtype=torch.int64)\n"
        "for step in range(2):\n"
        "    rows.batches = iter([(tokens, tokens)])\n"
        "    print('loss', state.step(step / 2, step).loss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") == 2


def test_every_experiment_states_its_question_its_evidence_and_its_end() -> None:
    for folder in (ROOT / "reference/experiments").iterdir():
        if not (folder / "__init__.py").is_file():
            continue
        text = (folder / "README.md").read_text()
        for word in ("Question", "Evidence so far", "What ends it"):
            assert f"**{word}.**" in text, (folder.name, word)


@pytest.mark.parametrize("experiment", experiments(), ids=lambda experiment: experiment.name)
def test_an_experiment_is_off_by_default_and_all_that_it_names_exists(experiment) -> None:
    assert not experiment.asked(section_defaults("pretrain"))
    for place in (experiment.lever, experiment.row_buffer):
        assert not place or load(place)
    known = TRAINER.sections()["pretrain"]["properties"]["matrix_optimizer"]["enum"]
    assert set(experiment.rules()) <= set(known) & set(rules())
    assert not set(experiment.fields.__dataclass_fields__) & set(Pretrain.__dataclass_fields__)


def test_the_table_of_recipe_fields_is_the_one_that_is_made() -> None:
    from support.field_table import field_table

    page = ROOT / "reference/recipes/README.md"
    assert page.read_text() == field_table(), "run `make schemas`"

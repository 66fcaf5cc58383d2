"""From a folder of parquet files to a trained model with two commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("duckdb")
pytest.importorskip("datatrove")

RECIPE = """
schema_version = 1
name = "own"
title = "a corpus of one's own"
track = "smoke"
budget_s = 600
stages = ["tokenizer", "pretrain"]
device = "cpu"
threads = 1

[data]
kind = "folder"
anneal = 0.4
digest = "{digest}"

[tokenizer]
vocab_size = 400

[model]
n_layer = 1
n_embd = 64
n_head = 1
n_kv_head = 1
seq_len = 64

[pretrain]
num_steps = 5
device_batch_size = 2
total_batch_size = 128
eval_tokens = 1024
scale_lr = false
compile = "off"
"""
SPEC = """
[[source]]
name = "stories"
path = "in"
[anneal]
fraction = 0.3
[shards]
validation = 0.1
"""


def kit(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kit.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    sentence = "the be to of and that have with river stone music garden"
    words = np.array(sentence.split())
    rng = np.random.default_rng(0)
    texts = [
        "\n".join(" ".join(rng.choice(words, 12)) + f" {i} {line}." for line in range(8))
        for i in range(80)
    ]
    (root / "in").mkdir()
    pq.write_table(pa.table({"text": texts}), root / "in" / "a.parquet")
    (root / "spec.toml").write_text(SPEC)
    built = kit("data", "build", root / "spec.toml", "--out", root / "corpus", "--workers", 1)
    assert built.returncode == 0, built.stderr
    return root / "corpus"


def test_a_built_corpus_is_trained_on(corpus: Path, tmp_path: Path) -> None:
    digest = json.loads((corpus / "corpus.json").read_text())["digest"]
    recipe = tmp_path / "own.toml"
    recipe.write_text(RECIPE.format(digest=digest))
    done = kit("run", "--recipe", recipe, "--data", corpus, "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "work" / "runs").glob("*/result.json")
    inputs = next(
        json.loads(line)["data"]
        for line in (result.parent / "events.jsonl").read_text().splitlines()
        if json.loads(line)["ev"] == "inputs"
    )
    assert inputs["data"]["digest"] == digest


def test_another_corpus_than_the_recipes_is_refused(corpus: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(RECIPE.format(digest="sha256:" + "0" * 64))
    done = kit("run", "--recipe", recipe, "--data", corpus, "--work", tmp_path / "work")
    assert done.returncode != 0
    assert "is not the corpus of recipe `own`" in done.stderr

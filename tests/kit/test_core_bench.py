"""The benchmark judges like the oracle, weighs tasks by their size, and reports both."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from kit.core_eval.bench import TaskTiming, Timings
from kit.core_eval.bundle import load_items, open_bundle
from kit.core_eval.loaders import from_recipe
from kit.core_eval.one_by_one import answer_item

ASSETS = Path(__file__).parents[1] / "assets/core"
SCORE = Path(__file__).with_name("test_core_score.py")


def timing(n: int, items: int, ours: float, slow: float) -> TaskTiming:
    return TaskTiming("t", n, items, ours, slow, ours, slow)


def test_the_whole_bundle_weighs_tasks_by_their_items() -> None:
    # 100 items at 1 s against 3 s, and 10 at 1 s against 1 s: 310 s against 110 s.
    found = Timings((timing(100, 2, 2.0, 6.0), timing(10, 5, 5.0, 5.0)), (), 1, None, None)
    document = found.to_json()
    assert document["whole_bundle_ours_s"] == 110.0
    assert document["ratio"] == pytest.approx(310 / 110)


def load_oracle() -> Any:
    spec = importlib.util.spec_from_file_location("core_oracle", SCORE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_by_one_answers_like_the_oracle() -> None:
    oracle = load_oracle()
    if not oracle.CORE.is_dir():
        pytest.skip("no CORE bundle: set N4090_SHARED to the folder that holds core/")
    model = from_recipe("tiny_model.py:PlainModel", ASSETS)()
    bundle = open_bundle(oracle.CORE, tasks=["winogrande", "arc_easy", "bigbench_operators"])
    for limit in (None, 50):
        model.max_seq_len = limit
        for task in bundle.selected:
            rows = load_items(bundle, task)
            for index in (0, 3):
                expected = oracle.oracle_item(
                    model, task, oracle.oracle_items(bundle.root, task), index
                )
                found = answer_item(model, task, rows, index)
                assert found.scores == pytest.approx(expected[0], rel=1e-4, nan_ok=True)
                assert found.correct is expected[1]

"""`bench supervisor`: that it compares steps beside each other, and finds what was planted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tamper
from click.testing import CliRunner

from kit.cli.bench_supervisor import bench_supervisor
from kit.errors import KitError
from kit.recipe import load_recipe
from kit.run import bench
from kit.run.plan import RunPlan, plan_run
from kit.timing import boottime_ns
from kit.trust.keys import load_or_create_signer

ROUNDS = [
    bench.Round(100.0, 0.2, 0.001, [bench.Pair(1.02, 1.0), bench.Pair(1.00, 1.0)]),
    bench.Round(300.0, 1.0, None, [bench.Pair(1.04, 1.0)]),
]


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[RunPlan]:
    made: list[RunPlan] = []

    def measure(make_plan: Callable[[], RunPlan], signer: Any, **rest: Any) -> bench.Overhead:
        made.append(make_plan())
        return bench.Overhead(ROUNDS)

    monkeypatch.setattr(bench, "measure_overhead", measure)
    return made


def test_only_tokenizer_and_pretraining_are_run(plans: list[RunPlan]) -> None:
    assert CliRunner().invoke(bench_supervisor, []).exit_code == 0
    assert plans[0].recipe.stages == ("tokenizer", "pretrain")
    assert plans[0].recipe.document["stages"] == ["tokenizer", "pretrain"]


def test_rounds_are_taken_together(plans: list[RunPlan]) -> None:
    told = json.loads(CliRunner().invoke(bench_supervisor, ["--json"]).stdout)
    assert told["cpu_share"] == pytest.approx(1.2 / 400)
    assert told["pairs"] == 3
    assert told["step_ratio"] == pytest.approx((1.02 * 1.04) ** (1 / 3))
    low, high = told["step_ratio_95"]
    assert low < 1.0 < told["step_ratio"] < high < 1.05
    assert "telemetry 0.100% of that core" in CliRunner().invoke(bench_supervisor, []).stdout


def test_too_few_steps_are_no_figure() -> None:
    with pytest.raises(KitError, match="too few"):
        _ = bench.Overhead([bench.Round(1.0, 0.1, None, [bench.Pair(1.0, 1.0)])]).step_ratio


def recorded(slower: float, windows: int = 200) -> tuple[list[bench.Step], list[Any]]:
    """Steps of a machine that drifts by a third, a planted cost, and when the supervisor stood."""
    random = Random(4)
    stops = [(float(k), k + 1.0) for k in range(1, windows, 2)]
    steps, waiting, now = [], [], 0.0
    while now < windows:
        with_it = int(now) % 2 == 0
        dt = 0.09 * (1 + now / windows / 3) * random.uniform(0.95, 1.05)
        dt *= slower if with_it else 1.0
        now += dt
        if int(now) % 2:
            waiting.append(dt)
            continue
        # The supervisor stores what has waited at once when it goes on.
        steps += [bench.Step(int(now) + 0.001, waited) for waited in waiting]
        waiting = []
        steps.append(bench.Step(max(now, int(now) + 0.002), dt))
    return steps, stops


@pytest.mark.parametrize("slower", [1.0, 1.01, 1.05])
def test_a_planted_cost_is_found_on_a_drifting_machine(slower: float) -> None:
    steps, stops = recorded(slower)
    pairs = bench.compare(steps, stops)
    assert len(pairs) == 100
    ratio, low, high = bench.Overhead([bench.Round(1.0, 0.0, None, pairs)]).step_ratio
    assert low - 0.002 < slower < high + 0.002
    assert high - low < 0.02
    assert abs(ratio - slower) < 0.006


def test_a_step_across_two_windows_counts_in_neither() -> None:
    steps = [bench.Step(t, dt) for t, dt in [(0.4, 1), (0.8, 2), (2.001, 7), (2.001, 3), (2.4, 9)]]
    pairs = bench.compare([*steps, bench.Step(2.8, 4)], [(1.0, 2.0)])
    assert pairs == [bench.Pair(2, 3)]


def _count(path: Path) -> None:
    end = time.monotonic() + 3
    while time.monotonic() < end:
        with path.open("a") as file:
            file.write(f"{boottime_ns() / 1e9}\n")
        time.sleep(0.01)


def test_the_process_stands_still_where_it_is_said_to(tmp_path: Path) -> None:
    path = tmp_path / "moments"
    process = get_context("fork").Process(target=_count, args=(path,))
    process.start()
    stops = bench.switch(process, 0.3)
    assert process.exitcode == 0 and len(stops) > 2
    moments = [float(line) for line in path.read_text().split()]
    late = 0.01  # a signal takes its time
    inside = [m for m in moments for began, ended in stops if began + late < m < ended - late]
    assert not inside and len(moments) > 50


def test_a_supervisor_that_dies_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*given: Any, **options: Any) -> Path:
        os.kill(os.getpid(), signal.SIGKILL)
        return tmp_path

    monkeypatch.setattr(bench, "supervise", die)
    recipe = load_recipe("smoke")
    with pytest.raises(KitError, match="exit code -9"):
        bench.measure_overhead(
            lambda: plan_run(recipe, tmp_path / "work", {}, probe=False),
            load_or_create_signer(tmp_path / "keys"),
            rounds=1,
            window_s=0.5,
            say=print,
        )


def test_a_real_run_goes_on_while_its_supervisor_stands(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "data").mkdir()
    texts = pyarrow.table({"text": [f"the cat sat on mat {i}" for i in range(40)]})
    for i in range(3):
        parquet.write_table(texts, tmp_path / f"data/shard_{i}.parquet")
    shutil.copy(tamper.ASSETS / "bigram_trainer.py", tmp_path)
    (tmp_path / "bigram.toml").write_text(tamper.CPU_RECIPE.replace(', "sft", "chat_eval"', ""))
    recipe = load_recipe(str(tmp_path / "bigram.toml"))
    given = {"data": tmp_path / "data"}
    said: list[str] = []
    found = bench.measure_overhead(
        lambda: plan_run(recipe, tmp_path / "work", given, device="cpu", seed=1, probe=False),
        load_or_create_signer(tmp_path / "keys"),
        rounds=2,
        window_s=0.2,
        say=said.append,
    )
    assert len(said) == 2
    assert 0 < found.cpu_share < 1

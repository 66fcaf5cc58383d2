"""`bench supervisor`: sides take turns, their turns are what counts, and both do the same work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import tamper
from click.testing import CliRunner

from kit.cli.bench_supervisor import bench_supervisor
from kit.errors import KitError
from kit.run import bench
from kit.run.bench import Clocked, Overhead, Pair, Turn, seconds_within, take_turns
from kit.run.plan import RunPlan
from kit.timing import boottime_ns
from kit.trust.keys import load_or_create_signer

PAIRS = [Pair(102.0, 100.0, 0.1), Pair(300.0, 300.0, 1.0), Pair(104.0, 100.0, 0.2)]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunPlan, dict[str, Any]]]:
    made: list[tuple[RunPlan, dict[str, Any]]] = []

    def measure(make_plan: Callable[[], RunPlan], signer: Any, **rest: Any) -> Overhead:
        made.append((make_plan(), rest))
        return Overhead(PAIRS[: rest["pairs"]])

    monkeypatch.setattr(bench, "measure_overhead", measure)
    return made


def test_only_tokenizer_and_pretraining_are_run(called) -> None:
    result = CliRunner().invoke(bench_supervisor, ["--steps", "8", "--control"])
    assert result.exit_code == 0, result.output
    [(plan, options)] = called
    assert plan.recipe.stages == ("tokenizer", "pretrain")
    assert plan.recipe.document["stages"] == ["tokenizer", "pretrain"]
    assert plan.recipe.section("pretrain")["num_steps"] == 8
    assert options["control"] is True and options["pairs"] == 2
    assert "a bare run against a bare one" in result.output
    assert "of one core" not in result.output


def test_pairs_are_taken_together(called) -> None:
    line = ["--pairs", "3", "--burden", "20"]
    told = json.loads(CliRunner().invoke(bench_supervisor, ["--json", *line]).stdout)
    assert called[0][1]["burden_s"] == pytest.approx(0.02)
    assert told["cpu_share"] == pytest.approx(1.3 / 506)
    assert told["ratio"] == pytest.approx((1.02 * 1.04) ** (1 / 3))
    assert told["felt"] == pytest.approx(6 / 1.3)
    low, high = told["ratio_95"]
    assert low < 1.0 < told["ratio"] < high < 1.05
    assert len(told["pairs"]) == 3
    said = CliRunner().invoke(bench_supervisor, line).stdout
    assert "against a bare one: +1.99% (95 %:" in said
    assert "0.26% of one core" in said and "the runs took 4.62 s longer" in said
    assert "longer" not in CliRunner().invoke(bench_supervisor, ["--pairs", "3"]).stdout


def test_one_pair_has_no_interval(called) -> None:
    result = CliRunner().invoke(bench_supervisor, ["--pairs", "1"])
    assert "+2.00%; pairs: 1" in result.stdout and "95" not in result.stdout


def test_only_turns_on_the_clock_count() -> None:
    second = 10**9
    turns = [Turn(0, 2 * second), Turn(3 * second, 4 * second), Turn(5 * second, 7 * second)]
    assert seconds_within(turns, Clocked(second, 6 * second, 0.0)) == pytest.approx(3.0)
    assert seconds_within(turns, Clocked(8 * second, 9 * second, 0.0)) == 0


COUNT = """
import os, sys, time
for _ in range(60):
    os.write(1, b"%d\\n" % time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    time.sleep(0.01)
"""


def _count(path: Path) -> Clocked:
    """Notes moments in a grandchild that is a session of its own, as a supervised stage is."""
    began_ns = boottime_ns()
    with path.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", COUNT], stdout=file, start_new_session=True, check=True
        )
    return Clocked(began_ns, boottime_ns(), 0.0)


def test_sides_take_turns_and_what_they_started_with_them(tmp_path: Path) -> None:
    paths = tmp_path / "a", tmp_path / "b"
    ends = take_turns([partial(_count, path) for path in paths], 0.1)
    for path, (turns, clocked) in zip(paths, ends, strict=True):
        moments = [int(line) for line in path.read_text().split()]
        assert len(moments) == 60 and len(turns) > 2
        late_ns = 20_000_000  # a signal takes its time
        inside = [m for m in moments if any(t.began_ns <= m <= t.ended_ns + late_ns for t in turns)]
        assert len(inside) == 60
        assert seconds_within(turns, clocked) < (clocked.ended_ns - clocked.began_ns) / 1e9
    (first, _), (second, _) = ends
    for a, b in zip(first, second, strict=False):
        assert a.ended_ns <= b.began_ns


def _spin(rounds: int) -> Clocked:
    began_ns = boottime_ns()
    total = 0
    for number in range(rounds):
        total += number
    return Clocked(began_ns, boottime_ns(), 0.0)


def test_twice_the_work_is_twice_the_time() -> None:
    ends = take_turns([partial(_spin, 12_000_000), partial(_spin, 6_000_000)], 0.05)
    twice, once = (seconds_within(turns, clocked) for turns, clocked in ends)
    assert 1.4 < twice / once < 2.8


def _fail() -> Clocked:
    time.sleep(0.1)
    os._exit(3)


def _linger(path: Path) -> Clocked:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    path.write_text(str(child.pid))
    child.wait()
    raise AssertionError


def test_a_side_that_fails_ends_the_other_with_all_it_started(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pytest.raises(KitError, match="exit code 3"):
        take_turns([partial(_linger, path), _fail], 0.3)
    child = int(path.read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _measure(path: Path) -> None:
    take_turns([partial(_linger, path), partial(_linger, path.with_suffix(".b"))], 0.3)


def test_a_killed_bench_leaves_nothing_behind(tmp_path: Path) -> None:
    """Both sides' processes end with it, the one that stands still as well."""
    path = tmp_path / "pid"
    process = get_context("fork").Process(target=_measure, args=(path,))
    process.start()
    deadline = time.monotonic() + 10
    while not path.with_suffix(".b").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    sides = [found for found in started if found.name() != "sleep"]
    assert len(sides) == 2
    assert len(psutil.wait_procs(sides, timeout=10)[1]) == 0


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[[], RunPlan]:
    pytest.importorskip("pyarrow")
    return tamper.pretraining_plan(tmp_path)


def test_real_runs_are_timed_and_cleared_away(make_plan, tmp_path: Path) -> None:
    signer = load_or_create_signer(tmp_path / "keys")
    said: list[str] = []
    found = bench.measure_overhead(make_plan, signer, pairs=2, say=said.append)
    assert len(said) == 2
    assert all(0 < p.supervisor_cpu_s < p.supervised_s and p.bare_s > 0.1 for p in found.pairs)
    low, high = found.interval or (0.0, 0.0)
    assert 0 < low <= found.ratio <= high
    assert not list((tmp_path / "work" / "runs").iterdir())
    [burdened] = bench.measure_overhead(
        make_plan, signer, pairs=1, burden_s=0.05, say=said.append
    ).pairs
    assert burdened.supervisor_cpu_s > 2 * max(p.supervisor_cpu_s for p in found.pairs)
    [control] = bench.measure_overhead(
        make_plan, signer, pairs=1, control=True, say=said.append
    ).pairs
    assert control.supervised_s > 0.1


def test_other_work_is_no_comparison(make_plan, tmp_path: Path, monkeypatch) -> None:
    real = bench.run_bare

    def idle(plan: RunPlan) -> Clocked:
        clocked = real(plan)
        [weights] = (plan.run / "checkpoints" / "pretrain").glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        return clocked

    monkeypatch.setattr(bench, "run_bare", idle)
    signer = load_or_create_signer(tmp_path / "keys")
    with pytest.raises(KitError, match="different files in checkpoints/pretrain"):
        bench.measure_overhead(make_plan, signer, pairs=1, say=print)


def test_a_stage_that_fails_is_told_and_no_traceback(make_plan, tmp_path: Path, capfd) -> None:
    (tmp_path / "bigram_trainer.py").write_text("raise SystemExit('out of ideas')")
    signer = load_or_create_signer(tmp_path / "keys")
    for side in (
        partial(bench.run_bare, make_plan()),
        partial(bench.run_supervised, make_plan(), signer),
    ):
        with pytest.raises(KitError, match="out of ideas"):
            take_turns([side], 0.5)
    assert "Traceback" not in capfd.readouterr().err


def test_what_it_cannot_do_is_said_at_once(called) -> None:
    for options, said in (
        (["-r", "nano"], "`nano` needs data"),
        (["--control", "--burden", "1"], "--control has none"),
        (["--pairs", "0"], "--pairs"),
    ):
        result = CliRunner().invoke(bench_supervisor, options)
        assert result.exit_code == 2 and said in result.output
    assert not called

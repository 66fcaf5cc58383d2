"""`bench supervisor`: its supervisor stands still, the trainer is bare, and what differs shows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from kit.cli.bench_supervisor import bench_supervisor
from kit.cli.progress import QuietDisplay
from kit.errors import KitError
from kit.recipe import load_recipe
from kit.run import bench
from kit.run.bench import Couple, Overhead, Rest, Window, couples_of, step_times
from kit.run.plan import RunPlan, plan_run
from kit.trust.keys import Signer, load_or_create_signer

COUPLES = [Couple(0.102, 0.1, 5, 5), Couple(0.104, 0.1, 5, 5), Couple(0.3, 0.3, 2, 2)]
RESTS = [Rest(0.1, 50.0, 0.2), Rest(0.1, 150.0, 0.6)]

# Its steps take twice as long where its supervisor is not stopped.
PACED = """
import json, os, sys, time
from pathlib import Path

def emit(ev, **data):
    line = json.dumps({"ev": ev, "data": {**data, "at_us": time.monotonic_ns() // 1000}})
    os.write(int(os.environ["N4090_EVENTS_FD"]), line.encode() + b"\\n")

def alone():
    status = Path(f"/proc/{os.getppid()}/stat").read_text()
    return status.rpartition(")")[2].split()[0] == "T"

request = json.loads(Path(sys.argv[1]).read_text())
out = Path(request["paths"]["out"])
out.mkdir(parents=True, exist_ok=True)
(out / "weights").write_bytes(b"0")
if request["stage"] == "pretrain":
    for step in range(request["recipe"]["pretrain"]["num_steps"]):
        emit("step", step=step, tokens=step, loss=1.0)
        time.sleep(0.01 if alone() else 0.02)
"""
RECIPE = """
schema_version = 1
name = "paced"
track = "smoke"
budget_s = 120
stages = ["tokenizer", "pretrain"]
pretrain = {num_steps = 200}

[trainer]
command = ["python", "{recipe_dir}/paced.py"]
loader = "paced.py:load"
"""


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return load_or_create_signer(tmp_path / "keys")


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[[], RunPlan]:
    (tmp_path / "paced.py").write_text(PACED)
    (tmp_path / "paced.toml").write_text(RECIPE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"not read")
    recipe = load_recipe(str(tmp_path / "paced.toml"))
    given = {"data": tmp_path / "data"}
    return lambda: plan_run(recipe, tmp_path / "work", given, device="cpu", probe=False)


def measured(make_plan: Callable[[], RunPlan], signer: Signer, **options: Any) -> Overhead:
    said: list[str] = []
    given = {"runs": 1, "watch": QuietDisplay, "window_s": 0.1, "say": said.append, **options}
    found = bench.measure_overhead(make_plan, signer, **given)
    assert len(said) == given["runs"]
    return found


def test_what_the_supervisor_makes_longer_is_found(make_plan, signer, tmp_path: Path) -> None:
    found = measured(make_plan, signer, runs=2)
    assert len(found.rests) == 2 and len(found.couples) > 8
    assert 1.6 < found.ratio < 2.4
    low, high = found.interval or (0.0, 0.0)
    assert 1.0 < low < found.ratio < high
    assert all(0 < rest.between_s < rest.run_s and rest.cpu_s > 0 for rest in found.rests)
    assert not list((tmp_path / "work" / "runs").iterdir())


def test_the_supervisor_goes_on_where_a_step_begins(make_plan, signer, tmp_path: Path) -> None:
    """What fell due while it stood must not lie in a step that is left out."""
    watched = PACED.replace(
        "        time.sleep(0.01 if alone() else 0.02)",
        "        time.sleep(0.005)\n        first = alone()\n        time.sleep(0.02)\n"
        "        marks.write(f'{first:d}{alone():d}\\n')",
    ).replace(
        'if request["stage"]',
        'marks = open(Path(__file__).parent / "marks", "a")\nif request["stage"]',
    )
    (tmp_path / "paced.py").write_text(watched)
    measured(make_plan, signer, window_s=0.15)
    marks = (tmp_path / "marks").read_text().split()
    stops, goes = marks.count("01"), marks.count("10")
    assert stops > 3  # it is stopped anywhere
    assert goes <= 1


def test_where_nobody_stands_still_nothing_is_found(make_plan, signer) -> None:
    assert 0.8 < measured(make_plan, signer, control=True).ratio < 1.25


def test_added_work_is_done_for_each_event(make_plan, signer) -> None:
    [rest] = measured(make_plan, signer, burden_s=0.01).rests
    assert rest.cpu_s > 0.5


def test_the_supervisor_reads_nothing_while_the_trainer_is_bare(
    make_plan, signer, monkeypatch
) -> None:
    seen: list[tuple[set[int], set[int]]] = []

    def look(run: Path, bare_reports: bytes) -> list[tuple[int, int]]:
        logged = [json.loads(line) for line in (run / "events.jsonl").read_bytes().splitlines()]
        bare = [json.loads(line) for line in bare_reports.splitlines()]
        sides = [{e["data"]["step"] for e in side if e["ev"] == "step"} for side in (logged, bare)]
        seen.append((sides[0], sides[1]))
        return step_times(run, bare_reports)

    monkeypatch.setattr(bench, "step_times", look)
    measured(make_plan, signer)
    [(logged, bare)] = seen
    assert not logged & bare
    assert logged | bare == set(range(200))
    assert len(bare) > 30 and {0, 199} <= logged


def test_steps_count_where_they_lie_whole_and_windows_go_by_twos() -> None:
    windows = [Window(0, 100, True), Window(100, 200, False), Window(200, 300, False)]
    windows += [Window(300, 400, True), Window(400, 500, True), Window(500, 600, False)]
    steps = [(10, 40), (40, 90), (90, 120), (120, 140), (140, 190), (190, 260), (260, 300)]
    steps += [(310, 330), (420, 440), (440, 700)]
    first, second = couples_of(windows, steps)
    assert first == pytest.approx(Couple(40e-6, 35e-6, 2, 2))
    assert second == pytest.approx(Couple(20e-6, 40e-6, 1, 1))
    assert couples_of(windows[:1], steps) == [] and couples_of([], steps) == []


def written(run: Path, reports: list[tuple[str, dict[str, Any]]]) -> Path:
    from kit.run.log import EventLog

    log = EventLog(run)
    log.append("sup", "stage_start", {"stage": "tokenizer"})
    log.append("trainer", "note", {"text": "", "at_us": 5})
    log.append("sup", "stage_stop", {"stage": "tokenizer"})
    log.append("sup", "stage_start", {"stage": "pretrain"})
    for ev, data in reports:
        log.append("trainer", ev, data)
    log.append("sup", "stage_stop", {"stage": "pretrain"})
    log.close()
    return run


def test_steps_are_put_together_from_the_log_and_the_pipe(tmp_path: Path) -> None:
    reports = [("step", {"step": n, "at_us": at}) for n, at in ((0, 10), (1, 20), (3, 50))]
    run = written(tmp_path / "a", [*reports, ("eval", {"name": "val", "at_us": 60})])
    bare = [
        {"ev": "step", "data": {"step": 2, "at_us": 35}},
        {"ev": "step", "data": {"step": 4, "at_us": 70}},
        {"ev": "step", "data": {"step": 5, "at_us": 85}},
    ]
    lines = [json.dumps(report).encode() + b"\n" for report in bare]
    # The evaluation between the fourth and the fifth is no part of a step.
    whole = [(10, 20), (20, 35), (35, 50), (70, 85)]
    assert step_times(run, b"".join(lines)) == whole
    with pytest.raises(KitError, match="lost"):
        step_times(run, b"".join(lines[1:]))
    mute = written(tmp_path / "b", [("step", {"step": 0})])
    with pytest.raises(KitError, match="does not say when"):
        step_times(mute, b"")


def test_the_tenth_at_each_end_is_left_out() -> None:
    couples = [Couple(1.01, 1.0, 1, 1)] * 8 + [Couple(9.0, 1.0, 1, 1), Couple(0.5, 1.0, 1, 1)]
    found = Overhead(couples, RESTS)
    assert found.ratio == pytest.approx(1.01)
    assert found.interval == pytest.approx((1.01, 1.01))
    few = Overhead(COUPLES, RESTS)
    assert few.ratio == pytest.approx((1.02 * 1.04) ** (1 / 3))
    low, high = few.interval or (0.0, 0.0)
    assert low < 1.0 < few.ratio < high < 1.05
    assert Overhead(COUPLES[:1], RESTS).interval is None
    assert few.between_share == pytest.approx(0.001) and few.cpu_share == pytest.approx(0.004)


def test_a_pipe_that_nearly_filled_is_no_measure() -> None:
    read, write = os.pipe()
    try:
        os.set_blocking(read, False)
        bench.fcntl.fcntl(write, bench.fcntl.F_SETPIPE_SZ, bench._PIPE_BYTES)
        assert bench._drain(read) == b""
        os.write(write, b"x" * 600_000)
        with pytest.raises(KitError, match="might have waited"):
            bench._drain(read)
    finally:
        os.close(read)
        os.close(write)


def test_too_short_a_training_for_windows_is_said(make_plan, signer) -> None:
    with pytest.raises(KitError, match="has whole steps") as error:
        measured(make_plan, signer, window_s=4.0)
    assert "more steps" in str(error.value.hint)


def test_a_trainer_that_fails_is_told_and_no_traceback(
    make_plan, signer, tmp_path: Path, capfd
) -> None:
    before = set(psutil.Process().children())  # other tests' may live as long as this process
    (tmp_path / "paced.py").write_text("raise SystemExit('out of ideas')")
    with pytest.raises(KitError, match="out of ideas"):
        measured(make_plan, signer)
    (tmp_path / "paced.py").write_text(
        PACED.replace("        time", "        step == 60 and sys.exit('half way')\n        time")
    )
    with pytest.raises(KitError, match="half way"):
        measured(make_plan, signer)
    assert "Traceback" not in capfd.readouterr().err
    assert set(psutil.Process().children()) <= before


def _measure(make_plan: Callable[[], RunPlan], signer: Signer) -> None:
    measured(make_plan, signer, window_s=60.0)


def test_a_killed_bench_leaves_nothing_behind(make_plan, signer, monkeypatch) -> None:
    """Its trainer ends with it, and its supervisor that stands still."""
    monkeypatch.setattr(bench.random, "sample", lambda *_: (False, True))
    process = get_context("fork").Process(target=_measure, args=(make_plan, signer))
    process.start()
    deadline = time.monotonic() + 20
    started: list[psutil.Process] = []
    while not any(each.status() == psutil.STATUS_STOPPED for each in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) == 2
    process.kill()
    process.join()
    assert len(psutil.wait_procs(started, timeout=10)[1]) == 0


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunPlan, dict[str, Any]]]:
    made: list[tuple[RunPlan, dict[str, Any]]] = []

    def measure(make_plan: Callable[[], RunPlan], signer: Any, **rest: Any) -> Overhead:
        made.append((make_plan(), rest))
        return Overhead(COUPLES[: rest["runs"]], RESTS)

    monkeypatch.setattr(bench, "measure_overhead", measure)
    return made


def test_only_tokenizer_and_pretraining_are_run_and_by_the_reference(called) -> None:
    result = CliRunner().invoke(bench_supervisor, ["--steps", "8", "--control"])
    assert result.exit_code == 0, result.output
    [(plan, options)] = called
    assert plan.recipe.stages == ("tokenizer", "pretrain")
    assert plan.recipe.document["stages"] == ["tokenizer", "pretrain"]
    assert plan.recipe.section("pretrain")["num_steps"] == 8
    assert plan.recipe.section("trainer")["command"] == ["python", "-m", "reference.stamped"]
    assert options["control"] is True and options["runs"] == 2
    assert "two names for the same" in result.output


def test_what_is_found_is_told(called) -> None:
    line = ["--runs", "3", "--burden", "20", "--window", "1.5"]
    told = json.loads(CliRunner().invoke(bench_supervisor, ["--json", *line]).stdout)
    assert called[0][1]["burden_s"] == pytest.approx(0.02)
    assert called[0][1]["window_s"] == 1.5
    assert told["ratio"] == pytest.approx((1.02 * 1.04) ** (1 / 3))
    assert told["cpu_share"] == pytest.approx(0.004) and len(told["couples"]) == 3
    said = CliRunner().invoke(bench_supervisor, line).stdout
    assert "steps under the supervisor: +1.99% (95 %:" in said
    assert "0.40% of one core" in said and "0.10% of the time" in said
    alone = CliRunner().invoke(bench_supervisor, ["--runs", "1"]).stdout
    assert "+2.00%; couples of windows: 1" in alone and "95" not in alone


def test_what_it_cannot_do_is_said_at_once(called, make_plan, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(RECIPE + '[data]\nkind = "stories"\n')
    for options, said in (
        (["-r", "nano"], "`nano` needs data"),
        (["-r", str(tmp_path / "own.toml")], "trainer of its own"),
        (["--runs", "0"], "--runs"),
        (["--window", "0"], "--window"),
    ):
        result = CliRunner().invoke(bench_supervisor, options)
        assert result.exit_code == 2 and said in result.output, result.output
    assert not called

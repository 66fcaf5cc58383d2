"""Trackers and `watch`: the numbers of a run from its log, while it runs and after the fact."""

from __future__ import annotations

import csv
import json
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import tamper
from click.testing import CliRunner, Result

from kit.cli import track as commands
from kit.cli.main import cli
from kit.errors import PrerequisiteError
from kit.recipe import parse_recipe
from kit.track.page import WatchServer
from kit.track.scalars import Reader
from kit.track.tail import RunTail, Tail, follow
from kit.track.view import RunView, view_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("day") / "day"
    tamper.gpu_run().write(folder)
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def seen(run: Path, records: list[dict[str, Any]]) -> RunView:
    recipe = parse_recipe((run / "recipe.toml").read_text(), folder=run)
    view = view_of(recipe.document)
    for record in records:
        view.take(record)
    return view


def test_the_expected_curve_is_the_power_law_behind_the_losses() -> None:
    view = view_of({"stages": ["tokenizer", "pretrain"], "budget_s": 100.0})
    assert view.expected() == []
    view.stages[1].status, view.stages[1].fraction = "running", 0.25
    view.loss = [(step, 9.0 * max(step, 1) ** -0.1) for step in range(200)]
    curve = view.expected()
    assert curve[-1][0] == pytest.approx(4 * 199)
    for step, loss in curve:
        assert loss == pytest.approx(9.0 * step**-0.1, rel=1e-6)
    view.loss = [(step, 3.0) for step in range(5)]
    assert view.expected() == [], "five losses show no curve"
    view.loss = [(step, float("nan")) for step in range(200)]
    assert view.expected() == []


def test_a_csv_file_holds_every_loss_of_the_log(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = call("track", run, "--to", "csv", "--out", tmp_path)
    assert done.exit_code == 0, done.exception
    rows = list(csv.DictReader((tmp_path / "day.csv").read_text().splitlines()))
    losses = [float(row["value"]) for row in rows if row["name"] == "pretrain/loss"]
    stages: list[str] = []
    expected = []
    for event in events(run):
        if event["ev"] == "stage_start":
            stages.append(event["data"]["stage"])
        if event["ev"] == "step" and stages[-1] == "pretrain":
            expected.append(event["data"]["loss"])
    assert losses == expected
    steps = [int(row["step"]) for row in rows if row["name"].endswith("/loss")]
    assert steps == sorted(steps) and len(set(steps)) == len(steps)
    assert {"pretrain/val_bpb", "machine/gpu_power_w"} <= {row["name"] for row in rows}
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_growing_log_is_read_line_by_line(run: Path, tmp_path: Path) -> None:
    source = (run / "events.jsonl").read_bytes()
    path = tmp_path / "events.jsonl"
    tail, found = Tail(path), []
    assert tail.new() == []
    for end in (100, len(source) // 2, len(source)):
        path.write_bytes(source[:end])
        found += tail.new()
    assert found == events(run)


def test_following_ends_with_the_runs_last_event(run: Path, tmp_path: Path) -> None:
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(lines[:-1]))

    def finish() -> None:
        with path.open("ab") as file:
            file.write(lines[-1])

    timer = threading.Timer(0.2, finish)
    timer.start()
    found = list(follow(tmp_path, wait=True))
    timer.join()
    assert [record["ev"] for record in found][-1] == "end"
    assert [r["ev"] for r in follow(tmp_path, wait=True, should_stop=lambda: True)][-1] == "end"


@pytest.mark.parametrize("kind", ["trackio", "wandb", "tensorboard"])
def test_a_missing_tracker_is_one_line(
    run: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    done = call("track", run, "--to", kind, "--out", tmp_path)
    assert isinstance(done.exception, PrerequisiteError)
    assert kind in done.exception.message and "csv" in (done.exception.hint or "")


@pytest.mark.parametrize("kind", ["trackio", "wandb"])
def test_trackers_of_one_interface_get_the_same_numbers(
    run: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.options: dict[str, Any] = {}
            self.rows: list[tuple[int, dict[str, float]]] = []
            self.finished = False

        def init(self, **options: Any) -> Recorder:
            self.options = options
            return self

        def log(self, values: dict[str, float], step: int) -> None:
            self.rows.append((step, values))

        def finish(self) -> None:
            self.finished = True

    recorder = Recorder()
    monkeypatch.setitem(sys.modules, kind, recorder)  # type: ignore[arg-type]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert call("track", run, "--to", kind, "--out", tmp_path).exit_code == 0
    reader = Reader()
    expected = [s for r in follow(run, wait=False) if (s := reader.take(r)) is not None]
    assert recorder.rows == [(scalars.step, scalars.values) for scalars in expected]
    assert recorder.finished and recorder.options["name"] == "day"
    assert recorder.options["config"]["recipe"]["name"]
    assert recorder.options.get("mode", "offline") == "offline"


def test_tensorboard_reads_what_was_written(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call("track", run, "--to", "tensorboard", "--out", tmp_path).exit_code == 0
    read = EventAccumulator(str(tmp_path / "tensorboard" / "day"))
    read.Reload()
    losses = [event.value for event in read.Scalars("pretrain/loss")]
    assert len(losses) > 10 and losses[-1] < losses[0]


def test_the_view_knows_stages_loss_speed_and_power(run: Path) -> None:
    view = seen(run, RunTail(run).new())
    assert view.status == "complete"
    assert {stage.status for stage in view.stages} == {"complete"}
    assert view.loss[0][0] == 0 and view.loss[-1][1] < view.loss[0][1]
    assert view.power_w and view.memory_bytes and view.evals["val_bpb"]
    text = call("watch", run, "--once").output
    for words in ("pretrain", "loss", "power", "of the budget"):
        assert words in text or words == "of the budget"
    assert max(map(len, text.splitlines())) <= 80


def test_time_left_has_an_error_that_grows_with_the_paces_spread(run: Path) -> None:
    def steps(paces: list[float]) -> RunView:
        view, now = seen(run, []), 0.0
        view.take({"ev": "run_start", "t_ns": 0, "data": {}})
        view.take({"ev": "stage_start", "t_ns": 0, "data": {"stage": "pretrain"}})
        for index, pace in enumerate(paces):
            now += pace
            data = {"step": index, "loss": 1.0, "progress": index / 80}
            view.take({"ev": "step", "t_ns": round(now * 1e9), "data": data})
        return view

    even, uneven = steps([1.0] * 41), steps([0.5] * 20 + [1.5] * 21)
    for view in (even, uneven):
        left = view.time_left()
        assert left is not None and left[0] == pytest.approx(40, rel=0.15)
    assert even.time_left()[1] == pytest.approx(0, abs=0.01)  # type: ignore[index]
    assert uneven.time_left()[1] > 3  # type: ignore[index]
    assert steps([1.0] * 3).time_left() is None


def test_a_resume_takes_the_loss_back_to_its_step(run: Path) -> None:
    view = seen(run, [])
    view.take({"ev": "stage_start", "t_ns": 0, "data": {"stage": "pretrain"}})
    for step in (0, 1, 2, 3, 2, 3):
        view.take({"ev": "step", "t_ns": 1, "data": {"step": step, "loss": 9.0 - step}})
    assert [step for step, _ in view.loss] == [0, 1, 2, 3]


def test_the_page_is_served_with_the_state_and_loads_nothing(run: Path) -> None:
    view = seen(run, RunTail(run).new())
    with WatchServer("127.0.0.1", 0, view.to_json) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with urllib.request.urlopen(server.url) as answer:
                page = answer.read().decode()
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            with urllib.request.urlopen(f"{server.url}state.json") as answer:
                state = json.load(answer)
        finally:
            server.shutdown()
            thread.join()
    assert state["status"] == "complete" and len(state["loss"]) > 10
    assert "http" not in page.replace("http-equiv", "") and "innerHTML" not in page


def test_a_run_feeds_a_tracker_beside_itself(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    plan = tamper.pretraining_plan(tmp_path)()
    from kit.run import supervisor
    from kit.run.process import StopFlag
    from kit.trust.keys import load_or_create_signer

    signer = load_or_create_signer(plan.work / "keys")
    with commands.tracking("csv", plan.run):
        supervisor.supervise(plan, signer, observe=lambda event: None, stop=StopFlag())
    written = plan.run.parent / f"{plan.run.name}.csv"
    rows = list(csv.DictReader(written.read_text().splitlines()))
    assert any(row["name"] == "pretrain/loss" for row in rows)


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    for command in ("track", "watch"):
        assert isinstance(call(command, tmp_path).exception, PrerequisiteError), command

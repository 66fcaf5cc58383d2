"""Studies end to end: with a trainer of a formula whose truth is known, and with the real one."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

from reference.config.resolve import resolve_recipe
from reference.errors import TrainerError
from reference.lab.ablate import Place, StudyRun
from reference.lab.commands import ablate
from reference.lab.executor import LocalExecutor, RayExecutor
from reference.lab.halving import Slot
from reference.lab.proxies import agreement, rate_proxies, recommend, spearman
from reference.lab.study import BASELINE, Arm, Halving, Scale, Study, load_study, steps_of
from reference.lab.trial import COMPLETE, FAILED, STOPPED, Outcome, Trial, run_trial

ROOT = Path(__file__).parent.parent.parent
ASSETS = ROOT / "tests" / "assets"
FORMULA = ASSETS / "lab"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in ("a", "validation"):
        texts = [f"{name} the sky is blue and the grass is green {i}" for i in range(400)]
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
    return folder


def start(folder: Path, text: Path, *more: str) -> Any:
    out = folder / "out"
    return CliRunner().invoke(
        ablate,
        [str(folder / "study.toml"), "--data", str(text), "--out", str(out), "--device", "cpu",
         "--jobs", "2", "--json", *more],
    )  # fmt: skip


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[Path, dict[str, Any]]:
    """A finished study, and its findings."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(FORMULA, folder, dirs_exist_ok=True)
    done = start(folder, text)
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


def test_known_changes_get_the_verdicts_they_deserve(studied: tuple[Path, dict[str, Any]]) -> None:
    _, findings = studied
    verdicts = {row["arm"]: row for row in findings["changes"]}
    for name in ("good", "awful", "wild"):
        assert verdicts[name]["verdict"] == verdicts[name]["expect"], name
    assert "stopped" in verdicts["awful"]["reason"]
    assert "diverged" in verdicts["wild"]["reason"]
    assert verdicts["good"]["scale"] == "large"
    assert findings["trials"]["failed"] == 0


def test_a_multiplier_is_the_truth_of_the_formula(studied: tuple[Path, dict[str, Any]]) -> None:
    _, findings = studied
    good = next(row for row in findings["changes"] if row["arm"] == "good")
    # The formula's loss falls a little slower than its steps^-0.1: 20 steps stand before the first.
    small, large = 4e10, 1.2e11
    recipe = json.loads(
        next((studied[0] / "out" / "recipes").glob("*baseline-large.json")).read_text()
    )["recipe"]
    n_large = recipe["pretrain"]["num_steps"]
    n_small = round(n_large * small / large)
    slope = 0.1 * np.log((n_large + 20) / (n_small + 20)) / np.log(large / small)
    assert good["multiplier"]["value"] == pytest.approx(np.exp(0.02 / slope), rel=0.06)
    assert good["multiplier"]["low"] < good["multiplier"]["value"] < good["multiplier"]["high"]


def test_all_trials_share_one_tokenizer(studied: tuple[Path, dict[str, Any]]) -> None:
    counts = list((studied[0] / "out" / "shared").glob("*/tokenizer/count"))
    assert [file.read_text() for file in counts] == ["x"]


def test_decisions_are_recorded(studied: tuple[Path, dict[str, Any]]) -> None:
    lines = (studied[0] / "out" / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    kinds = {event["ev"] for event in events}
    assert {"begin", "start", "stop", "promote", "end"} <= kinds
    stopped = [e for e in events if e["ev"] == "stop" and e["status"] == STOPPED]
    assert stopped and all("stop rule" in e["reason"] for e in stopped)


def test_the_report_has_every_curve_and_escapes_what_it_is_told(
    studied: tuple[Path, dict[str, Any]],
) -> None:
    page = (studied[0] / "out" / "report.html").read_text()
    assert page.count("<svg") == 1 + 2 * 4
    for words in ("over step", "over tokens", "over FLOPs", "over training seconds", "Early slope"):
        assert words in page
    assert "<script" not in page


def test_going_on_does_only_what_is_missing(
    studied: tuple[Path, dict[str, Any]], text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(studied[0], folder)
    file = folder / "study.toml"
    before = len(list((folder / "out" / "trials").iterdir()))
    file.write_text(
        file.read_text()
        + '[[change]]\nname = "new"\nwhy = "<script>alert(1)</script>"\n'
        + '[change.set]\n"trainer.options.gain" = 0.01\n"trainer.options.crash" = true\n'
    )
    done = start(folder, text)
    assert done.exit_code == 0, done.output
    lines = (folder / "out" / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    again = events[max(i for i, event in enumerate(events) if event["ev"] == "begin") :]
    started = [event for event in again if event["ev"] == "start"]
    assert {event["arm"] for event in started} == {"new"}
    failed = [event for event in again if event["ev"] == "stop" and event["status"] == FAILED]
    assert failed, "each seed crashes once and is started again"
    assert len(started) == 6 + len(failed)
    assert len(list((folder / "out" / "trials").glob("*/outcome.json"))) == before + 6
    assert "<script" not in (folder / "out" / "report.html").read_text()


def test_wrong_studies_are_explained_with_all_their_problems(tmp_path: Path, text: Path) -> None:
    shutil.copytree(FORMULA, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "study.toml"
    good = file.read_text()
    file.write_text(
        good.replace('name = "good"', 'name = "Good one"').replace("eta = 1", "eta = 0")
    )
    done = start(tmp_path, text)
    assert done.exit_code == 2
    assert "2 problems" in done.output
    file.write_text(good.replace('"trainer.options.gain" = 0.02', '"model.n_layers" = 3'))
    done = start(tmp_path, text)
    assert done.exit_code == 2
    assert "change good" in done.output and "n_layer" in done.output


def test_a_broken_shard_is_named_before_any_trial(tmp_path: Path, text: Path) -> None:
    shutil.copytree(FORMULA, tmp_path, dirs_exist_ok=True)
    shutil.copytree(text, tmp_path / "text")
    (tmp_path / "text" / "broken.parquet").write_bytes(b"PAR1 and no more")
    done = start(tmp_path, tmp_path / "text")
    assert done.exit_code == 2
    assert "change baseline cannot read its data" in done.output
    assert "broken.parquet is not a readable parquet file" in done.output
    assert not (tmp_path / "out" / "trials").exists()


def test_why_trials_failed_is_told_once(tmp_path: Path, text: Path) -> None:
    shutil.copytree(FORMULA, tmp_path, dirs_exist_ok=True)
    (tmp_path / "formula_trainer.py").write_text("import sys; sys.exit('out of luck')")
    done = start(tmp_path, text)
    assert done.exit_code == 1
    assert "15 times: the tokenizer stage failed: exit code 1" in done.output


def test_every_trial_of_a_scale_costs_the_same() -> None:
    study = load_study(FORMULA / "study.toml")
    resolved = resolve_recipe("smoke")
    wider = Arm("wide", {"model.n_embd": 256})
    steps = {
        arm.name: study.recipe(resolved, arm, study.scales[1])["pretrain"]["num_steps"]
        for arm in (Arm(BASELINE, {}), wider)
    }
    assert steps["wide"] < steps[BASELINE]
    from reference.model.cost import estimate

    for arm in (Arm(BASELINE, {}), wider):
        document = study.recipe(resolved, arm, replace(study.scales[1], flops=1e13))
        assert estimate(document)["flops"]["nanochat"] == pytest.approx(1e13, rel=0.02)
    assert steps_of(resolved, 1.0) == 4, "never fewer than the milestones"


def test_equal_time_asks_for_hours_instead_of_steps() -> None:
    study = load_study(FORMULA / "study.toml")
    scale = Scale("t", {}, seconds=120)
    document = study.recipe(resolve_recipe("smoke"), study.arms[0], scale)
    assert (document["pretrain"]["num_steps"], document["pretrain"]["hours"]) == (0, 120 / 3600)


def study_of(arms: int, folder: Path) -> Study:
    changes = tuple(Arm(f"c{i}", {}, expect="undecided") for i in range(arms))
    scales = (Scale("s", {}, flops=1.0), Scale("l", {}, flops=2.0))
    return Study(
        "sim", "", "x", scales, (Arm(BASELINE, {}), *changes), (1, 2, 3), {}, folder,
        halving=Halving(eta=2, keep_at_least=2),
    )  # fmt: skip


def recipes_of(study: Study) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (arm.name, scale.name): {"it": [arm.name, scale.name], "pretrain": {"sft_share": 0}}
        for arm in study.arms
        for scale in study.scales
    }


def test_the_scheduler_takes_less_than_two_percent_of_trial_time(tmp_path: Path) -> None:
    trial_s = 0.3

    def sleep(trial: Trial, *_: Any) -> Outcome:
        time.sleep(trial_s)
        return Outcome(COMPLETE, val_bpb=1.0)

    study = study_of(6, tmp_path)
    place = Place(tmp_path, None, None, "cpu", 1)
    progress = StudyRun(study, place, recipes_of(study)).run(LocalExecutor(8, run=sleep))
    assert len(progress.outcomes) >= 7 * 3 + 3 * 3
    # Real trials take minutes, not 0.3 s; the overhead does not grow with them.
    assert progress.overhead_s < 0.02 * trial_s * len(progress.outcomes)


def test_what_is_behind_by_its_nature_is_not_stopped_for_it(tmp_path: Path) -> None:
    study = study_of(2, tmp_path)
    first, second, third = study.arms
    study = replace(study, arms=(first, second, replace(third, stop_margin=0)))
    run = StudyRun(study, Place(tmp_path, None, None, "cpu", 1), recipes_of(study))
    half_way = [[0.5, 1, 1, 1.0, 1.0, 2.0], [1.0, 2, 2, 2.0, 2.0, 1.8]]
    scale, seed = study.scales[0].name, study.seeds[0]
    run.progress.outcomes[Slot(BASELINE, scale, seed)] = Outcome(
        COMPLETE, val_bpb=1.8, evals=half_way
    )
    limit = 2.0 * (1 + study.halving.stop_margin)
    assert run.trial(Slot(second.name, scale, seed)).limits == ((0.5, pytest.approx(limit)),)
    assert run.trial(Slot(third.name, scale, seed)).limits == ()


def test_one_trial_that_cannot_run_does_not_stop_the_rest(tmp_path: Path) -> None:
    calls: list[str] = []

    def flaky(trial: Trial, *_: Any) -> Outcome:
        calls.append(trial.arm)
        if trial.arm == "c1":
            raise RuntimeError("the machine is on fire")
        return Outcome(COMPLETE, val_bpb=1.0)

    study = study_of(3, tmp_path)
    run = StudyRun(study, Place(tmp_path, None, None, "cpu", 1), recipes_of(study))
    progress = run.run(LocalExecutor(2, run=flaky))
    assert calls.count("c1") == 9, "three seeds, three attempts each"
    failed = [slot for slot, outcome in progress.outcomes.items() if outcome.status == FAILED]
    assert {slot.arm for slot in failed} == {"c1"}
    assert any(slot.scale == "l" for slot in progress.outcomes)
    assert any("on fire" in text for text in progress.decisions)


def test_the_real_trainer_as_a_trial_and_the_stop_rule(tmp_path: Path, text: Path) -> None:
    recipe = resolve_recipe(str(ASSETS / "tiny.toml"))
    recipe["data"]["kind"] = "folder"
    bundle = Path(os.environ.get("N4090_SHARED", ROOT.parent / "shared")) / "core"
    recipe["stages"] = ["tokenizer", "pretrain", *(["core"] if bundle.is_dir() else [])]
    recipe["core"] |= {"tasks": ["copa"], "max_per_task": 20}
    recipe["pretrain"] |= {"num_steps": 12, "eval_every": 3, "checkpoint_every": 0}
    trial = Trial(
        "t", "a", "s", 1, recipe, str(tmp_path / "one"), str(tmp_path / "shared"), str(text),
        str(bundle), str(tmp_path), "cpu", 1,
    )  # fmt: skip
    outcome = run_trial(trial)
    assert outcome.status == COMPLETE, outcome.reason
    assert [row[0] for row in outcome.evals] == [0, 0.25, 0.5, 0.75, 1.0]
    assert outcome.val_bpb == outcome.evals[-1][5]
    assert outcome.train_s > 0 and outcome.curve[-1][2] > 0
    assert not (tmp_path / "one" / "checkpoints").exists(), "the weights are gone"
    if bundle.is_dir():
        assert outcome.core is not None and -1 <= outcome.core["copa"] <= 1

    limited = replace(trial, folder=str(tmp_path / "two"), limits=((0.5, 0.001),))
    stopped = run_trial(limited)
    assert stopped.status == STOPPED
    assert "50%" in (stopped.reason or "")
    assert stopped.val_bpb is None
    assert stopped.evals[:2] == outcome.evals[:2] or stopped.evals[1][5] == outcome.evals[1][5]


def simulated_outcomes(study: Study, arms: list[str], noise: float) -> dict[Slot, Outcome]:
    rng = np.random.default_rng(2)
    outcomes = {}
    for index, arm in enumerate(arms):
        for scale in study.scales:
            for seed in study.seeds:
                final = 2.0 + 0.05 * index + rng.normal(0, 1e-3)
                # An early figure that is mostly luck, a late one that is mostly truth.
                early = [
                    [q, 1, 1, 1.0, 1.0, final + rng.normal(0, noise / q**3)]
                    for q in (0.25, 0.5, 0.75)
                ]
                outcomes[Slot(arm, scale.name, seed)] = Outcome(
                    COMPLETE, val_bpb=final, evals=[*early, [1.0, 1, 1, 1.0, 1.0, final]]
                )
    return outcomes


def test_the_cheapest_reliable_proxy_is_recommended(tmp_path: Path) -> None:
    study = study_of(7, tmp_path)
    outcomes = simulated_outcomes(study, [arm.name for arm in study.arms], noise=0.01)
    proxies = rate_proxies(study, outcomes, {"s": 1.0, "l": 4.0})
    assert [p.flops for p in proxies] == sorted(p.flops for p in proxies)
    best, reason = recommend(proxies, 0.9)
    assert best is not None and best.name.endswith("at s")
    assert best.flops <= 1.0 and best.agreement_low >= 0.9
    noisy = next(p for p in proxies if p.name == "val_bpb at 25% at s")
    assert noisy.agreement_low < best.agreement_low
    assert noisy.rank_low <= noisy.rank_correlation <= noisy.rank_high
    assert "of its cost" in reason


def test_no_proxy_is_recommended_without_enough_changes_at_the_top(tmp_path: Path) -> None:
    study = study_of(2, tmp_path)
    outcomes = simulated_outcomes(study, ["baseline", "c0", "c1"], noise=0.01)
    assert recommend(rate_proxies(study, outcomes, {"s": 1.0, "l": 4.0}), 0.8)[0] is None


def test_rank_figures_by_hand() -> None:
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])
    assert spearman(x, y) == pytest.approx(0.8)
    assert agreement(x, y) == pytest.approx(5 / 6)
    assert spearman(x, np.ones(4)) == 0.0


def test_ray_without_the_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TrainerError, match="package ray"):
        RayExecutor("local", device="cpu", threads=1)


def test_a_ray_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    def init(**_: Any) -> None:
        raise ConnectionError("no route to host")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(TrainerError, match=r"no Ray cluster at 'ray://10.0.0.9:10001': no route"):
        RayExecutor("ray://10.0.0.9:10001", device="cpu", threads=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_worker_that_is_killed_costs_one_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy machine is slow to start it
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray = pytest.importorskip("ray")

    def sleep_or_die(trial: Trial, *_: Any) -> Outcome:
        """On a Ray worker: seed 2 of c0 kills its worker the first time."""
        import os

        marker = Path(trial.folder).with_suffix(".died")
        if trial.arm == "c0" and trial.seed == 2 and not marker.exists():
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
            os.kill(os.getpid(), 9)
        return Outcome(COMPLETE, val_bpb=1.0 + 0.1 * trial.seed)

    study = study_of(2, tmp_path)
    run = StudyRun(study, Place(tmp_path, None, None, "cpu", 1), recipes_of(study))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        progress = run.run(RayExecutor("auto", device="cpu", threads=1, run=sleep_or_die))
    finally:
        ray.shutdown()
    assert {outcome.status for outcome in progress.outcomes.values()} == {COMPLETE}
    assert progress.attempts[Slot("c0", "s", 2)] == 2

"""`verify` holds a run to what its installed trainer says, whichever trainer that is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tamper
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from support.draft import Draft

from kit.recipe import load_recipe
from kit.trainer import course_of, find_trainer
from kit.verify import Report, verify_result
from reference.optim.schedule import ScheduleConfig, schedule_at

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tamper.supervised_run(tmp_path_factory.mktemp("bigram"))


@pytest.fixture
def draft(run: Path) -> Draft:
    return tamper.load_draft(
        run, load_ssh_private_key((run.parents[1] / "keys/n4090_ed25519").read_bytes(), None)
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bigram trainer as an installed package would offer it."""
    spec = importlib.util.spec_from_file_location("bigram", tamper.ASSETS / "bigram_trainer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("kit.recipe.find_trainer", lambda name, folder: module.TRAINER)
    return module.TRAINER


def message(report: Report, check: str) -> str:
    return " ".join(finding.message for finding in report.of(check))


def test_a_trainer_that_is_not_installed_leaves_what_any_trainer_reports(run: Path) -> None:
    assert "held to what any trainer reports" in message(verify_result(run), "V28")


def test_an_installed_trainer_is_asked(run: Path, installed: Any) -> None:
    report = verify_result(run)
    assert report.verdict == "consistent", report.refused_by
    assert "held to the recipe" in message(report, "V28")


def claim_parameters(draft: Draft) -> None:
    draft.of("model", "pretrain")[0]["data"]["parameters"] = 1_000_000


def claim_flops(draft: Draft) -> None:
    for event in draft.of("model", "pretrain"):
        event["data"]["flops_per_token"] = 0.5


def hide_durations(draft: Draft) -> None:
    for event in draft.of("step", "pretrain"):
        del event["data"]["dt_s"]


FORGED: list[tuple[Callable[[Draft], None], str, str]] = [
    (claim_parameters, "V28", "the parameters are not those of the model's sizes"),
    (claim_flops, "V13", "FLOPs per token are not those of the model"),
    (hide_durations, "V28", "a step lacks what the trainer reports"),
]


@pytest.mark.parametrize(("forge", "check", "says"), FORGED, ids=lambda value: str(value)[:20])
def test_its_answers_refuse_a_forged_log(
    draft: Draft,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    forge: Callable[[Draft], None],
    check: str,
    says: str,
) -> None:
    forge(draft)
    path = draft.write(tmp_path / "run")
    assert says not in message(verify_result(path), check)  # nobody here knows this trainer
    request.getfixturevalue("installed")
    assert says in message(verify_result(path), check)


def test_a_trainer_of_an_earlier_kit_has_no_course() -> None:
    assert course_of(object(), {}) is None  # type: ignore[arg-type]
    assert course_of(None, {}) is None


def test_the_references_course_is_what_its_training_does() -> None:
    recipe = load_recipe("nano")
    course = course_of(find_trainer("reference", None), recipe.document)
    assert course is not None and course.parameters(8192)
    section = recipe.section("pretrain")
    config = ScheduleConfig.from_recipe(section)
    for step, progress in ((0, 0.0), (5, 0.3), (100, 0.95)):
        assert course.learning_rate("pretrain", step, progress) == pytest.approx(
            schedule_at(progress, step, config).lr
        )
    assert course.batch_tokens("pretrain", 0.5) == section["total_batch_size"]
    other = {**recipe.document, "trainer": {**recipe.section("trainer"), "command": ["mine"]}}
    assert course_of(find_trainer("reference", None), other) is None

"""What a newcomer types first: a wrong folder, a run that has not finished, a model of the Hub."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from core_bundles import make_bundle

from kit.cli.main import cli
from kit.core_eval.bundle import load_items, open_bundle, scored_items
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.recipe import parse_recipe


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(*arguments: object) -> KitError:
    done = call(*arguments)
    assert isinstance(done.exception, KitError), done.output
    return done.exception


@pytest.mark.parametrize("option", ["--data", "--core", "--sft", "--chat-eval"])
def test_a_folder_that_does_not_exist_is_named_before_the_network(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.prepare import fetch

    monkeypatch.setattr(fetch, "prepare", lambda *a, **k: pytest.fail("asked the network"))
    error = refused("run", "-r", "nano", option, tmp_path / "nope", "--work", tmp_path)
    assert f"{option} {tmp_path / 'nope'}: does not exist" in error.message
    for other in ("--data", "--core", "--sft", "--chat-eval"):
        assert other in (error.hint or "")
    (tmp_path / "nope").mkdir()
    error = refused("run", "-r", "nano", option, tmp_path / "nope", "--work", tmp_path)
    assert "holds no" in error.message


def test_a_hub_out_of_reach_is_noticed_after_three_tries() -> None:
    httpx2 = pytest.importorskip("httpx2")
    from kit.board.hub import Hub
    from kit.prepare.transfer import Retry

    asked: list[int] = []

    def ask() -> Any:
        asked.append(1)
        raise httpx2.ConnectError("Name or service not known")

    api: Any = SimpleNamespace(endpoint="https://hub.invalid")
    with pytest.raises(PrerequisiteError, match="Name or service"):
        Hub(api=api, retry=Retry(attempts=9, base_s=0.0)).ask("board", ask)
    assert len(asked) == 3


def test_a_download_without_a_network_ends_after_three_tries(tmp_path: Path) -> None:
    httpx2 = pytest.importorskip("httpx2")
    from kit.prepare.transfer import Expected, Retry, Transfer, download

    asked: list[str] = []

    class Client:
        def stream(self, method: str, url: str, **_: Any) -> Any:
            asked.append(url)
            raise httpx2.ConnectError("Name or service not known")

    class Silent:
        def advance(self, count: int) -> None: ...
        def note(self, text: str) -> None: ...

    patience = Retry(attempts=9, base_s=0.0)
    transfer = Transfer(Client(), {}, Silent(), retry=patience)  # type: ignore[arg-type]
    with pytest.raises(PrerequisiteError, match="cannot be reached"):
        download("https://example.org/core.zip", tmp_path / "core.zip", Expected(), transfer)
    assert len(asked) == 3


@pytest.mark.parametrize("name", ["", "result.json"])
def test_a_run_without_a_result_is_not_finished_rather_than_refused(
    tmp_path: Path, name: str
) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text("{}\n")
    error = refused("verify", tmp_path / name)
    assert isinstance(error, PrerequisiteError)
    assert "not finished" in error.message and "--resume" in (error.hint or "")
    with log.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        running = refused("verify", tmp_path / name)
    assert "it is running" in running.message
    assert "not finished" in refused("export", "mllog", tmp_path / name).message


def test_a_model_argument_takes_a_run_and_names_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.cli.model_path import ModelPath

    base = tmp_path / "run" / "checkpoints" / "pretrain"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    assert ModelPath().convert(tmp_path / "run", None, None) == base
    assert ModelPath().convert(base, None, None) == base
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    error = refused("eval", "core", "hf:nobody/no-such-model")
    assert "hf download nobody/no-such-model --local-dir no-such-model" in (error.hint or "")
    assert "hf:nobody/no-such-model" in call("eval", "core", "nobody/no-such-model").output


def test_few_items_are_scored_though_more_are_shown_as_examples(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "core"), allow_custom=True)
    task = bundle.tasks[0]
    assert task.shots == 2
    items = load_items(bundle, task, max_per_task=1)
    assert len(items) == 3 and list(scored_items(items, 1)) == [0]
    assert len(load_items(bundle, task, max_per_task=5)) == 5
    assert len(scored_items(load_items(bundle, task), -1)) == 40


RECIPE = """
schema_version = 1
name = "mine"
track = "open"
budget_s = 3600
stages = ["tokenizer", "pretrain"]

[model]
n_layers = 4
n_embd = 250
n_head = 4

[pretrain]
num_steps = 10
hours = "a"
"""


def test_schema_and_value_errors_come_together_with_the_suggestion_first() -> None:
    with pytest.raises(SchemaError) as caught:
        parse_recipe(RECIPE, folder=Path(), label="mine.toml")
    text = caught.value.message
    assert "n_layers" in text and "hours" in text and "model.n_head" in text
    line = next(line for line in text.splitlines() if "n_layers" in line)
    assert re.search(r"did you mean `n_layer`\?.*known here", line)
    assert "exactly one of num_steps and hours" not in text  # hours has no value to judge


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_chat_warns_about_a_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    pytest.importorskip("torch")
    from reference.chat.session import Session

    class Opened:
        ended = True

        def ask(self, text: str) -> Any:
            return iter(["hello"])

    folder = tmp_path / "checkpoints" / stage
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(Session, "open", lambda *a, **k: Opened())
    done = call("chat", tmp_path, "--prompt", "hi")
    assert "hello" in done.output, done.exception
    assert ("base model" in done.output) == (stage == "pretrain")


def test_a_recipe_or_run_without_its_option_is_told_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events.jsonl").touch()
    for word, option in (("smoke", "--recipe"), ("runs", "--resume")):
        done = call("run", word)
        assert done.exit_code == 2 and f"n4090-kit run {option} {word}" in done.output
    (tmp_path / "mine.toml").touch()
    assert "`mine.toml`" in (refused("run", "-r", "mine").hint or "")


def test_a_path_without_a_result_is_no_verdict_about_one(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("nowhere", "there is no"),
        ("empty", "holds no result.json"),
    ):
        done = call("verify", tmp_path / name)
        assert done.exit_code == 2 and told in done.output and "UNREADABLE" not in done.output


def test_no_model_is_taken_from_a_run_that_goes_on(tmp_path: Path) -> None:
    """Its base model would be written where the chat model is meant."""
    pytest.importorskip("torch")
    base = tmp_path / "checkpoints" / "pretrain"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    with (tmp_path / "events.jsonl").open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert "is running" in refused("export", "model", tmp_path).message
        (base / "config.json").unlink()
        done = call("chat", tmp_path)
        assert "has no trained model yet" in done.output


def test_scoring_without_a_bundle_says_how_to_fetch_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    error = refused("eval", "core", tmp_path / "model")
    assert "there is no CORE bundle" in error.message
    assert "prepare --recipe nano --only core" in (error.hint or "")

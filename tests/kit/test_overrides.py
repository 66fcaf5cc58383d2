"""`run --set`, `recipes new`, `recipes diff`, and completion in a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kit.cli.main import cli
from kit.errors import KitError, SchemaError
from kit.overrides import differences, override
from kit.recipe import load_recipe, parse_recipe


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_field_is_set_with_its_type_and_recorded_in_the_text() -> None:
    smoke = load_recipe("smoke")
    settings = ["pretrain.num_steps=7", "model.n_layer = 3", "title=a word", "threads=2"]
    changed = override(smoke, settings)
    assert changed.section("pretrain")["num_steps"] == 7
    assert changed.section("model")["n_layer"] == 3
    assert changed.document["title"] == "a word" and changed.document["threads"] == 2
    assert changed.digest != smoke.digest
    for setting in settings:
        assert setting in changed.text
    again = parse_recipe(changed.text, folder=smoke.folder)
    assert again.document == changed.document
    fields = {field for field, _, _ in differences(smoke, changed)}
    assert fields == {"pretrain.num_steps", "model.n_layer", "title", "threads"}
    assert override(smoke, []) is smoke


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("pretrain.num_step=3", "Did you mean pretrain.num_steps?"),
        ("n_layer=3", "Did you mean model.n_layer?"),
        ("pretrain.num_steps=many", "integer"),
        ("pretrain.num_steps=1.5", "integer"),
        ("pretrain.num_steps", "section.field=value"),
        ("=3", "section.field=value"),
        ("name.x=3", "not a section"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_meant(setting: str, words: str) -> None:
    with pytest.raises(SchemaError) as caught:
        override(load_recipe("smoke"), [setting])
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_a_setting_cannot_smuggle_lines_into_the_recipe() -> None:
    changed = override(load_recipe("smoke"), ["title=a\nbudget_s = 5"])
    assert changed.budget_s == load_recipe("smoke").budget_s
    assert changed.document["title"] == "a\nbudget_s = 5"


def test_run_takes_settings_and_resume_does_not() -> None:
    done = call("run", "-r", "smoke", "--set", "model.n_layers=4")
    assert isinstance(done.exception, KitError) and "n_layer" in (done.exception.hint or "")
    assert call("run", "--resume", ".", "--set", "model.n_layer=4").exit_code == 2


def test_a_new_recipe_is_a_file_that_runs_and_differs_where_it_was_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    done = call("recipes", "new", path, "--from", "smoke", "--set", "model.n_layer=2")
    assert done.exit_code == 0, done.exception
    assert load_recipe(str(path)).name == "mine"
    rows = json.loads(call("recipes", "diff", "smoke", path, "--json").stdout)
    assert {row["field"]: row["b"] for row in rows} == {"name": "mine", "model.n_layer": 2}
    assert "model.n_layer" in call("recipes", "diff", "smoke", path).stdout
    assert isinstance(call("recipes", "new", path).exception, KitError)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    script = call("completion", shell).stdout
    assert "_N4090_KIT_COMPLETE" in script and "n4090-kit" in script


def test_commands_and_recipes_are_completed() -> None:
    def complete(words: str, at: int) -> str:
        environment = {"_N4090_KIT_COMPLETE": "bash_complete", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(at)
        command = [sys.executable, "-m", "kit.cli.main"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}
        )
        return done.stdout

    assert "plain,verify" in complete("n4090-kit ver", 1)
    assert "plain,smoke" in complete("n4090-kit run --recipe sm", 3)

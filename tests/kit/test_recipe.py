"""Recipes: every problem at once, each with its path, line, what is allowed, and what was meant."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from kit.cli.main import cli
from kit.errors import SchemaError
from kit.recipe import load_recipe, named_recipes, parse_recipe, resolved_toml

MINIMAL = 'schema_version = 1\nname = "x"\ntrack = "open"\nbudget_s = 60\n'


def parse(text: str):
    return parse_recipe(text, folder=Path())


def problems_of(text: str) -> str:
    with pytest.raises(SchemaError) as caught:
        parse(text)
    return caught.value.message


def test_every_shipped_recipe_is_valid_and_named_after_its_file() -> None:
    names = named_recipes()
    assert {"smoke", "nano", "reference"} <= set(names)
    for name in names:
        assert load_recipe(name).name == name


def test_defaults_are_filled_in_and_survive_a_round_trip() -> None:
    recipe = parse(MINIMAL + "[pretrain]\nnum_steps = 7\n")
    assert recipe.section("pretrain")["warmdown_ratio"] == 0.65
    assert recipe.stages == ("tokenizer", "pretrain", "core", "sft", "chat_eval")
    assert tomllib.loads(resolved_toml(recipe)) == recipe.document


def test_all_problems_are_reported_at_once_with_path_and_line() -> None:
    message = problems_of(
        'schema_version = 1\nname = "x"\ntrack = "opne"\nbudget_s = -1\n'
        "[model]\nn_layers = 4\nn_embd = 'wide'\n[pretrain]\nhours = 1\n"
    )
    assert 'track (line 3): found "opne"' in message
    assert "did you mean `open`?" in message
    assert "budget_s (line 4): found -1; allowed: number from 1 to 604800" in message
    assert "model.n_layers (line 6): no such field" in message
    assert "did you mean `n_layer`?" in message
    assert 'model.n_embd (line 7): found "wide"; allowed: integer' in message
    assert message.startswith("recipe has 4 problems")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[model]\nn_head = 5\n[pretrain]\nhours = 1\n", "model.n_head (line 6)"),
        ("[model]\nn_kv_head = 4\n[pretrain]\nhours = 1\n", "must divide n_head (6)"),
        ("[pretrain]\nhours = 1\nnum_steps = 5\n", "exactly one of num_steps and hours"),
        ("[pretrain]\nhours = 1\nreplay_share = 0.5\nsft_share = 0.45\n", "together at most 0.9"),
        (
            "[pretrain]\nhours = 1\nreplay_share = 0.1\nreplay_from = 0.3\n"
            "seq_len_ramp = [[0, 1024], [0.4, 2048]]\n",
            "pretrain.replay_from (line 8): found 0.3",
        ),
        (
            "[pretrain]\nhours = 1\nsft_share = 0.1\nsft_from = 0.3\n"
            "seq_len_ramp = [[0, 1024], [0.4, 2048]]\n",
            "seq_len_ramp reaches its end at 0.4: not before that",
        ),
        ("[pretrain]\nhours = 1\nreplay_share = 0.1\nreplay_from = 0\n", "replay_from"),
        ("[pretrain]\nhours = 1\nreplay_share = 0.6\n", "pretrain.replay_share (line 7)"),
        ("[pretrain]\nhours = 0\n", "exactly one of num_steps and hours"),
        (
            "[pretrain]\nhours = 1\ntotal_batch_size = 1000\n",
            "multiple of device_batch_size * seq_len = 16384",
        ),
        (
            "[pretrain]\nhours = 1\ngrowth_layers = [[0.0, 6], [0.5, 10]]\n",
            "pretrain.growth_layers (line 7): ends with 10; must end with model.n_layer (12)",
        ),
        (
            "[pretrain]\nhours = 1\ngrowth_layers = [[0.1, 6], [0.5, 12]]\n",
            "found shares [0.1, 0.5]; must rise, from 0 on",
        ),
        (
            "[pretrain]\nhours = 1\ngrowth_layers = [[0.0, 12], [0.5, 12]]\n",
            "found [12, 12]; must grow with every pair",
        ),
        (
            "[pretrain]\nhours = 1\ngrowth_width = [[0.0, 320], [0.5, 768]]\n",
            "found 320; must be a multiple of the heads' width (128)",
        ),
        (
            "[pretrain]\nhours = 1\ngrowth_width = [[0.0, 512], [0.5, 768]]\n",
            "found 512; must divide the next width (768)",
        ),
        (
            "[model]\nn_kv_head = 1\n[pretrain]\nhours = 1\n"
            "growth_width = [[0, 384], [0.5, 768]]\n",
            "must leave whole key heads",
        ),
        (
            "[model]\ntied_until = 0.5\n[pretrain]\nhours = 1\n"
            "growth_width = [[0, 384], [0.5, 768]]\n",
            "cannot widen a table that is the head as well: set model.tied_until to 0",
        ),
        ('[data]\nkind = "hub"\n[pretrain]\nhours = 1\n', "kind hub needs repo"),
    ],
)
def test_values_that_do_not_go_together_are_named(text: str, expected: str) -> None:
    assert expected in problems_of(MINIMAL + text)


def test_stages_need_the_ones_before_them_and_their_order() -> None:
    assert "`chat_eval` without `sft`" in problems_of(
        MINIMAL + 'stages = ["tokenizer", "chat_eval"]\n'
    )
    assert "the order is" in problems_of(MINIMAL + 'stages = ["pretrain", "tokenizer"]\n')


def test_the_ranked_track_admits_no_capped_score_and_no_other_budget() -> None:
    text = load_recipe("reference").text
    assert "the track's is 86400" in problems_of(text.replace("86400", "90000"))
    assert "the track scores all items" in problems_of(text + "[core]\nmax_per_task = 10\n")


def test_an_unknown_recipe_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(SchemaError) as caught:
        load_recipe("refrence")
    assert "Did you mean `reference`?" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["a = ", "[" * 5000, "x = 1\nx = 2"])
def test_what_is_not_toml_is_refused_in_one_sentence(text: str) -> None:
    assert "is not TOML" in problems_of(text)


def test_a_recipe_too_large_for_a_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_text(MINIMAL + "#" * 70_000)
    with pytest.raises(SchemaError, match="70"):
        load_recipe(str(path))


def test_check_names_what_is_wrong_with_each_of_several(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("schema_version = 1\n")
    done = CliRunner().invoke(cli, ["recipes", "check", "smoke", str(wrong), "--json"])
    assert done.exit_code == 2
    good, bad = json.loads(done.output)
    assert good["recipe"]["name"] == "smoke" and good["error"] is None
    assert bad["recipe"] is None and "problem" in bad["error"]["message"]
    assert CliRunner().invoke(cli, ["recipes", "check", "smoke"]).output == "smoke is right\n"


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    """Windows editors begin files with one."""
    plain, marked = tmp_path / "plain.toml", tmp_path / "marked.toml"
    plain.write_text(MINIMAL + "[pretrain]\nnum_steps = 7\n", encoding="utf-8")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert load_recipe(str(marked)).document == load_recipe(str(plain)).document
    assert load_recipe(str(marked)).digest == load_recipe(str(plain)).digest
    done = CliRunner().invoke(cli, ["recipes", "check", str(marked)])
    assert done.exit_code == 0, done.output

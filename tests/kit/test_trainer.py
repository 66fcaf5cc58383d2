"""A recipe's trainer owns its sections: the kit asks it, and runs no code that nobody chose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from kit.cli.main import cli
from kit.errors import PrerequisiteError, SchemaError
from kit.recipe import load_recipe, parse_recipe
from kit.schemas import load_schema
from kit.trainer import Facts, find_trainer

ASSETS = Path(__file__).parents[1] / "assets"
MINIMAL = 'schema_version = 1\nname = "x"\ntrack = "open"\nbudget_s = 60\n'
OTHER = MINIMAL + '[trainer]\nconfig = "mine.py:TRAINER"\n'


@pytest.fixture
def bigram(tmp_path: Path) -> Path:
    for name in ("bigram.toml", "bigram_trainer.py"):
        shutil.copy(ASSETS / name, tmp_path)
    return tmp_path / "bigram.toml"


def test_the_kits_own_schema_knows_no_field_of_a_trainer() -> None:
    known = load_schema("recipe")["properties"]
    assert not {"model", "pretrain", "sft", "chat_eval"} & set(known)


def test_a_trainer_beside_the_recipe_brings_its_sections_and_rules(bigram: Path) -> None:
    recipe = load_recipe(str(bigram))
    assert recipe.section("bigram") == {"prior": 1}
    assert "pretrain" not in recipe.document
    assert recipe.facts == Facts(dtype="float32")
    assert recipe.trainer is not None
    assert recipe.trainer.flops_per_token(recipe.document, [0.0, 1.0], None) == [1.0, 1.0]
    for change, message in (
        ("prior = 1", "bigram.priro (line 15): no such field"),
        ("prior = 1", "did you mean `prior`? known here: prior"),
        ("[bigram]", "bigrams (line 14): no such field"),
    ):
        wrong = change.replace("prior = 1", "priro = 1").replace("[bigram]", "[bigrams]")
        text = bigram.read_text().replace(change, wrong)
        with pytest.raises(SchemaError) as caught:
            parse_recipe(text, folder=bigram.parent, run_code=True)
        assert message in caught.value.message


def test_recipes_show_prints_the_sections_of_the_recipes_own_trainer(bigram: Path) -> None:
    shown = CliRunner().invoke(cli, ["recipes", "show", str(bigram)])
    assert shown.exit_code == 0 and "[bigram]\nprior = 1" in shown.output
    assert "n_layer" not in shown.output
    schema = CliRunner().invoke(cli, ["recipes", "schema"]).output
    assert "\n[pretrain]" in schema and "Optimizer steps; 0: the horizon is time. (steps)" in schema


def test_code_beside_a_recipe_runs_only_for_a_caller_who_chose_to_run_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('this ran')")
    recipe = parse_recipe(OTHER + "[mine]\nx = 1\n", folder=tmp_path)
    assert recipe.trainer is None and recipe.facts == Facts()
    assert recipe.section("mine") == {"x": 1}
    with pytest.raises(SystemExit, match="this ran"):
        parse_recipe(OTHER, folder=tmp_path, run_code=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [("../mine.py:TRAINER", "is not a Python file in"), ("gone.py:TRAINER", "has no gone.py")],
)
def test_a_trainer_that_cannot_be_found_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises((SchemaError, PrerequisiteError), match=message):
        find_trainer(name, tmp_path)
    with pytest.raises(SchemaError, match="'nobody' is not installed"):
        parse_recipe(MINIMAL + '[trainer]\nconfig = "nobody"\n', folder=tmp_path)


def test_a_finished_run_may_have_fields_that_its_trainer_no_longer_knows() -> None:
    text = MINIMAL + "[pretrain]\nnum_steps = 5\nfield_of_last_year = 3\n"
    with pytest.raises(SchemaError, match="field_of_last_year"):
        parse_recipe(text, folder=Path())
    recipe = parse_recipe(text, folder=Path(), of_result=True)
    assert recipe.section("pretrain")["field_of_last_year"] == 3
    assert recipe.section("pretrain")["warmup_steps"] == 40
    assert recipe.facts.steps["pretrain"] == 5
    for wrong in ("[seed]\npolcy = 'fixed'\n", "[pretrain]\nnum_steps = 'many'\n"):
        with pytest.raises(SchemaError):
            parse_recipe(MINIMAL + wrong, folder=Path(), of_result=True)


def test_facts_that_a_trainer_cannot_make_are_an_error_of_the_recipe(bigram: Path) -> None:
    code = bigram.parent / "bigram_trainer.py"
    code.write_text(code.read_text().replace('{"dtype": "float32"}', 'recipe["pretrain"]["x"]'))
    with pytest.raises(SchemaError, match="cannot read its part of the recipe"):
        _ = load_recipe(str(bigram)).facts


def test_every_field_of_the_reference_has_one_sentence_a_default_and_a_range() -> None:
    trainer = find_trainer("reference", None)
    assert trainer is not None
    for section, schema in trainer.sections().items():
        for name, rule in schema["properties"].items():
            assert rule["description"].endswith("."), (section, name)
            assert "default" in rule, (section, name)
            json.dumps(rule)
            limited = {"minimum", "exclusiveMinimum", "items", "enum", "pattern"} & set(rule)
            free = rule.get("type") == "boolean"
            assert limited or free, (section, name)

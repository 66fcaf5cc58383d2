"""The committed studies and plans: recipes the kit accepts, figures the code prints."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("scipy")

from reference.config.model import ModelConfig
from reference.config.resolve import resolve_recipe
from reference.errors import TrainerError
from reference.lab.ablate import Place, open_study
from reference.lab.plan import shape
from reference.lab.plan_recipe import base_recipe
from reference.lab.study import load_study
from reference.model.cost import count_flops, count_parameters

ROOT = Path(__file__).parent.parent.parent
STUDIES = sorted((ROOT / "reference" / "studies").glob("*.toml"))
PLANS = ROOT / "reference" / "plans"


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_every_recipe_of_a_committed_study_is_right(file: Path, tmp_path: Path) -> None:
    study = load_study(file)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"not read")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "a.jsonl").write_bytes(b"not read")
    open_study(study, Place(tmp_path / "out", tmp_path / "data", None, "cpu", 1))
    assert study.name == file.stem
    assert len(study.arms) >= 3 and study.scales


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_the_baseline_has_none_of_the_levers_that_a_study_asks_about(file: Path) -> None:
    """A recipe may take a lever in after a study was built on it: its arm would ask nothing."""
    study = load_study(file)
    resolved = resolve_recipe(study.baseline)
    pairs = [
        (study.recipe(resolved, study.arms[0], scale), study.recipe(resolved, arm, scale), arm)
        for arm in study.arms[1:]
        for scale in study.scales
    ]
    for arm in study.arms[1:]:
        for path in arm.paths:
            section, field = path.split(".")
            assert any(
                base[section][field] != changed[section][field]
                for base, changed, of in pairs
                if of is arm
            ), (arm.name, path)


def test_the_cpu_study_plants_what_the_report_has_to_find() -> None:
    study = load_study(ROOT / "reference" / "studies" / "cpu-ladder.toml")
    assert len(study.arms) - 1 >= 8
    expected = {arm.name: arm.expect for arm in study.arms if arm.expect}
    assert expected == {"aa": "undecided", "adamw": "worse"}


@pytest.mark.parametrize("name", ["cpu-ladder", "gpu-ladder"])
def test_a_ladders_baseline_is_at_its_optimum_and_held_against_other_shapes(name: str) -> None:
    study = load_study(ROOT / "reference" / "studies" / f"{name}.toml")
    resolved = resolve_recipe(study.baseline)
    assert len(study.scales) >= 3
    assert study.scales[-1].budget > 10 * study.scales[0].budget
    for scale in study.scales:
        assert len(study.seeds_at(scale.name)) >= 3
        recipe = study.recipe(resolved, study.arms[0], scale)
        config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
        pretrain = recipe["pretrain"]
        tokens = pretrain["num_steps"] * pretrain["total_batch_size"]
        assert 7.9 <= tokens / count_parameters(config).scaling <= 12, scale.name
    shapes = {arm.name for arm in study.arms if {"model.n_embd", "model.n_layer"} & {*arm.paths}}
    assert {"shape-narrow", "shape-wide"} <= shapes


def test_a_change_may_differ_from_scale_to_scale(tmp_path: Path) -> None:
    file = ROOT / "reference" / "studies" / "cpu-ladder.toml"
    study, nano = load_study(file), resolve_recipe("nano")
    arm = next(arm for arm in study.arms if arm.name == "shape-wide")
    s, m = (study.recipe(nano, arm, scale) for scale in study.scales[:2])
    assert (s["model"]["n_layer"], s["model"]["n_embd"]) == (1, 48)
    assert (m["model"]["n_layer"], m["model"]["n_embd"]) == (2, 64)
    base = study.recipe(nano, study.arms[0], study.scales[0])
    assert s["pretrain"]["num_steps"] < base["pretrain"]["num_steps"]  # equal FLOPs, larger model
    assert arm.paths == ["model.n_embd", "model.n_layer"]
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(file.read_text().replace("[change.at.m]", "[change.at.mm]", 1))
    with pytest.raises(TrainerError, match="'mm': no such scale; there are s, m, l"):
        load_study(wrong)


def test_the_table_of_flops_is_the_codes_own() -> None:
    text = (PLANS / "FLOP_DETAILMENT.md").read_text()
    rows = re.findall(r"^\| d(\d+) \| (\d+) \| ([\d.]+) M \| ([\d.]+) \| ([\d.]+) \|", text, re.M)
    assert len(rows) == 7
    for depth, width, parameters, flops, causal in rows:
        config = shape(int(depth), 32768, 2048)
        count = count_flops(config)
        assert config.n_embd == int(width)
        assert f"{count_parameters(config).scaling / 1e6:.1f}" == parameters
        assert f"{count.nanochat / 1e9:.3f}" == flops
        assert f"{count.causal / 1e9:.3f}" == causal


def test_plans_name_files_that_exist() -> None:
    for page in PLANS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), (page, target)


def test_studies_and_base_recipes_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    for source, read in (
        (ROOT / "reference/studies/cpu-ladder.toml", lambda path: asdict(load_study(path))),
        (ROOT / "reference/recipes/smoke.toml", lambda path: base_recipe(str(path))),
    ):
        marked = tmp_path / source.name
        marked.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
        assert {**read(marked), "folder": 0} == {**read(source), "folder": 0}

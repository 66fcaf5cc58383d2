"""The committed studies and plans: recipes the kit accepts, figures the code prints."""

import re
from pathlib import Path

import pytest

pytest.importorskip("scipy")

from reference.estimate import count_flops, count_parameters
from reference.lab.ablate import Place, open_study
from reference.lab.plan import shape
from reference.lab.study import load_study

ROOT = Path(__file__).parent.parent.parent
STUDIES = sorted((ROOT / "reference" / "studies").glob("*.toml"))
PLANS = ROOT / "reference" / "plans"


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_every_recipe_of_a_committed_study_is_right(file: Path, tmp_path: Path) -> None:
    study = load_study(file)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"not read")
    open_study(study, Place(tmp_path / "out", tmp_path / "data", None, "cpu", 1))
    assert study.name == file.stem
    assert len(study.arms) >= 4 and len(study.scales) == 3


def test_the_cpu_study_plants_what_the_report_has_to_find() -> None:
    study = load_study(ROOT / "reference" / "studies" / "cpu-levers.toml")
    assert len(study.arms) - 1 >= 8 and len(study.seeds) == 3
    expected = {arm.name: arm.expect for arm in study.arms if arm.expect}
    assert expected["lr-x10"] == "worse" and expected["adamw-2e-3"] == "worse"


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
            assert (page.parent / target).exists(), (page, target)

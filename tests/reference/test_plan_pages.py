"""The figures of the plans are those of the commands."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

from benchmarks.plan_pages import BLOCKS, RECIPE_FOLDER, ROOT, Plans, pages, with_block
from kit.recipe import load_recipe
from kit.text_mix import text_mix
from reference.lab.commands import plan


@pytest.fixture(scope="module")
def plans() -> Plans:
    return Plans.make()


def test_no_page_is_out_of_date(plans: Plans) -> None:
    """Mended by `python -m benchmarks.plan_pages`."""
    for path, text in pages(plans).items():
        assert path.read_text() == text, path


def test_the_pages_figures_are_what_the_command_prints(plans: Plans) -> None:
    done = CliRunner().invoke(plan, ["--recipe", "reference", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    _, best, odds = plans.recipes["reference"]
    assert told["tokens"] == pytest.approx(best.tokens)
    assert told["hours"] == pytest.approx(best.hours)
    assert told["predicted"]["val_bpb"] == pytest.approx(best.val_bpb)
    assert odds is not None
    assert told["predicted"]["odds"]["median_core"] == pytest.approx(odds.median_core)


def test_the_anneal_part_of_plan_02_fits_the_reference_recipe(tmp_path: Path) -> None:
    page = (ROOT / "reference/plans/02-data-strategy-for-low-compute.md").read_text()
    example = textwrap.dedent(page.partition("```toml\n")[2].partition("```")[0])
    _, _, entries = example.partition("anneal = 0.2\n")
    text = (RECIPE_FOLDER / "reference.toml").read_text()
    path = tmp_path / "annealed.toml"
    path.write_text(text.replace("\nanneal = 0\n", "\nanneal = 0.2\n") + "\n" + entries)
    found = text_mix(load_recipe(str(path)).section("data"))
    assert [source.part for source in found.others] == ["anneal", "anneal"]
    assert found.others[0].skip >= found.main.shards


def test_a_page_without_its_marks_is_noticed() -> None:
    assert len({name for _, name in BLOCKS}) == len(BLOCKS)
    with pytest.raises(ValueError, match="marks of block x"):
        with_block("no marks", "x", "1")

"""The figures of the plans are those of the commands."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

from benchmarks.plan_pages import BLOCKS, Plans, pages, with_block
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


def test_a_page_without_its_marks_is_noticed() -> None:
    assert len({name for _, name in BLOCKS}) == len(BLOCKS)
    with pytest.raises(ValueError, match="marks of block x"):
        with_block("no marks", "x", "1")

"""V13 of a run whose model grew: its own work counts, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tamper

from kit.recipe import parse_recipe
from kit.verify import Report, verify_result

GROWTH = "growth_layers = [[0.0, 8], [0.995, 30]]"


def twice_as_fast(growth: str = GROWTH, *, flops: float | None = 1.0) -> tamper.Draft:
    """Its steps took half the time of a whole model's; `flops`: what it says of its work."""
    draft = tamper.gpu_run()
    tamper.scale(draft, 0.5, "twrsu")
    tamper.step_times(draft, 0.5)
    draft.recipe = draft.recipe.replace("[pretrain]\n", f"[pretrain]\n{growth}\n")
    recipe = parse_recipe(draft.recipe, folder=Path())
    assert recipe.trainer is not None
    vocabulary = draft.of("model")[0]["data"]["vocab_size"]
    [per_token] = recipe.trainer.flops_per_token(recipe.document, [0.0], vocabulary) or []
    for event in draft.of("step", "pretrain"):
        if flops is not None:
            event["data"]["flops"] = event["data"]["tokens"] * per_token * flops
    return draft


def v13(draft: tamper.Draft, folder: Path) -> Report:
    report = verify_result(draft.write(folder / "run"))
    assert report.of("V13")
    return report


def test_a_smaller_model_may_make_more_tokens_a_second(tmp_path: Path) -> None:
    found = v13(twice_as_fast(), tmp_path).of("V13")
    assert [finding.status for finding in found] == ["pass"]
    done, peak = map(float, re.findall(r"([\d.]+) (?:of|TFLOP/s)", found[0].message))
    assert 0.2 * peak < done < 0.8 * peak  # a 30-layer model would have needed more than there is


@pytest.mark.parametrize(
    ("growth", "flops", "message"),
    [
        # As fast, and most of the way as large as in the end.
        ("growth_layers = [[0.0, 27], [0.9, 30]]", None, "more work than the hardware can do"),
        (GROWTH, None, "the run's FLOPs are not those of the models it trained"),
        (GROWTH, 3.0, "the run's FLOPs are not those of the models it trained"),
    ],
)
def test_growth_hides_no_work_and_claims_none(
    tmp_path: Path, growth: str, flops: float | None, message: str
) -> None:
    found = v13(twice_as_fast(growth, flops=flops), tmp_path).of("V13")
    assert message in " ".join(f.message for f in found if f.status == "fail")

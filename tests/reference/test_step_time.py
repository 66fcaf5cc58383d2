"""The time model of a step: its arithmetic, its errors, and the command that prints them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from reference.commands import bench_train
from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.kernels import int8_rounding
from reference.model.step_time import (
    COMPILED,
    DESIGNS,
    INT8,
    INT8_BLOCK,
    RATES,
    Work,
    calibrate,
    leave_one_out,
    predict,
    predict_recipe,
    speed_points,
)

ROOT = Path(__file__).parents[2]
D20 = ModelConfig(49_152, n_layer=20, n_embd=1280, n_head=10, n_kv_head=10)
WORK = Work.of(D20, 4, 524_288)
ALL_INT8 = ("int8", "int8", "int8")


def rows_of(prediction):
    return {row.name: row for row in prediction.rows}


def test_each_published_speed_is_met_within_15_percent_by_a_fit_to_the_others() -> None:
    found = leave_one_out(speed_points())
    assert len(found) >= 8
    for point, speed in found:
        assert len(point.source) > 10
        assert speed == pytest.approx(point.tokens_per_s, rel=0.15), point.name
    assert 0.8 < calibrate(speed_points()) < 1.05


def test_the_fit_finds_the_share_that_made_the_points() -> None:
    made = [replace(p, tokens_per_s=p.predicted(0.8).tokens_per_s) for p in speed_points()]
    assert calibrate(made) == pytest.approx(0.8, abs=0.002)
    assert [speed for _, speed in leave_one_out(made)] == pytest.approx(
        [p.tokens_per_s for p in made], rel=1e-3
    )


def test_products_scale_with_arithmetic_and_the_rest_with_bandwidth() -> None:
    rates = RATES["rtx4090"]
    base = rows_of(predict(WORK, COMPILED, rates, 0.9))
    faster = rates._replace(bf16=2 * rates.bf16, fp8=2 * rates.fp8, int8=2 * rates.int8)
    wider = rates._replace(bandwidth=2 * rates.bandwidth)
    for name, row in base.items():
        by_rate = rows_of(predict(WORK, COMPILED, faster, 0.9))[name].us / max(row.us, 1e-9)
        by_width = rows_of(predict(WORK, COMPILED, wider, 0.9))[name].us / max(row.us, 1e-9)
        if row.bound == "arithmetic":
            assert (by_rate, by_width) == pytest.approx((0.5, 1.0)), name
        elif row.bound == "memory" and row.bytes:
            assert (by_rate, by_width) == pytest.approx((1.0, 0.5)), name
    assert base["block products"].flops == 6 * WORK.block_parameters


def test_larger_micro_batches_spread_the_cost_of_casts_sums_and_tables() -> None:
    small, large = (
        rows_of(predict(Work.of(D20, n, 524_288), COMPILED, RATES["rtx4090"], 0.9)) for n in (4, 8)
    )
    for name in ("weight casts", "gradient sums", "table gradients", "launch gaps"):
        assert large[name].us == pytest.approx(small[name].us / 2, rel=1e-6), name
    assert large["elementwise"].us == small["elementwise"].us


def test_each_step_of_fusion_predicts_more_tokens() -> None:
    rates, share = RATES["rtx4090"], calibrate(speed_points())
    unfused_loss = replace(COMPILED, loss=67.0, loss_chunk=2730)
    ways = [
        predict(WORK, unfused_loss, rates, share),
        predict(WORK, COMPILED, rates, share),
        predict(WORK, COMPILED, rates, share, kinds=ALL_INT8),
        predict(WORK, DESIGNS["fused"], rates, share, kinds=ALL_INT8, head=ALL_INT8),
    ]
    speeds = [way.tokens_per_s for way in ways]
    assert speeds == sorted(speeds)
    only_output = predict(WORK, COMPILED, rates, share, kinds=("int8", "bf16", "bf16"))
    assert ways[1].tokens_per_s < only_output.tokens_per_s < ways[2].tokens_per_s


def test_int8_products_pay_for_the_scales_of_their_blocks() -> None:
    """d20's blocks on an RTX 4090: by hand, 393 M weights, three products, 128 factors a scale."""
    row = rows_of(predict(WORK, INT8, RATES["rtx4090"], 0.9, kinds=ALL_INT8))["int8 scales"]
    cycles = 3 * WORK.block_parameters / 128 * 4 / 128  # of one multiprocessor
    assert row.us == pytest.approx(1e6 * cycles / (128 * 2.52e9), rel=0.01)
    assert rows_of(predict(WORK, INT8, RATES["rtx4090"], 0.9))["int8 scales"].us == 0
    assert INT8_BLOCK == int8_rounding.BLOCK


def test_a_recipes_switches_reach_the_model() -> None:
    from kit.recipe import load_recipe

    recipe = json.loads(json.dumps(load_recipe("reference").document))
    plain = predict_recipe(recipe).tokens_per_s
    recipe["pretrain"].update(matmul="int8", matmul_layers=["attention", "mlp", "head"])
    assert predict_recipe(recipe).tokens_per_s > plain
    recipe["pretrain"].update(matmul="bf16", fused_loss=False)
    assert predict_recipe(recipe).tokens_per_s < plain
    with pytest.raises(TrainerError, match="knows no card"):
        predict_recipe(recipe, "h100")


def test_the_command_says_that_it_predicts() -> None:
    arguments = ["--recipe", "reference", "--predict", "RTX 4090"]
    shown = CliRunner().invoke(bench_train, arguments)
    assert shown.exit_code == 0, shown.output
    assert "predicted, not measured" in shown.output and "block products" in shown.output
    unknown = CliRunner().invoke(bench_train, ["--recipe", "reference", "--predict", "voodoo2"])
    assert unknown.exit_code == 2 and "Known: rtx4090, rtx4070" in unknown.output
    told = json.loads(CliRunner().invoke(bench_train, [*arguments, "--json"]).output)
    assert told["predicted"] is True
    assert told["us_per_token"] == pytest.approx(sum(row["us"] for row in told["rows"]))
    speeds = [row["tokens_per_s"] for row in told["ladder"]]
    assert speeds == sorted(speeds)
    # The recipe stands on one of the rungs.
    assert any(speed == pytest.approx(told["tokens_per_s"], rel=1e-6) for speed in speeds)


def test_the_model_needs_no_torch() -> None:
    code = "import reference.model.step_time, sys; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

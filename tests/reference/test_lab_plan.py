"""Scaling laws against the published table they came from, against known laws, and the plan."""

import json
import math
import shlex
import xml.dom.minidom
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

from reference.errors import TrainerError
from reference.lab.cards import CARDS, find_card
from reference.lab.commands import plan
from reference.lab.figures import draw
from reference.lab.plan import Laws, Setting, candidates, choose, fit_laws, forecast, shape
from reference.lab.published_runs import Point, own_points, published_points
from reference.lab.scaling import fit_core, fit_loss, fit_optimum, isoflop_optima
from reference.model.cost import count_flops, count_parameters

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = next((ROOT / "submissions" / "2026" / "example").glob("*/result.json"))


@pytest.fixture(scope="module")
def laws() -> Laws:
    return fit_laws(published_points(), "climbmix", repeats=30)


def test_every_published_point_names_its_source_and_agrees_with_the_models_own_count() -> None:
    for point in published_points():
        assert len(point.source) > 10
        assert point.val_bpb or point.core
        if point.label.startswith(("run", "d22", "d14", "d26")):
            depth = {164.2e6: 14, 569.5e6: 22, 729.8e6: 24, 918.4e6: 26}[point.parameters]
            config = shape(depth, 32768, 2048)
            assert count_parameters(config).scaling == pytest.approx(point.parameters, rel=2e-3)
            flops = count_flops(config).nanochat * point.tokens
            assert flops == pytest.approx(point.flops, rel=0.04), point.label


@pytest.mark.parametrize("budget", [1e18, 2e18, 5e18, 1e19])
def test_the_published_optimum_is_reproduced(laws: Laws, budget: float) -> None:
    assert laws.optimum is not None
    published = next(p for p in published_points() if p.optimum and p.flops == budget)
    assert 9.9 < laws.optimum.ratio(budget) < 11.3
    product = published.parameters * published.tokens
    parameters = laws.loss.best_parameters(product)
    assert parameters == pytest.approx(published.parameters, rel=0.08)
    assert 9.5 < product / parameters**2 < 11.6


def test_the_published_losses_are_reproduced_within_what_separates_sources(laws: Laws) -> None:
    gaps = {
        p.label: laws.loss.loss(p.parameters, p.tokens, p.family) / p.val_bpb - 1
        for p in published_points()
        if p.val_bpb
    }
    odd = {label for label, gap in gaps.items() if abs(gap) > 0.006}
    # One source, read off another evaluation; the robust fit leaves it where it is.
    assert odd == {"d14"}
    assert float(np.median(np.abs(list(gaps.values())))) < 0.003


def test_the_published_core_values_are_reproduced_within_their_noise(laws: Laws) -> None:
    published = {p.label: p for p in published_points()}
    assert laws.core is not None
    for label, within in {"5.2 B tokens, 20 seeds": 0.002, "run 6, d24 ratio 8": 0.0025}.items():
        assert laws.core.core(published[label].flops) == pytest.approx(
            published[label].core, abs=within
        )
    assert laws.core.flops(0.256525) == pytest.approx(2.37e19, rel=0.06)


def test_a_known_law_is_found_again_in_spite_of_a_wild_point() -> None:
    rng = np.random.default_rng(1)
    points = []
    for N in np.geomspace(2e7, 1e9, 6):
        for ratio in (4, 10, 40):
            D = N * ratio
            loss = 0.5 + 20 * N**-0.25 + 50 * D**-0.27
            noisy = loss * math.exp(rng.normal(0, 5e-4))
            points.append(Point(f"{N}-{ratio}", "climbmix", "made", N, D, 7 * N * D, noisy))
    points[4] = Point("wild", "climbmix", "made", 1e8, 1e9, 7e17, 2.5)
    law = fit_loss(points)
    for point in points[:4] + points[5:]:
        assert law.loss(point.parameters, point.tokens, "climbmix") == pytest.approx(
            point.val_bpb, rel=4e-3
        )
    truth = (0.25 * 20 / (0.27 * 50)) ** (1 / 0.52) * (1e18 / 7) ** (0.27 / 0.52)
    assert law.best_parameters(1e18 / 7) == pytest.approx(truth, rel=0.15)


def test_isoflop_groups_give_the_vertex_of_their_parabola() -> None:
    points = [
        Point(f"{C}-{x}", "own", "", math.exp(x), C / (7 * math.exp(x)), C, 1 + (x - best) ** 2)
        for C, best in ((1e17, 16.0), (1e18, 17.2))
        for x in (best - 0.6, best - 0.1, best + 0.5)
    ]
    found = isoflop_optima(points)
    assert [math.log(N) for _, N, _ in found] == pytest.approx([16.0, 17.2], abs=1e-6)
    law = fit_optimum(points)
    assert law.exponent == pytest.approx(1.2 / math.log(10), rel=1e-3)


def test_an_isoflop_group_without_a_minimum_says_nothing() -> None:
    points = [Point(str(x), "own", "", math.exp(x), 1e9, 1e18, 1 - 0.1 * x) for x in (1, 2, 3)]
    assert isoflop_optima(points) == []


def test_too_few_points_are_refused() -> None:
    with pytest.raises(TrainerError, match="too few"):
        fit_loss(published_points()[:3])
    with pytest.raises(TrainerError, match="CORE"):
        fit_core(published_points()[:4], fit_loss(published_points()))


def test_a_day_of_each_card(laws: Laws) -> None:
    reached = {}
    for name in ("rtx3090", "rtx4090", "rtx5090", "h100"):
        card = CARDS[name]
        options = candidates(card, 24, laws, Setting(32768, 2048), vram_gib=card.vram_gib)
        best = choose(options)
        assert best.fits and best.vram_bytes < card.vram_gib * 2**30
        assert sum(best.hours.values()) == pytest.approx(24)
        reached[name] = best.core
    # The research's own arithmetic: .220 to .223 at 75 to 80 % of the peak.
    assert 0.215 < reached["rtx4090"] < 0.226
    assert reached["rtx3090"] < reached["rtx4090"] < reached["rtx5090"] < reached["h100"]


def test_less_memory_means_a_smaller_micro_batch_and_then_a_smaller_model(laws: Laws) -> None:
    setting = Setting(32768, 2048)
    card = CARDS["rtx4090"]
    roomy = choose(candidates(card, 24, laws, setting, vram_gib=24))
    tight = choose(candidates(card, 24, laws, setting, vram_gib=8))
    assert tight.device_batch_size <= roomy.device_batch_size
    assert tight.parameters < roomy.parameters
    with pytest.raises(TrainerError, match="no depth fits"):
        choose(candidates(card, 24, laws, setting, vram_gib=0.1))


def test_the_forecast_holds_its_own_prediction(laws: Laws) -> None:
    card = CARDS["rtx4090"]
    best = choose(candidates(card, 24, laws, Setting(32768, 2048), vram_gib=24))
    expected = forecast(best, laws)
    assert expected.val_bpb.low < best.val_bpb < expected.val_bpb.high
    assert expected.core_run.low < best.core < expected.core_run.high
    assert expected.core_run.high - expected.core_run.low > 4 * 0.005


def test_names_of_cards_are_read_as_people_write_them() -> None:
    assert find_card("NVIDIA GeForce RTX 4090") is CARDS["rtx4090"]
    with pytest.raises(TrainerError, match="no card 'voodoo2'"):
        find_card("voodoo2")


def test_the_command_writes_a_recipe_the_kit_accepts_and_a_page(tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    done = CliRunner().invoke(plan, ["--hours", "4", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    from kit.recipe import load_recipe

    recipe = load_recipe(str(out)).document
    assert recipe["model"]["n_layer"] == told["model"]["n_layer"]
    assert recipe["budget_s"] == 4 * 3600
    assert told["predicted"]["core_one_run_95"][0] < told["predicted"]["core"]
    page = out.with_suffix(".html").read_text()
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    for svg in page.split("<svg")[1:]:
        xml.dom.minidom.parseString("<svg" + svg.split("</svg>")[0] + "</svg>")


def test_a_run_folder_becomes_a_point() -> None:
    [point] = own_points([EXAMPLE])
    assert point.family == "own"
    assert point.tokens == 1_228_800
    assert point.val_bpb == pytest.approx(1.9796, abs=1e-4)
    assert point.core is None, "a capped evaluation is no CORE"


def test_own_runs_get_a_factor_of_their_own(laws: Laws) -> None:
    published = published_points()
    own = [
        Point(
            f"own {N}",
            "own",
            "",
            N,
            10 * N,
            70 * N * N,
            1.1 * laws.loss.loss(N, 10 * N, "climbmix"),
        )
        for N in (5e7, 1e8, 2e8)
    ]
    law = fit_loss(published + own)
    assert law.factors["own"] == pytest.approx(1.1, rel=5e-3)


def test_a_wrong_bench_file_is_explained(tmp_path: Path) -> None:
    wrong = tmp_path / "bench.json"
    wrong.write_text("[]")
    done = CliRunner().invoke(plan, ["--bench", str(wrong), "--no-files"])
    assert done.exit_code == 2
    assert "bench train" in done.output


def test_a_figure_escapes_hostile_titles() -> None:
    svg = draw("<script>alert(1)</script> \\g<0>", "d", lambda axes: axes.plot([1, 2]))
    assert "<script" not in svg
    assert "\\g&lt;0&gt;" in svg


def test_the_line_in_a_recipe_writes_it_again(tmp_path: Path) -> None:
    bench, out = tmp_path / "my bench.json", tmp_path / "mine.toml"
    bench.write_text('{"tokens_per_s": 4000, "recipe": "nano", "device": "cpu"}')
    options = ["--bench", str(bench), "--base", "nano", "--hours", "0.5", "--out", str(out)]
    assert CliRunner().invoke(plan, options).exit_code == 0
    written = out.read_text()
    words = shlex.split(written.split("`")[1])
    assert words[:2] == ["n4090-kit", "plan"] and len(words) == 2 + len(options)
    out.unlink()
    assert CliRunner().invoke(plan, words[2:]).exit_code == 0
    assert out.read_text() == written


def test_a_measured_cpu_gets_a_plan_of_its_own(tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text('{"tokens_per_s": 4000, "recipe": "nano", "device": "cpu"}')
    options = ["--bench", str(bench), "--base", "nano", "--hours", "0.5", "--no-files", "--json"]
    done = CliRunner().invoke(plan, options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["card"]["name"] == "cpu"
    whole = told["card"]["flops_per_s"] * 3600 * told["hours"]["pretrain"]
    assert 0.85 * whole < told["flops"] < whole, "evaluations take a part of it"
    assert any("extrapolation" in note for note in told["notes"])


def test_a_plan_for_a_cpu_leaves_out_products_that_are_only_emulated_there(tmp_path: Path) -> None:
    from reference.lab.plan_recipe import base_recipe

    base = tmp_path / "base.toml"
    base.write_text('[pretrain]\nmatmul = "int8"\nhours = 1\n')
    assert base_recipe(str(base))["pretrain"]["matmul"] == "int8"
    assert base_recipe(str(base), "cpu")["pretrain"] == {"hours": 1}
    base.write_text("pretrain = 3\n")
    assert base_recipe(str(base), "cpu") == {"pretrain": 3}


@pytest.mark.parametrize("hours", ["0.3", "1", "2"])
def test_a_short_plan_leaves_out_depths_that_have_no_time_to_train(
    tmp_path: Path, hours: str
) -> None:
    out = tmp_path / "mine.toml"
    done = CliRunner().invoke(plan, ["--hours", hours, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.with_suffix(".html").is_file()

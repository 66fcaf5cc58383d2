"""Short runs of every lever and of every pair that touches; kernels, plots and commands."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
from click.testing import CliRunner
from support.tiny_training import BENCH, tiny_recipe

import reference.bench.commands
from reference.bench.kernels import bench_attention, bench_matmuls, nanochat_config
from reference.bench.levers import LEVERS, bench_levers, measure, with_lever
from reference.bench.plots import plot_kernels, plot_levers, plot_training
from reference.bench.trial_run import trial_run
from reference.errors import TrainerError

RECIPE = tiny_recipe(**BENCH, scale_lr=False, warmup_steps=0)
GPU_ONLY = {
    "attention flex",
    "attention flex, small tiles",
    "attention varlen",
    "attention fa2",
    "attention fa3",
}


def pulled(*names):
    changed = copy.deepcopy(RECIPE)
    for name in names:
        changed = with_lever(changed, name)
        assert not isinstance(changed, str), (name, changed)
    return changed


def test_every_lever_runs_or_says_why_not():
    names = [name for name in LEVERS if name != "no compiling"]
    rows = {row["lever"]: row for row in bench_levers(RECIPE, device="cpu", steps=2, names=names)}
    assert set(rows) == {"recipe", *names}
    assert rows["recipe"]["speed"] == 1.0
    for name, row in rows.items():
        if name in GPU_ONLY:
            assert "needs a GPU" in row["reason"], name
            continue
        assert row["reason"] is None, (name, row["reason"])
        assert row["loss_first"] == pytest.approx(math.log(320), abs=0.5), name
        assert math.isfinite(row["loss_last"]) and row["tokens_per_s"] > 0 and row["speed"] > 0
    # What only moves bytes or time leaves the losses where they are.
    for name in ("all logits at once", "no read-ahead", "compiled optimizer", "deterministic"):
        assert rows[name]["loss_last"] == pytest.approx(rows["recipe"]["loss_last"], rel=1e-4)
    for name in ("fp8", "int8", "tied", "swiglu", "batch ramp", "one key head"):
        assert rows[name]["loss_last"] != rows["recipe"]["loss_last"], name
    assert "fastest needs a GPU's clock" in rows["fastest factors"]["notes"][0]
    assert any("explicit mask" in note for note in rows["documents apart"]["notes"])
    json.dumps(list(rows.values()))


TOUCHING = [
    *itertools.product(("fp8", "fp8, rows", "int8"), ("tied", "tied for two thirds", "swiglu",
                       "length ramp", "one key head", "narrower MLP")),
    *itertools.combinations(("length ramp", "window ramp", "batch ramp", "documents apart"), 2),
    ("tied", "factored second moment"), ("tied for two thirds", "factored second moment"),
    ("tied", "all logits at once"), ("tied for two thirds", "batch ramp"),
    ("bf16 momentum", "soap"), ("soap muon", "batch ramp"), ("bf16 momentum", "swiglu"),
    ("length ramp", "deterministic"),
]  # fmt: skip


@pytest.mark.parametrize("pair", TOUCHING, ids=" + ".join)
def test_levers_that_touch_work_together(pair):
    run = trial_run(pulled(*pair), device="cpu", steps=6, warmup=0)
    assert all(math.isfinite(loss) for loss in run.losses)
    assert run.losses[0] == pytest.approx(math.log(320), abs=0.5)
    fresh = math.log(320)  # on text never seen, learning shows later than this: it must not blow up
    assert max(run.losses) < fresh + 0.3 and len(set(run.losses)) == 6


def test_ramps_are_passed_through_and_the_last_part_is_back_in_bf16():
    recipe = pulled("length ramp", "batch ramp", "fp8")
    recipe["pretrain"]["matmul_until"] = 0.5
    run = trial_run(recipe, device="cpu", steps=6, warmup=0)
    assert run.tokens == [64, 64, 64, 128, 128, 128]
    alone = pulled("length ramp", "batch ramp")
    other = trial_run(alone, device="cpu", steps=6, warmup=0)
    assert run.losses != other.losses
    assert run.wait_s and all(wait >= 0 for wait in run.wait_s)


def test_a_run_that_cannot_be_is_a_reason_not_a_crash(monkeypatch):
    for error, reason in (
        (
            torch.OutOfMemoryError("CUDA out of memory\nmore"),
            "OutOfMemoryError: CUDA out of memory",
        ),
        (AttributeError(), "AttributeError: "),
        (TrainerError("bad_input", "no such kernel here"), "no such kernel here"),
    ):

        def broken(*_, error=error, **__):
            raise error

        monkeypatch.setattr("reference.bench.levers.trial_run", broken)
        assert measure(RECIPE, device="cpu", steps=1) == {"reason": reason}
    assert with_lever(pulled("fp8"), "fp8") == "the recipe has it already"
    odd = copy.deepcopy(RECIPE)
    odd["model"].update(n_head=1, n_kv_head=1)
    assert with_lever(odd, "half the key heads") == "does not divide this recipe's sizes"


def test_a_lever_that_fails_leaves_nothing_compiled_to_the_next_one(monkeypatch):
    """Dynamo failed at the recompile after a lever, and that error ended the whole table."""
    code = []

    def compiled_run(*_, **__):
        def double(x):
            return 2 * x

        torch.compile(double, backend="eager")(torch.ones(2))
        code.append(double.__code__)
        raise AttributeError("Dynamo's own")

    monkeypatch.setattr("reference.bench.levers.trial_run", compiled_run)
    rows = bench_levers(RECIPE, device="cpu", steps=1, names=["fp8", "tied"])
    assert [row["reason"] for row in rows] == ["AttributeError: Dynamo's own"] * 3
    entries = torch._dynamo.eval_frame._debug_get_cache_entry_list
    assert len(code) == 3 and not any(entries(each) for each in code)


def test_kernels_are_timed_in_three_products_and_four_kinds(monkeypatch):
    monkeypatch.setattr(
        "reference.bench.kernels.map_shapes", lambda config: {"up": (64, 32), "down": (32, 64)}
    )
    cpu = torch.device("cpu")
    rows = list(bench_matmuls([2], tokens=32, device=cpu))
    assert len(rows) == 2 * 3 * 4
    for row in rows:
        assert row["ms"] > 0, row["reason"]
        assert row["tflops"] == pytest.approx(2e-9 * 64 * 32 * 32 / row["ms"])
    assert {row["speed"] for row in rows if row["kind"] == "bf16"} == {1.0}
    assert len(list(bench_matmuls([2], tokens=32, device=cpu, enough=lambda: True))) == 0
    shapes = [nanochat_config(depth) for depth in (12, 14, 24)]
    assert [(c.n_embd, c.n_head, c.head_dim) for c in shapes] == [
        (768, 6, 128), (896, 7, 128), (1536, 12, 128),
    ]  # fmt: skip


def test_attention_backends_are_listed_with_reasons():
    rows = list(bench_attention([2], batch=1, seq_len=256, device=torch.device("cpu")))
    reasons = {(row["window"], row["backend"]): row["reason"] for row in rows}
    assert reasons[128, "blocks"] is None and reasons[256, "sdpa"] is None
    assert reasons[128, "fa3"] == reasons[256, "cudnn"] == "needs a GPU"
    assert sum(row["chosen"] for row in rows) == 2


def test_the_commands_print_tables_json_and_plots(monkeypatch, tmp_path):
    monkeypatch.setattr(
        reference.bench.commands, "resolve_recipe", lambda name: copy.deepcopy(RECIPE)
    )
    monkeypatch.setattr("reference.bench.kernels.map_shapes", lambda config: {"up": (64, 32)})
    run = CliRunner().invoke
    levers = ["--lever", "fp8", "--lever", "attention fa2", "--steps", "2", "--device", "cpu"]
    done = run(reference.bench.commands.bench_levers, [*levers, "--plot", tmp_path / "l.svg"])
    assert done.exit_code == 0, done.output
    assert "fp8" in done.output and "needs" in done.output
    done = run(reference.bench.commands.bench_levers, [*levers, "--json", "--vram-cap", "24"])
    document = json.loads(done.output[done.output.index("{") :])
    assert [row["lever"] for row in document["rows"]] == ["recipe", "fp8", "attention fa2"]
    assert run(reference.bench.commands.bench_levers, ["--lever", "warp"]).exit_code == 2
    kernels = ["--depths", "2", "--tokens", "64", "--seq-len", "64", "--device", "cpu"]
    done = run(
        reference.bench.commands.bench_kernels, [*kernels, "--plot", tmp_path / "k.svg", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.output)["products"]) == 12
    done = run(reference.bench.commands.bench_kernels, kernels)
    assert "against bf16" in done.output and "fastest" in done.output
    assert run(reference.bench.commands.bench_kernels, ["--depths", "x"]).exit_code == 2
    for name in ("l.svg", "k.svg"):
        assert "<svg" in (tmp_path / name).read_text()


def test_plots_are_drawn_from_the_rows_that_ran(tmp_path):
    pytest.importorskip("matplotlib")
    row = {"lever": "recipe", "reason": None, "speed": 1.0, "peak_bytes": None,
           "planned_bytes": 1 << 30, "loss_last": 3.0}  # fmt: skip
    missing = {"lever": "fa2", "reason": "needs a GPU", "speed": None}
    plot_levers([row, {**row, "lever": "fp8", "speed": 1.3}, missing], tmp_path / "a.png")
    plot_training({"recipe": "x", "step_ms": {"ours": [1.0, 2.0]}}, tmp_path / "b.svg")
    product = {"depth": 12, "map": "up", "which": "forward", "kind": "fp8", "tflops": 1.0}
    plot_kernels([product, {**product, "kind": "int8", "tflops": None}], tmp_path / "c.pdf")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.svg", "c.pdf"))

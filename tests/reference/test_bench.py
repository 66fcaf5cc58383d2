"""The benchmark measures what it says, on the same work for both trainers."""

from __future__ import annotations

import itertools
import json
import sys
import time
import weakref

import pytest
import torch
from click.testing import CliRunner
from support.tiny_training import BENCH, tiny_recipe

import reference.bench.train
import reference.commands
import reference.train.step
from reference.bench.train import bench_training, nearest_rank, twin_fits
from reference.model.gpt import GPT, ModelConfig
from reference.train.loop import TrainState
from reference.train.step import has_cpp_compiler, maybe_compile

RECIPE = tiny_recipe(**BENCH)


def test_both_trainers_start_from_the_same_loss_and_are_timed_step_by_step():
    result = bench_training(RECIPE, steps=4)
    assert result["loss_first"] == pytest.approx(result["plain_loss_first"], rel=1e-5)
    assert (result["tokens_per_step"], result["micro_batches"]) == (128, 2)
    assert result["tokens_per_s"] == pytest.approx(128 / result["step_ms_median"] * 1e3)
    ratio = result["plain"]["step_ms_median"] / result["step_ms_median"]
    assert result["ratio_vs_plain"] == pytest.approx(ratio)
    assert result["mfu_nanochat"] is None and result["mfu_reason"] == "a GPU figure"
    assert 0 <= result["outside_steps_s"] < 1
    assert 0 <= result["wait_share"] < 1 and result["planned_memory_bytes"] is None
    assert result["peak_memory_bytes"] > 1 << 20
    assert not result["compiled"] and result["compile_s"] == 0.0
    json.dumps(result)


def test_a_twin_that_takes_this_trainers_memory_is_dropped_and_the_steps_timed_again(monkeypatch):
    """Otherwise the trainer's own speed would be that of halved micro-batches."""
    twins, parts = [], []
    make, make_step = reference.bench.train.plain_trainer, reference.train.step.train_step

    def noted_twin(*arguments):
        twin = make(*arguments)
        twins.append(weakref.ref(twin))
        return twin

    def crowded_step(*arguments, **options):
        if options["parts"] == 1 and twins and twins[0]() is not None:
            next(iter(arguments[2]))
            raise torch.OutOfMemoryError("CUDA out of memory")
        parts.append(options["parts"])
        return make_step(*arguments, **options)

    monkeypatch.setattr(reference.bench.train, "plain_trainer", noted_twin)
    monkeypatch.setattr(reference.train.step, "train_step", crowded_step)
    result = bench_training(RECIPE, steps=3)
    assert result["plain"] is None and "does not fit" in result["plain_reason"]
    assert result["micro_batch_parts"] == 1 and len(result["step_ms"]["ours"]) == 3
    assert parts[-5:] == [1] * 5, "two untimed steps and three, each micro-batch whole"


def test_a_twin_that_runs_out_of_memory_leaves_its_memory_to_this_trainer(monkeypatch):
    freed = []

    class Twin:
        def __call__(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        def __del__(self):
            freed.append(True)

    monkeypatch.setattr(reference.bench.train, "plain_trainer", lambda *_: Twin())
    draw = reference.bench.train._drawer

    def watched(*arguments):
        made, calls = draw(*arguments), itertools.count()
        return lambda: (
            (next(calls) == 0 or freed or pytest.fail("the twin is still there")) and (made())
        )

    monkeypatch.setattr(reference.bench.train, "_drawer", watched)
    result = bench_training(RECIPE, steps=2)
    assert result["plain"] is None and "does not fit" in result["plain_reason"] and freed


def test_a_twin_needs_twelve_bytes_a_weight_beside_the_trainers_own_peak(monkeypatch):
    weights = {"a": torch.empty(1000), "b": torch.empty(24, 1000)}
    monkeypatch.setattr(reference.bench.train, "memory_limit_bytes", lambda *_: 1_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (500_000, 2_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 400_000)
    device = torch.device("cuda")
    assert twin_fits(weights, 600_000, device, 0.0)
    assert not twin_fits(weights, 600_001, device, 0.0), "900,000 bytes are free or our own"
    assert twin_fits(weights, None, torch.device("cpu"), 0.0)


def test_time_lost_between_steps_and_slow_steps_show(monkeypatch):
    draw = reference.bench.train._drawer

    def slow_drawer(*args):
        inner = draw(*args)

        def slow():
            time.sleep(0.05)
            return inner()

        return slow

    real_step = TrainState.step

    def slow_step(*args):
        time.sleep(0.03)
        return real_step(*args)

    monkeypatch.setattr(reference.bench.train, "_drawer", slow_drawer)
    monkeypatch.setattr(TrainState, "step", slow_step)
    result = bench_training(RECIPE, steps=3, compare=False)
    assert result["outside_steps_s"] > 5 * 0.05
    assert result["step_ms_median"] > 30
    assert result["ratio_vs_plain"] is None and result["plain_reason"] == "not asked for"


def test_p99_is_the_nearest_rank():
    assert nearest_rank([float(i) for i in range(1, 201)], 0.99) == 198.0
    assert nearest_rank([3.0, 1.0], 0.99) == 3.0
    assert nearest_rank([7.0], 0.99) == 7.0


def test_the_command_prints_a_table_and_json(monkeypatch):
    monkeypatch.setattr("reference.config.resolve.resolve_recipe", lambda name: RECIPE)
    args = ["--recipe", "tiny", "--steps", "2", "--device", "cpu"]
    done = CliRunner().invoke(reference.commands.bench_train, [*args, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["recipe"] == "tiny"
    table = CliRunner().invoke(reference.commands.bench_train, args)
    assert "speed against plain" in table.output
    assert "MFU, nanochat's count" in table.output


def test_help_imports_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; import reference.commands as c;"
        "assert CliRunner().invoke(c.bench_train, ['--help']).exit_code == 0;"
        "sys.exit('torch' in sys.modules)"
    )
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_auto_compiles_on_a_cpu_only_long_runs_with_a_compiler(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    model = GPT(ModelConfig.from_recipe(RECIPE["model"], 64))
    monkeypatch.setattr("reference.train.step.has_cpp_compiler", lambda: True)
    assert not maybe_compile(model, "auto", "cpu", tokens=1e6)
    assert maybe_compile(model, "auto", "cpu", tokens=1e12)
    assert len(compiled) == 2
    monkeypatch.setattr("reference.train.step.has_cpp_compiler", lambda: False)
    assert not maybe_compile(model, "auto", "cpu", tokens=1e12)
    assert not maybe_compile(model, "off", "cuda")
    assert maybe_compile(model, "auto", "cuda")


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    # The compiler looks at every input's .grad when it guards them.
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
def test_compiled_blocks_compute_the_same():
    result = bench_training(RECIPE, steps=1, compile_setting="on")
    assert result["compiled"] and result["compile_s"] > 0
    assert result["loss_first"] == pytest.approx(result["plain_loss_first"], rel=1e-5)

"""Our Triton kernels, which a CPU environment cannot import: their results, and what they take."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from nullgpu_runs import INSIDE, NullDevice

from reference.model.step_time import SCALE_OPERATIONS

pytestmark = pytest.mark.gpuless
REGISTERS, SHARED_BYTES = 65_536, 101_376  # of an Ada multiprocessor, and of one block there


@pytest.mark.parametrize("name", ["loss", "int8_loss", "int8_rounding", "table_gradient"])
def test_interpreted_kernels_equal_the_formulas(null_gpu: NullDevice, tmp_path, name: str):
    script = INSIDE / f"interpreted_{name}.py"
    null_gpu.run(script, log=tmp_path / "log", TRITON_INTERPRET="1")


def test_compiled_kernels_fit_a_multiprocessor_and_spill_nothing(null_gpu: NullDevice, tmp_path):
    done = null_gpu.run(INSIDE / "compiled_kernels.py", log=tmp_path / "log")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    names = Counter(one["kernel"] for one in found)
    assert names == {"loss_kernel": 2, "gradient_kernel": 1, "tile_kernel": 2, "block_mm_kernel": 5}
    for one in found:
        assert one["stack"] == 0, f"registers are spilled: {one}"
        assert one["threads"] * one["registers"] <= REGISTERS, one
        assert one["shared"] <= SHARED_BYTES, one
        if one["kernel"] == "block_mm_kernel":
            assert one["int8_mma"], one
            # What the time model counts for the scales of blocks, and the sum added to at the end.
            assert one["conversions"] == 0, one
            assert one["threads"] * one["operations"] == (SCALE_OPERATIONS + 1) * one["tile"], one
        if one["kernel"] == "loss_kernel":
            assert one["registers"] <= 128, "two programs of 256 threads fit a multiprocessor"

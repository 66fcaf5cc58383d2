"""Whole optimizer steps on the null device: what runs, what waits, and how much memory it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nullgpu_eager import eager_kernels, more_than_expected
from nullgpu_runs import Log, NullDevice

from reference.model.step_time import INT8, OURS

GIB = 2**30
PLAN_TOLERANCE = 0.07
# Microseconds are lost where the host waits for the device. Within a step it does so once, to read
# the loss; torch's allocator waits when it returns memory, which a step in its stride never does.
WAITS = {"cudaStreamSynchronize": 1}

D12 = {"depth": 12, "pretrain": {"device_batch_size": 16, "total_batch_size": 65536}}
REFERENCE = {"recipe": "reference", "pretrain": {"total_batch_size": 16384}}

# The most eager kernels over a whole activation, in a step of two micro-batches of 12 layers. One
# more of a kind is a kernel that was fused before, or one that nobody has looked at.
EAGER = {
    "add": 35,
    "mul": 16,
    "fill": 15,
    "rows of a table": 14,
    "norm": 8,
    "copy": 6,
    "neg": 2,
}


def check(found: dict[str, Any], whole: Log, step: Log) -> None:
    """What has to hold for every step that is compiled."""
    assert not whole.of("refused"), whole.of("refused")[:3]
    assert not found["breaks"], found["breaks"]
    assert found["graphs"][0] > 0 and found["graphs"][1] == 0
    assert found["parts"] == 1 and not whole.of("oom")
    launches = step.count("launch")
    assert launches, "the step launched no kernel"
    assert any(name.startswith("triton_") for name in launches)
    for name, count in step.count("sync").items():
        assert count <= WAITS.get(name, 0), (name, count)


def check_peak(found: dict[str, Any]) -> None:
    peak, planned = found["peak_bytes"], found["planned_bytes"]
    assert abs(peak / planned - 1) < PLAN_TOLERANCE, (
        f"peak {peak / GIB:.2f} GiB, planned {planned / GIB:.2f} GiB"
    )


@pytest.mark.gpuless
def test_d12_in_bf16(null_gpu: NullDevice, tmp_path):
    found, whole, step = null_gpu.step(tmp_path, "d12", with_pretrain(D12, attention="varlen"))
    check(found, whole, step)
    check_peak(found)
    kernels = eager_kernels(step, 16 * 2048 * 768)
    assert not more_than_expected(kernels, EAGER), kernels
    assert {types for *_, types, _, _ in step.of("gemm")} <= {"bf16 bf16 bf16", "bf16 bf16 f32"}


@pytest.mark.gpuless
def test_reference_fits_the_card_beside_a_desktop(null_gpu: NullDevice, tmp_path):
    """d20 at the recipe's own micro-batch, with 1 GiB of the card's 23.6 taken."""
    spec = with_pretrain(REFERENCE, attention="varlen")
    found, whole, step = null_gpu.step(tmp_path, "reference", spec, CUDA_NULL_TAKEN_MIB="1024")
    check(found, whole, step)
    check_peak(found)
    assert found["micro_batch"] == 4
    assert found["reserved_bytes"] < 22.1 * GIB


# 8-bit products to the end, as a resumed run takes them: their trial has tests of its own.
EIGHT_BIT = {"attention": "varlen", "matmul_until": 1.0}


def check_eight_bit(null_gpu: NullDevice, folder: Path, spec: dict[str, Any], kind: str) -> None:
    spec = {**with_pretrain(spec, **EIGHT_BIT, matmul=kind), "decided": True}
    found, whole, step = null_gpu.step(folder, kind, spec)
    check(found, whole, step)
    check_peak(found)
    factors = {types.split()[0] for *_, types, _, _ in step.of("gemm")}
    if kind == "int8":
        assert any("int8" in name for name in step.count("launch")), sorted(step.count("launch"))
    else:
        assert factors & {"e4m3", "e5m2"}, factors


@pytest.mark.gpuless
def test_d12_in_int8(null_gpu: NullDevice, tmp_path):
    check_eight_bit(null_gpu, tmp_path, D12, "int8")


@pytest.mark.gpuless_full
@pytest.mark.parametrize("depth", ["d12", "reference"])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_8_bit_products(null_gpu: NullDevice, tmp_path, depth, kind):
    check_eight_bit(null_gpu, tmp_path, D12 if depth == "d12" else REFERENCE, kind)


@pytest.mark.gpuless_full
@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_a_micro_step_launches_as_many_kernels_as_the_time_model_counts(
    null_gpu: NullDevice, tmp_path, kind
):
    """The difference between steps of two and of four micro-steps; products are launches, too."""
    launched = {}
    for micro_steps in (2, 4):
        changes = {**EIGHT_BIT, "matmul": kind, "total_batch_size": micro_steps * 4 * 2048}
        spec = {**with_pretrain(REFERENCE, **changes), "decided": True}
        _, _, step = null_gpu.step(tmp_path, f"{kind}{micro_steps}", spec)
        launched[micro_steps] = step.count("launch").total() + len(step.of("gemm"))
    design = INT8 if kind == "int8" else OURS
    counted = (launched[4] - launched[2]) / 2
    assert counted == pytest.approx(20 * design.launches, rel=0.05)


@pytest.mark.gpuless
def test_a_card_that_is_partly_filled_halves_the_micro_batch(null_gpu: NullDevice, tmp_path):
    """The real allocator refuses while the blocks are compiled, and the run goes on in pieces."""
    spec = {**with_pretrain(D12, attention="varlen"), "decided": True}
    found, whole, step = null_gpu.step(tmp_path, "filled", spec, CUDA_NULL_TAKEN_MIB="11264")
    assert found["parts"] == 2 and found["micro_batch"] == 16
    assert whole.of("oom") and not step.of("oom")
    assert any("out of memory" in note for note in found["notes"])
    assert found["graphs"][1] == 0, "the pieces are compiled before the first step too"


@pytest.mark.gpuless_full
@pytest.mark.parametrize(
    "change",
    [
        {"fused_loss": False},
        {"factored_second_moment": True},
        {"momentum_dtype": "bfloat16"},
        {"document_mask": True},
    ],
    ids=str,
)
def test_a_switch_that_moves_memory(null_gpu: NullDevice, tmp_path, change):
    spec = {**with_pretrain(D12, attention="varlen", **change), "decided": True}
    found, whole, step = null_gpu.step(tmp_path, "switch", spec)
    check(found, whole, step)
    check_peak(found)


def with_pretrain(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**spec, "pretrain": {**spec["pretrain"], **changes}}

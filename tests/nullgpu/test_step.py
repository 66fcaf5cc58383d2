"""Whole optimizer steps on the null device: what runs, what waits, and how much memory it takes."""

from __future__ import annotations

from typing import Any

import pytest
from nullgpu_runs import Log, NullDevice

GIB = 2**30
PLAN_TOLERANCE = 0.07
# Microseconds are lost where the host waits for the device. Within a step it does so once, to read
# the loss; torch's allocator waits when it returns memory, which a step in its stride never does.
WAITS = {"cudaStreamSynchronize": 1}

D12 = {"depth": 12, "pretrain": {"device_batch_size": 16, "total_batch_size": 65536}}
REFERENCE = {"recipe": "reference", "pretrain": {"total_batch_size": 16384}}


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


def with_pretrain(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**spec, "pretrain": {**spec["pretrain"], **changes}}

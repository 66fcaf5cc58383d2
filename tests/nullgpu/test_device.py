"""The null device refuses what a driver refuses, and its memory ends where the card's does."""

from __future__ import annotations

import json

import pytest
from nullgpu_runs import Log, NullDevice

pytestmark = pytest.mark.gpuless

TORCH = """
import json, torch, triton, triton.language as tl, ctypes
found = {"name": torch.cuda.get_device_name(), "count": torch.cuda.device_count()}
x = torch.zeros((64, 64), device="cuda").to(torch.float8_e4m3fn)
one = torch.ones((), device="cuda")
torch._scaled_mm(x, x.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
def refused(work):
    try:
        work()
        torch.cuda.synchronize()
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
e5m2 = x.float().to(torch.float8_e5m2)
found["two e5m2 factors"] = refused(lambda: torch._scaled_mm(
    e5m2, e5m2.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16))
found["too much memory"] = refused(lambda: torch.empty(200 << 30, dtype=torch.uint8, device="cuda"))
torch.cuda.empty_cache()
free, total = torch.cuda.mem_get_info()
held = torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda")
found["free"], found["total"] = free, total
found["last bytes"] = refused(lambda: torch.empty(128 << 20, dtype=torch.uint8, device="cuda"))
print(json.dumps(found))
"""

KERNEL = """
import json, sys, torch, triton, triton.language as tl

@triton.jit
def product(a, b, c, K, M: tl.constexpr, N: tl.constexpr, B: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, B)
    total = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, K, B):
        x = tl.load(a + rows[:, None] * K + start + inner[None, :])
        y = tl.load(b + (start + inner)[:, None] * N + columns[None, :])
        total = tl.dot(x, y, total)
    tl.store(c + rows[:, None] * N + columns[None, :], total)

found = {}
for stages in (2, 5):
    a, b = (torch.zeros((128, 512), device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.zeros((128, 128), device="cuda")
    try:
        kernel = product[(1,)](a, b, c, 512, 128, 128, 64, num_stages=stages, num_warps=8)
        found[str(stages)] = kernel.metadata.shared
    except Exception as error:
        found[str(stages)] = type(error).__name__
print(json.dumps(found))
"""


def test_pytorch_sees_the_card_and_its_refusals(null_gpu: NullDevice, tmp_path):
    log = tmp_path / "log"
    found = json.loads(null_gpu.run("-c", TORCH, log=log).stdout.splitlines()[-1])
    assert found["name"] == "NVIDIA GeForce RTX 4090" and found["count"] == 1
    assert "Error" in found["two e5m2 factors"]
    assert "OutOfMemoryError" in found["too much memory"]
    assert "OutOfMemoryError" in found["last bytes"]
    assert 23.6 < found["total"] / 2**30 < 23.7 and 23.0 < found["free"] / 2**30 < 23.3
    gemms = Log.read(log).of("gemm")
    assert any(event[0] == "LtMatmul" and event[3].startswith("e4m3 e4m3") for event in gemms)
    taken = json.loads(
        null_gpu.run("-c", TORCH, log=log, CUDA_NULL_TAKEN_MIB="1024").stdout.splitlines()[-1]
    )
    assert found["free"] - taken["free"] == 1 << 30


def test_a_tile_that_fits_hopper_is_refused_on_ada(null_gpu: NullDevice, tmp_path):
    script = tmp_path / "kernel.py"
    script.write_text(KERNEL)
    found = {}
    for card in ("4090", "h200"):
        done = null_gpu.run(script, log=tmp_path / f"{card}.log", card=card)
        found[card] = json.loads(done.stdout.splitlines()[-1])
    assert found["4090"]["2"] <= 101_376 and found["4090"]["5"] == "OutOfResources"
    assert 101_376 < found["h200"]["5"] <= 232_448
    ran = Log.read(tmp_path / "h200.log").of("cubin")
    assert any(event[0] == "product" and int(event[1].split()[1]) > 0 for event in ran)

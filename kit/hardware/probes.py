"""Measured speed: of the CPU in this process, of the GPU in a child that may use torch.

The CPU's takes about two seconds. The GPU's child has 90 seconds; when it fails, the figures are
null and the reason is its last words.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

GPU_LIMIT_S = 90.0
_CPU_SLICE_S = 0.4  # one CPU probe


def probe_cpu(slice_s: float = _CPU_SLICE_S) -> dict[str, Any]:
    """Matrix, memory and single-thread rates of this CPU.

    Returns:
        matmul_gflops: FP32 1024x1024 products through numpy, on the cores it may use.
        copy_gb_s: Read plus written, 64 MiB blocks, one thread.
        sha256_mb_s: One thread, 1 MiB blocks.
        python_mops: Million additions a second of a plain Python loop.
    """
    started = time.perf_counter()
    reasons: dict[str, str] = {}
    matmul: float | None = None
    try:
        import numpy
    except ImportError:
        reasons["matmul_gflops"] = "numpy is not installed"
    else:
        size = 1024
        left = numpy.linspace(0.0, 1.0, size * size, dtype=numpy.float32).reshape(size, size)
        out = numpy.empty_like(left)
        rate = _rate(lambda: numpy.matmul(left, left, out=out), slice_s)
        matmul = round(2 * size**3 * rate / 1e9, 1)
    source, target = bytearray(64 * 2**20), bytearray(64 * 2**20)
    view = memoryview(target)

    def copy() -> None:
        view[:] = source

    copies = _rate(copy, slice_s)
    block = b"\0" * 2**20
    digests = _rate(lambda: hashlib.sha256(block).digest(), slice_s / 2)

    def loop() -> None:
        total = 0
        for i in range(100_000):
            total += i

    return {
        "matmul_gflops": matmul,
        "copy_gb_s": round(2 * len(source) * copies / 1e9, 2),
        "sha256_mb_s": round(digests * 2**20 / 1e6, 1),
        "python_mops": round(_rate(loop, slice_s / 2) * 0.1, 2),
        "elapsed_s": round(time.perf_counter() - started, 2),
        "reasons": reasons,
    }


def probe_gpu(limit_s: float = GPU_LIMIT_S) -> dict[str, Any]:
    """Rates of the first visible GPU, measured by `python -m kit.hardware.gpu_probe`.

    Returns:
        Its figures; on failure only `reasons`.
    """
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kit.hardware.gpu_probe", str(limit_s * 0.8)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s,
            check=False,
            env={**os.environ, "CUDA_MODULE_LOADING": "LAZY"},
        )
    except subprocess.TimeoutExpired:
        return {"reasons": {"probe": f"took longer than {limit_s:.0f} s"}}
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        return {"reasons": {"probe": words[-1][:300] if words else "failed silently"}}
    figures: dict[str, Any] = json.loads(done.stdout)
    figures["elapsed_s"] = round(time.perf_counter() - started, 2)
    return figures


def _rate(work: Callable[[], object], slice_s: float) -> float:
    """Calls a second, from the fastest of the calls that fit into `slice_s` (at least three)."""
    work()
    best = float("inf")
    begun = time.perf_counter()
    calls = 0
    while calls < 3 or time.perf_counter() - begun < slice_s:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return 1 / best

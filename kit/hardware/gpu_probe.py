"""Child process that measures the first visible GPU with torch and prints JSON.

Each figure is the best of repeated, synchronised runs inside its share of the time. Bandwidth
buffers are several times the largest L2 cache (a buffer that fits reads four times too fast); the
L2 knee is the largest buffer whose copy still runs well above memory speed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

_SWEEP_MIB = (2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256)
_COPY_MIB = 2048


def main() -> None:
    limit_s = float(sys.argv[1]) if len(sys.argv) > 1 else 70.0
    print(json.dumps(measure(limit_s)))


def measure(limit_s: float) -> dict[str, Any]:
    """All figures of the GPU; null with a reason where the card or this torch cannot."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device")
    properties = torch.cuda.get_device_properties(0)
    share_s = limit_s / 16
    figures: dict[str, Any] = {
        "name": properties.name,
        "count_visible": torch.cuda.device_count(),
        "capability": [properties.major, properties.minor],
        "sm_count": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "torch": torch.__version__,
    }
    reasons: dict[str, str] = {}

    def keep(key: str, read: Callable[[], float | None], digits: int = 2) -> None:
        try:
            value = read()
            figures[key] = None if value is None else round(value, digits)
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            figures[key] = None
            reasons[key] = str(error).splitlines()[0][:200] or type(error).__name__

    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = False
    keep("bf16_tflops", lambda: _matmul(torch, torch.bfloat16, 8192, 4 * share_s))
    matmul.allow_fp16_reduced_precision_reduction = False
    keep("fp16_fp32acc_tflops", lambda: _matmul(torch, torch.float16, 8192, share_s))

    def fp16_accumulation() -> float:
        if not hasattr(matmul, "allow_fp16_accumulation"):
            raise RuntimeError("this torch cannot choose FP16 accumulation")
        matmul.allow_fp16_accumulation = True
        try:
            return _matmul(torch, torch.float16, 8192, share_s)
        finally:
            matmul.allow_fp16_accumulation = False

    keep("fp16_fp16acc_tflops", fp16_accumulation)
    keep("fp8_tflops", lambda: _fp8(torch, 8192, share_s))
    keep("int8_tops", lambda: _int8(torch, 8192, share_s))
    keep("fp32_tflops", lambda: _matmul(torch, torch.float32, 4096, share_s))
    keep("fp64_tflops", lambda: _matmul(torch, torch.float64, 2048, share_s), 3)
    keep("copy_gb_s", lambda: _copy(torch, _COPY_MIB, share_s), 1)
    sweep = {mib: _copy(torch, mib, share_s / 8) for mib in _SWEEP_MIB}
    figures["l2_sweep_gb_s"] = {str(mib): round(rate, 1) for mib, rate in sweep.items()}
    keep("l2_knee_bytes", lambda: l2_knee_bytes(sweep, figures["copy_gb_s"]), 0)
    keep("pcie_to_gpu_gb_s", lambda: _pcie(torch, True, share_s))
    keep("pcie_from_gpu_gb_s", lambda: _pcie(torch, False, share_s))
    figures["fp16_accumulation_ratio"] = _ratio(
        figures["fp16_fp16acc_tflops"], figures["fp16_fp32acc_tflops"]
    )
    figures["fp64_share"] = _ratio(figures["fp64_tflops"], figures["fp32_tflops"])
    figures["reasons"] = reasons
    return figures


def l2_knee_bytes(sweep: dict[int, float], memory_gb_s: float | None) -> float | None:
    """Bytes of the largest working set that still moves 1.4 times faster than memory does.

    Args:
        sweep: Copy rate by buffer size in MiB; a copy's working set is two buffers.
    """
    if not memory_gb_s:
        return None
    inside = [mib for mib, rate in sweep.items() if rate > 1.4 * memory_gb_s]
    return float(max(inside) * 2 * 2**20) if inside else None


def _best_s(torch: Any, work: Callable[[], object], slice_s: float, calls: int = 4) -> float:
    """Seconds of one call, from the fastest group of calls."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    best = float("inf")
    end = time.perf_counter() + slice_s
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def _matmul(torch: Any, dtype: Any, size: int, slice_s: float) -> float:
    left = torch.randn(size, size, device="cuda", dtype=dtype)
    right = torch.randn(size, size, device="cuda", dtype=dtype)
    out = torch.empty_like(left)
    elapsed_s = _best_s(torch, lambda: torch.matmul(left, right, out=out), slice_s)
    return float(2 * size**3 / elapsed_s / 1e12)


def _fp8(torch: Any, size: int, slice_s: float) -> float:
    left = torch.randn(size, size, device="cuda").to(torch.float8_e4m3fn)
    right = torch.randn(size, size, device="cuda").to(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")

    def work() -> object:
        return torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return float(2 * size**3 / _best_s(torch, work, slice_s) / 1e12)


def _int8(torch: Any, size: int, slice_s: float) -> float:
    left = torch.randint(-127, 127, (size, size), device="cuda", dtype=torch.int8)
    right = torch.randint(-127, 127, (size, size), device="cuda", dtype=torch.int8).t()
    elapsed_s = _best_s(torch, lambda: torch._int_mm(left, right), slice_s)
    return float(2 * size**3 / elapsed_s / 1e12)


def _copy(torch: Any, mib: int, slice_s: float) -> float:
    source = torch.empty(mib * 2**20, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    calls = max(2, 1024 // mib)
    return float(
        2 * source.numel() / _best_s(torch, lambda: target.copy_(source), slice_s, calls) / 1e9
    )


def _pcie(torch: Any, to_gpu: bool, slice_s: float) -> float:
    host = torch.empty(256 * 2**20, dtype=torch.uint8, pin_memory=True)
    card = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    target, source = (card, host) if to_gpu else (host, card)
    elapsed_s = _best_s(torch, lambda: target.copy_(source, non_blocking=True), slice_s)
    return float(host.numel() / elapsed_s / 1e9)


def _ratio(above: float | None, below: float | None) -> float | None:
    return round(above / below, 4) if above and below else None


if __name__ == "__main__":
    main()

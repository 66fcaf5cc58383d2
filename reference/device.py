"""The device of a stage, set up so that equal inputs give equal bits on a CPU."""

from __future__ import annotations

import resource

import torch

from reference.errors import TrainerError
from reference.request import Request


def set_up_device(request: Request) -> torch.device:
    """The device the request asks for, with threads and number formats pinned.

    Raises:
        TrainerError: CUDA is asked for and not there.
    """
    torch.set_num_threads(request.threads)  # sums are split by thread: the count moves the last bit
    name = request.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise TrainerError(
                "bad_input",
                "the recipe wants a CUDA device and torch sees none",
                "Check `nvidia-smi` and that torch was built for CUDA; `n4090-kit doctor` helps.",
            )
        torch.set_float32_matmul_precision("high")
    return torch.device(name)


def resolve_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """The activations' dtype: "auto" is bf16 on a GPU and fp32 on a CPU."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held on `device`; on a CPU its resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class DeviceTimer:
    """Seconds on a CUDA device's own clock since this was made; a second opinion on a step's time.

    The supervisor compares their sum with its own clock: a process whose clocks are bent cannot
    bend this one.
    """

    def __init__(self, device: torch.device) -> None:
        self._begin = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._begin is not None:
            self._begin.record()

    def elapsed_s(self) -> float | None:
        """Waits for what has been queued so far; None on a CPU."""
        if self._begin is None:
            return None
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        end.synchronize()
        return round(self._begin.elapsed_time(end) / 1000, 6)

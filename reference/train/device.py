"""The device of a stage, set up so that equal inputs give equal bits on a CPU."""

from __future__ import annotations

import os
import resource
import sys

import torch

from reference.errors import PrerequisiteError
from reference.request import Request


def set_up_device(request: Request) -> torch.device:
    """The device the request asks for, with threads and number formats pinned.

    Raises:
        PrerequisiteError: The device that is asked for is not there.
    """
    torch.set_num_threads(request.threads)  # sums are split by thread: the count moves the last bit
    device = choose_device(request.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device


def choose_device(name: str) -> torch.device:
    """ "cpu", "cuda", "mps", or "auto" for the CUDA device if there is one.

    ROCm builds of torch call their device "cuda" too. "auto" never takes "mps" (Apple): the code
    has not run on such hardware.

    Raises:
        PrerequisiteError: The device that is asked for is not there.
    """
    there = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if there else "cpu")
    if name == "cuda" and not there:
        raise PrerequisiteError(
            "bad_input",
            "a CUDA device is asked for, and torch sees none",
            "Check `nvidia-smi` and that torch was built for CUDA (`n4090-kit doctor` helps), "
            "or use --device cpu.",
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise PrerequisiteError(
            "bad_input",
            "an Apple GPU (mps) is asked for, and torch sees none",
            "It takes a Mac with an Apple processor and macOS 14 or later; or use --device cpu.",
        )
    return torch.device(name)


def make_deterministic() -> None:
    """Equal bits from equal inputs on one GPU; to be called before the first CUDA kernel.

    A kernel that cannot keep the promise raises an error instead of breaking it.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    # What is filled in anyway need not be filled with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    from torch._inductor import config

    if hasattr(config, "deterministic"):
        config.deterministic = True  # no choice by timing among kernels that round differently


def forget_determinism() -> None:
    """Ends what `make_deterministic` began, for a benchmark that goes on without."""
    torch.use_deterministic_algorithms(False)
    from torch._inductor import config

    if hasattr(config, "deterministic"):
        config.deterministic = False


def memory_limit_bytes(device: torch.device, cap_gib: float) -> int | None:
    """What this process may hold of a GPU's memory, and holds it to that; None on a CPU.

    Args:
        cap_gib: Stay within this; 0: all of the card.
    """
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    if cap_gib and cap_gib * 2**30 < total:
        # This function alone of torch.cuda takes no device without an index.
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(cap_gib * 2**30 / total, index)
        return int(cap_gib * 2**30)
    return int(total)


# Of free memory, what a plan may fill beyond its share of a whole card, which leaves room for other
# programs as well as for fragmentation and the workspaces of libraries.
FREE_OVER_WHOLE = 0.95 / 0.90


def plannable_bytes(device: torch.device, cap_gib: float, *, measure: bool) -> int | None:
    """The memory that a micro-batch is chosen for; None on a CPU.

    Args:
        cap_gib: As of `memory_limit_bytes`, which is in force afterwards.
        measure: Count what other programs hold as taken: for a recipe that leaves its micro-batch
            open. Otherwise the choice depends on the card alone.
    """
    limit = memory_limit_bytes(device, cap_gib)
    if limit is None or not measure:
        return limit
    free, _ = torch.cuda.mem_get_info(device)
    return min(limit, int((free + torch.cuda.memory_reserved(device)) * FREE_OVER_WHOLE))


def resolve_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """The activations' dtype: "auto" is bf16 on a CUDA device and fp32 elsewhere."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]


def usable_cores() -> int:
    """CPU cores that this process may use; all where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held on `device`; on a CPU its resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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

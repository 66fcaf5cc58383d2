"""Linear maps of anyone's fp32 model on a CPU, through the faster of PyTorch's two libraries.

PyTorch sends fp32 products to MKL, which keeps its AVX-512 kernels for Intel's processors; on
others oneDNN's are more than twice as fast and round no worse. The choice follows the processor,
never a stopwatch: an evaluation that goes on after a kill makes the same one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any


def faster_linear() -> contextlib.AbstractContextManager[Any]:
    """A context in which fp32 `torch.nn.functional.linear` on a CPU takes the faster library."""
    return _mode()() if onednn_is_faster() else contextlib.nullcontext()


@cache
def onednn_is_faster() -> bool:
    """Whether BLAS is MKL on a processor that is not Intel's, and oneDNN is there."""
    import torch

    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@cache
def _mode() -> type[contextlib.AbstractContextManager[Any]]:
    import torch
    from torch.nn.functional import linear
    from torch.overrides import TorchFunctionMode

    class OneDnnLinear(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            if func is linear and not kwargs:
                x, weight, *bias = args
                if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
                    one = bias[0] if bias else None
                    return torch.ops.mkldnn._linear_pointwise(x, weight, one, "none", [], "")
            return func(*args, **(kwargs or {}))

    return OneDnnLinear

"""Which factors are fastest for each matrix product of a model, and whether they are 8-bit at all.

Each of the three products of each shape is timed by itself, rounding included and compiled as in
training. Then the profiler is asked what ran: a kernel that took its 8-bit factors back to 16 bits
first would be slower than bf16 and look like a gain on paper.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.kernels.attention_trial import Timer
from reference.kernels.eight_bit import KINDS, Kind, product
from reference.model.linear import PASSES, Products

# In the names of the kernels of cuBLAS, CUTLASS and Triton that multiply 8-bit factors.
EIGHT_BIT_KERNEL = re.compile(
    r"e4m3|e5m2|fp8|float8|f8f8|qmma|imma|s8s8|i8i8|int8_kernel|f8_", re.IGNORECASE
)


class Row(NamedTuple):
    """A product: OUTxIN of its map, which of the three, the factors, milliseconds or the reason."""

    shape: str
    which: str
    kind: Kind
    ms: float | None
    reason: str | None


def choose_products(
    shapes: Iterable[tuple[int, int]],
    tokens: int,
    *,
    device: torch.device,
    timer: Timer,
    passes: Sequence[str] = PASSES,
    kinds: Sequence[Kind] = KINDS,
    kernels: Callable[[Callable[[], Any]], list[str]] | None = None,
) -> tuple[dict[str, Products], list[Row]]:
    """The fastest kind of factors for each product of maps (out, in), and all that was timed.

    Args:
        tokens: Rows of the activations: those of a micro-batch.
        passes: Products that may take 8-bit factors; the others stay bf16.
        kernels: Names of the kernels that a function runs; `profiled_kernels` on a GPU. A kind
            whose kernels are none of 8 bits is refused. None: not looked at.
    """
    rows: list[Row] = []
    chosen = {}
    for n, k in sorted(set(shapes)):
        name, best = f"{n}x{k}", {}
        for which in PASSES:
            timed = []
            for kind in kinds if which in passes else ("bf16",):
                row = time_product(n, k, tokens, which, kind, device, timer, kernels)
                rows.append(row)
                if row.ms is not None:
                    timed.append(row)
            fastest = min(timed, key=lambda row: row.ms or 0.0, default=None)
            best[which] = fastest.kind if fastest else "bf16"
        chosen[name] = Products(**best)
    return chosen, rows


def time_product(
    n: int,
    k: int,
    tokens: int,
    which: str,
    kind: Kind,
    device: torch.device,
    timer: Timer,
    kernels: Callable[[Callable[[], Any]], list[str]] | None = None,
) -> Row:
    """One of the three products of a map (out n, in k) on `tokens` rows, rounding included."""
    function = product_of(n, k, tokens, which, kind, device)
    try:
        function()
        if kind != "bf16" and kernels is not None:
            names = kernels(function)
            if not any(EIGHT_BIT_KERNEL.search(name) for name in names):
                text = f"no 8-bit kernel ran: {', '.join(names)[:160] or 'none seen'}"
                return Row(f"{n}x{k}", which, kind, None, text)
        return Row(f"{n}x{k}", which, kind, timer(function), None)
    except Exception as error:  # a kernel that a GPU or build lacks: the reason is reported
        first = str(error).splitlines()[0] if str(error) else ""
        return Row(f"{n}x{k}", which, kind, None, f"{type(error).__name__}: {first}"[:200])


def product_of(
    n: int, k: int, tokens: int, which: str, kind: Kind, device: torch.device
) -> Callable[[], Tensor]:
    """A call of the product `which` in the layout that training has it in."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device)

    half = torch.bfloat16
    x, dy = draw(tokens, k).to(half), draw(tokens, n).to(half)
    weight = draw(n, k) * k**-0.5
    gradient = which != "forward"

    def multiply(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        a, b = {
            "forward": (x, weight),
            "input_grad": (dy, weight.T),
            "weight_grad": (dy.T, x.T),
        }[which]
        return product(a, b, kind, half, gradient=gradient)

    if device.type == "cuda":
        multiply = torch.compile(multiply, dynamic=False)
    return lambda: multiply(x, dy, weight)


def profiled_kernels(function: Callable[[], Any]) -> list[str]:
    """Names of the GPU kernels that a call of `function` runs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        function()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    return [event.name for event in seen.events() if event.device_type == on_gpu]

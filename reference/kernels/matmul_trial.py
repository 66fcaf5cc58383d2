"""Which factors are fastest for each matrix product of a model, and are their results right?

Each of the three products of each shape is timed by itself, rounding included and compiled as in
training. Before that, a small product of the same kind, compiled in the same way, is compared with
its rounded factors multiplied in fp64. What the product asks the libraries for decides the kind:
`torch._scaled_mm` on fp8 factors and `n4090::int8_block_mm` on int8 factors have no other
kernels. The names of the kernels that ran are a note, where the profiler can see them: names
differ between GPU generations, and containers often refuse the profiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.kernels.attention_trial import Timer, short_reason
from reference.kernels.compiling import compiled_alone
from reference.kernels.eight_bit import KINDS, Kind, product, quantize
from reference.model.linear import PASSES, Products

PROBE_SIZES = (256, 128, 192)  # out, in and tokens of the product that is compared with fp64
PROBE_TOLERANCE = 0.01  # of the largest value: the results are rounded to bf16
NOT_SEEN = "the profiler saw no kernel: this container or driver refuses CUPTI"


class Row(NamedTuple):
    """A product: OUTxIN of its map, which of the three, the factors, milliseconds or the reason.

    `kernels` are names of the kernels that ran, or why they are not known; empty if not asked for.
    """

    shape: str
    which: str
    kind: Kind
    ms: float | None
    reason: str | None
    kernels: tuple[str, ...] = ()


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
        kernels: Names of the kernels that a function runs, for the rows' notes; `profiled_kernels`
            on a GPU.
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
    seen: tuple[str, ...] = ()
    try:
        wrong = None if kind == "bf16" else probe(which, kind, device)
        if wrong:
            return Row(f"{n}x{k}", which, kind, None, wrong)
        function = product_of(n, k, tokens, which, kind, device)
        function()
        if kind != "bf16" and kernels is not None:
            seen = tuple(name[:80] for name in kernels(function)[-3:]) or (NOT_SEEN,)
        return Row(f"{n}x{k}", which, kind, timer(function), None, seen)
    except Exception as error:  # a kernel that a GPU or build lacks: the reason is reported
        return Row(f"{n}x{k}", which, kind, None, short_reason(error), seen)


@cache
def probe(which: str, kind: Kind, device: torch.device) -> str | None:
    """Why a small product of this kind is wrong; None if its result is right.

    It is right if it equals the product of the rounded factors in fp64, and differs from the
    product of the factors as they were: results without rounding are not from 8-bit factors.
    """
    n, k, tokens = PROBE_SIZES
    a, b = _factors(*_operands(n, k, tokens, device), which)
    found = product_of(n, k, tokens, which, kind, device)().double()
    rounded = [
        quantize(x, kind, gradient=gradient).dequantized().double()
        for x, gradient in ((a, which != "forward"), (b, False))
    ]
    exact, unrounded = rounded[0] @ rounded[1].T, a.double() @ b.double().T
    error = float((found - exact).abs().max() / exact.abs().max())
    if not error < PROBE_TOLERANCE:
        return f"the result differs from its rounded factors' product by {error:.3g} of the largest"
    if float((found - unrounded).norm()) < 0.5 * float((exact - unrounded).norm()):
        return "the result is that of factors which were not rounded to 8 bits"
    return None


def _operands(n: int, k: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Activations (tokens, k) and output gradients (tokens, n) in bf16, weight (n, k) in fp32."""
    generator = torch.Generator().manual_seed(0)
    x, dy, weight = (
        torch.randn(size, generator=generator).to(device)
        for size in ((tokens, k), (tokens, n), (n, k))
    )
    return x.bfloat16(), dy.bfloat16(), weight * k**-0.5


def _factors(x: Tensor, dy: Tensor, weight: Tensor, which: str) -> tuple[Tensor, Tensor]:
    """The factors (a, b) of `which` product a @ b.T of a map."""
    return {"forward": (x, weight), "input_grad": (dy, weight.T), "weight_grad": (dy.T, x.T)}[which]


def product_of(
    n: int, k: int, tokens: int, which: str, kind: Kind, device: torch.device
) -> Callable[[], Tensor]:
    """A call of the product `which` in the layout that training has it in."""
    operands = _operands(n, k, tokens, device)
    gradient = which != "forward"

    def multiply(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        return product(*_factors(x, dy, weight, which), kind, torch.bfloat16, gradient=gradient)

    function = compiled_alone(multiply) if device.type == "cuda" else multiply
    return lambda: function(*operands)


def profiled_kernels(function: Callable[[], Any]) -> list[str]:
    """Names of the GPU kernels that a call of `function` runs; none if the profiler is refused."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            function()
            torch.cuda.synchronize()
        on_gpu = DeviceType.CUDA
        return [event.name for event in seen.events() if event.device_type == on_gpu]
    except RuntimeError:  # Kineto raises for some of CUPTI's refusals and only warns for others
        return []

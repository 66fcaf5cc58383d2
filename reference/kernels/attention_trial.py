"""Which attention kernel is fastest on the GPU at hand: a short trial at the run's own shapes.

Every kernel that can do the call is compiled, compared with the formula and timed, forward and
backward. One that is missing, fails or disagrees is reported with the reason, never passed over in
silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from reference.errors import TrainerError
from reference.kernels.attention import (
    FLEX,
    Backend,
    Documents,
    causal_attention,
    find_documents,
    lacks,
    prepare_flex,
    takes,
)
from reference.kernels.compiling import compiled_alone

TOLERANCE = 0.03  # largest difference from the formula, as a share of the largest value, in bf16
CANDIDATES: tuple[Backend, ...] = tuple(
    name for name in get_args(Backend) if name not in ("auto", "mask")
)


class Row(NamedTuple):
    """One kernel at one window: milliseconds forward and backward, or why there are none."""

    window: int
    backend: Backend
    ms: float | None
    reason: str | None


Timer = Callable[[Callable[[], Any]], float]


def choose_backends(
    shape: tuple[int, int, int, int, int],
    windows: Sequence[int],
    *,
    device: torch.device,
    dtype: torch.dtype,
    documents: bool,
    timer: Timer,
    candidates: Sequence[Backend] = CANDIDATES,
) -> tuple[dict[int, Backend], list[Row]]:
    """The fastest kernel for each window, and all that was tried.

    Args:
        shape: B, T, H, G, D of a micro-batch.
        documents: Whether rows hold documents that must not see each other.
        timer: Milliseconds of a function; `cuda_milliseconds` on a GPU.

    Returns:
        Choices by window. A window that no candidate can do is left to "auto".
    """
    T = shape[1]
    rows: list[Row] = []
    chosen: dict[int, Backend] = {}
    for window in sorted(set(min(window, T) for window in windows)):
        for backend in candidates:
            if takes(backend, T, window, documents):
                rows.append(try_backend(backend, shape, window, device, dtype, documents, timer))
        timed = [row for row in rows if row.window == window and row.ms is not None]
        fastest = min(timed, key=lambda row: row.ms or 0.0, default=None)
        chosen[window] = fastest.backend if fastest else "auto"
    return chosen, rows


def try_backend(
    backend: Backend,
    shape: tuple[int, int, int, int, int],
    window: int,
    device: torch.device,
    dtype: torch.dtype,
    documents: bool,
    timer: Timer,
) -> Row:
    """Compares one kernel with the formula, then times it."""
    reason = lacks(backend, device, dtype)
    if reason:
        return Row(window, backend, None, reason)
    if backend in FLEX:
        prepare_flex(shape[1], window, device)
    q, k, v, bounds = _inputs(shape, device, dtype, documents)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, window, documents=bounds, backend=backend)

    function = compiled_alone(attend) if device.type == "cuda" else attend
    dy = torch.randn_like(q)

    def both() -> Tensor:
        y = function(q, k, v)
        torch.autograd.grad(y, (q, k, v), dy)
        return y

    try:
        y = function(q, k, v)
        found = (y.detach(), *torch.autograd.grad(y, (q, k, v), dy))
        wanted = _formula(q, k, v, window, bounds, dy)
        for name, a, b in zip(("output", "dq", "dk", "dv"), found, wanted, strict=True):
            error = float((a.float() - b).abs().max() / b.abs().max())
            if not error < TOLERANCE:
                return Row(window, backend, None, f"{name} differs from the formula by {error:.3g}")
        return Row(window, backend, timer(both), None)
    except Exception as error:  # any kernel may refuse in its own way: the reason is reported
        return Row(window, backend, None, short_reason(error))


def short_reason(error: Exception) -> str:
    """The first line of an error's text, after its type unless it is one of the trainer's own."""
    first = (str(error).splitlines() or [""])[0]
    return (first if isinstance(error, TrainerError) else f"{type(error).__name__}: {first}")[:300]


def _inputs(
    shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype, ragged: bool
) -> tuple[Tensor, Tensor, Tensor, Documents | None]:
    B, T, H, G, D = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn((B, T, heads, D), generator=generator).to(device, dtype).requires_grad_()
        for heads in (H, G, G)
    )
    bounds = None
    if ragged:
        tokens = (torch.rand((B, T), generator=generator) < 1 / 256).long().numpy()
        bounds = find_documents(tokens, 1).to(device)
    return q, k, v, bounds


def _formula(
    q: Tensor, k: Tensor, v: Tensor, window: int, bounds: Documents | None, dy: Tensor
) -> tuple[Tensor, ...]:
    """Output and gradients of softmax attention in fp32, a row of the batch at a time."""
    T, H = q.shape[1:3]
    position = torch.arange(T, device=q.device)
    visible = (position[None] <= position[:, None]) & (position[:, None] - position[None] < window)
    parts = []
    for row in range(q.size(0)):
        q1, k1, v1 = (x[row].detach().float().requires_grad_() for x in (q, k, v))
        keys, values = (x.repeat_interleave(H // x.size(1), dim=1) for x in (k1, v1))
        seen = visible
        if bounds is not None:
            seen = visible & (position[None] >= bounds.starts[row][:, None])
        scores = torch.einsum("ihd,jhd->hij", q1, keys) * q.size(-1) ** -0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        y = torch.einsum("hij,jhd->ihd", weights, values)
        parts.append((y.detach(), *torch.autograd.grad(y, (q1, k1, v1), dy[row].float())))
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def cuda_milliseconds(function: Callable[[], Any], *, repeats: int = 10) -> float:
    """Median milliseconds of `function` by the GPU's clock, after two calls that do not count."""
    for _ in range(2):
        function()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]

"""Causal attention with sliding windows, document boundaries and grouped key/value heads.

A window of W means: position i sees the keys j with i - W < j <= i, W keys with itself. Where
document boundaries are given, it sees none of an earlier document either.

One function a backend, all of one signature; `reference.kernels.attention_trial` times them on the
GPU at hand. Without a choice ("auto") windows that cover all keys go to PyTorch's own flash
attention, narrower ones and documents on a GPU to the windowed kernel that ships inside PyTorch,
and what is left to `blocks` or, for documents on a CPU, to an explicit mask.

    sdpa     PyTorch picks the kernel; whole windows only
    cudnn    the same call, cuDNN's kernel; whole windows only
    varlen   FlashAttention 2 inside PyTorch (`torch.nn.attention.varlen`)
    flex     FlexAttention, compiled by Triton, with PyTorch's choice of tiles
    flex_small  the same with smaller tiles; which is faster on a card is timed
    fa2      package flash_attn
    fa3      package flash_attn_interface (Hopper; builds for Ada exist)
    blocks   a masked call for each block of queries (`reference.kernels.cpu_window`); no documents
    mask     one call with a T x T mask: the slow last resort, never chosen by a trial

References:
    FlashAttention-2: https://arxiv.org/abs/2307.08691
    FlexAttention: https://arxiv.org/abs/2412.05496
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from reference.kernels.compiling import compiled
from reference.kernels.cpu_window import blocked_attention

Backend = Literal[
    "auto", "sdpa", "cudnn", "varlen", "flex", "flex_small", "fa2", "fa3", "blocks", "mask"
]
FLEX: tuple[Literal["flex"], Literal["flex_small"]] = ("flex", "flex_small")
HALF = (torch.bfloat16, torch.float16)
# PyTorch's own tiles fit Ada's 99 KB of shared memory (98,304 and 68,096 bytes, forward and
# backward, heads of 128 channels, torch 2.13 for sm_89); those of its issue 133254 did not. Smaller
# ones leave room for a second block on each multiprocessor.
SMALL_TILES = {
    "BLOCK_M": 64,
    "BLOCK_N": 64,
    "BLOCK_M1": 32,
    "BLOCK_N1": 64,
    "BLOCK_M2": 64,
    "BLOCK_N2": 32,
    "num_stages": 2,
}


class Documents(NamedTuple):
    """Where the documents of a batch of packed rows begin.

    starts: (B, T) int32, the position in its row at which each token's document begins.
    offsets: (n + 1,) int32, the same as places in the flattened batch; the last are B * T, repeated
        so that only a few sizes occur.
    """

    starts: Tensor
    offsets: Tensor

    @property
    def goes_on(self) -> Tensor:
        """(B, T) bool: the token before is of the same document."""
        return self.starts != torch.arange(self.starts.size(1), device=self.starts.device)

    def to(self, device: torch.device) -> Documents:
        return Documents(*(part.to(device, non_blocking=True) for part in self))


def find_documents(tokens: np.ndarray, bos: int) -> Documents:
    """The documents of packed rows (B, T): one begins at every BOS, and with every row."""
    B, T = tokens.shape
    begins = tokens == bos
    begins[:, 0] = True
    positions = np.where(begins, np.arange(T, dtype=np.int32), 0)
    starts = np.maximum.accumulate(positions, axis=1)
    places = np.flatnonzero(begins)
    size = 1 << max(len(places), B * T // 128).bit_length()  # compiled code sees few sizes
    offsets = np.full(size, B * T, dtype=np.int32)
    offsets[: len(places)] = places
    return Documents(torch.from_numpy(starts), torch.from_numpy(offsets))


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    documents: Documents | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of T queries over the same T positions.

    Args:
        q: (B, T, H, D).
        k: (B, T, G, D), G dividing H: query head h uses key head h // (H / G).
        v: (B, T, G, D).
        window: Keys a position sees, itself included.
        documents: No position sees keys of an earlier document; None: all of its row.
        backend: One that `takes` this call; "auto" follows the device.

    Returns:
        (B, T, H, D), softmax scale 1 / sqrt(D).
    """
    T = q.size(1)
    window = min(window, T)
    if backend == "auto":
        backend = automatic(q.device, q.dtype, T, window, documents is not None)
    return _BACKENDS[backend](q, k, v, window, documents)


def automatic(
    device: torch.device, dtype: torch.dtype, T: int, window: int, documents: bool
) -> Backend:
    """What "auto" means for a call."""
    if window >= T and not documents:
        return "sdpa"
    if device.type == "cuda" and dtype in HALF and windowed_kernel_exists():
        return "varlen"
    return "mask" if documents else "blocks"


def lacks(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot run here; None where it can."""
    if backend in ("auto", "sdpa", "blocks", "mask"):
        return None
    if device.type != "cuda":
        return "needs a GPU"
    if backend not in FLEX and dtype not in HALF:
        return "needs bf16"
    package = {"fa2": "flash_attn", "fa3": "flash_attn_interface"}.get(backend)
    if package and find_spec(package) is None:
        return f"package {package} is not installed"
    if backend == "varlen" and not windowed_kernel_exists():
        return "this PyTorch's variable-length attention has no windows"
    return None


def takes(backend: Backend, T: int, window: int, documents: bool) -> bool:
    """Whether `backend` can do windows of this size, and documents."""
    if backend in ("sdpa", "cudnn"):
        return window >= T and not documents
    return backend != "blocks" or not documents


@cache
def windowed_kernel_exists() -> bool:
    """Whether this PyTorch's varlen attention takes windows and grouped key heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    arguments = inspect.signature(varlen_attn).parameters
    return "window_size" in arguments and "enable_gqa" in arguments


# One function a backend: (q, k, v, window at most T, documents) -> (B, T, H, D).


def _sdpa(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None) -> Tensor:
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=True,
        enable_gqa=k.size(2) != q.size(2),
    )
    return y.transpose(1, 2)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(q, k, v, window, documents)


def _varlen(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    T = q.size(1)
    offsets = _offsets(q, documents)
    y: Any = varlen_attn(  # a tensor; with other arguments a pair
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        offsets,
        offsets,
        T,
        T,
        window_size=(window - 1, 0),
        enable_gqa=k.size(2) != q.size(2),
    )
    return y.view(q.shape)


def _fa2(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None) -> Tensor:
    import flash_attn

    return _flash(flash_attn, q, k, v, window, documents)


def _fa3(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None) -> Tensor:
    import flash_attn_interface

    return _flash(flash_attn_interface, q, k, v, window, documents)


def _flash(
    package: Any, q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None
) -> Tensor:
    """A FlashAttention package: equal rows, or documents as ragged ones."""
    shared: dict[str, Any] = {"causal": True, "window_size": (window - 1, 0)}
    if torch.are_deterministic_algorithms_enabled():
        shared["deterministic"] = True
    T = q.size(1)
    if documents is None:
        y = package.flash_attn_func(q, k, v, **shared)
    else:
        q_, k_, v_ = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        offsets = documents.offsets
        y = package.flash_attn_varlen_func(q_, k_, v_, offsets, offsets, T, T, **shared)
    # FlashAttention 3 returned the log-sum-exp as well for a while.
    return (y[0] if isinstance(y, tuple) else y).view(q.shape)


# FlexAttention's masks, made before code that uses them is compiled: inside it they would be worked
# out again at every call.
_window_masks: dict[tuple[int, int, str], BlockMask] = {}


def prepare_flex(T: int, window: int, device: torch.device) -> None:
    """Makes what FlexAttention needs for windows of `window` over T positions on `device`."""
    window = min(window, T)
    if (T, window, device.type) not in _window_masks:
        _window_masks[T, window, device.type] = _window_mask(T, window, str(device))


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    documents: Documents | None,
    tiles: dict[str, int] | None = None,
) -> Tensor:
    T = q.size(1)
    if not torch.compiler.is_compiling():
        prepare_flex(T, window, q.device)
    if documents is None:
        mask = _window_masks[T, window, q.device.type]
    else:
        mask = _document_mask(T, window, documents.starts)
    y = _flex_function(q)(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=mask,
        enable_gqa=k.size(2) != q.size(2),
        kernel_options=tiles,
    )
    return y.transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Any]:
    return compiled(flex_attention)


def _flex_function(q: Tensor) -> Callable[..., Any]:
    """Eager FlexAttention would form all scores; inside compiled code it is compiled anyway."""
    if torch.compiler.is_compiling() or not q.is_cuda:
        return flex_attention
    return _compiled_flex()


def _window_mask(T: int, window: int, device: str) -> BlockMask:
    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i - j < window)

    return create_block_mask(visible, None, None, T, T, device=device)


def _document_mask(T: int, window: int, starts: Tensor) -> BlockMask:
    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i - j < window) & (j >= starts[b, i])

    return create_block_mask(visible, starts.size(0), None, T, T, device=str(starts.device))


def _blocked(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None) -> Tensor:
    if window >= q.size(1):
        return _sdpa(q, k, v, window, documents)
    H = q.size(2)
    if k.size(2) != H:
        k = k.repeat_interleave(H // k.size(2), dim=2)
        v = v.repeat_interleave(H // v.size(2), dim=2)
    return blocked_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), window)


def _masked(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None) -> Tensor:
    T = q.size(1)
    i = torch.arange(T, device=q.device)[:, None]
    j = torch.arange(T, device=q.device)
    mask = (j <= i) & (i - j < window)
    if documents is not None:
        mask = mask & (j >= documents.starts[:, None, :, None])  # (B, 1, T, T)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        enable_gqa=k.size(2) != q.size(2),
    )
    return y.transpose(1, 2)


def _offsets(q: Tensor, documents: Documents | None) -> Tensor:
    if documents is not None:
        return documents.offsets
    B, T = q.shape[:2]
    return torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q.device)


_BACKENDS: dict[str, Callable[..., Tensor]] = {
    "sdpa": _sdpa,
    "cudnn": _cudnn,
    "varlen": _varlen,
    "flex": _flex,
    "flex_small": partial(_flex, tiles=SMALL_TILES),
    "fa2": _fa2,
    "fa3": _fa3,
    "blocks": _blocked,
    "mask": _masked,
}


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of T new queries over S cached keys, for generation.

    Args:
        q: (B, T, H, D).
        k: (B, S, G, D).
        v: (B, S, G, D).
        mask: (B, 1, T, S) or (1, 1, T, S) bool, True where a query may look; None: everywhere.

    Returns:
        (B, T, H, D).
    """
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        enable_gqa=k.size(2) != q.size(2),
    )
    return y.transpose(1, 2)

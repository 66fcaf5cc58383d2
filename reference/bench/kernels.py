"""Speeds of the single kernels that a step is made of, at the shapes of nanochat's depths.

Matrix products: each map of a d12 to d24 model, its three products in their layouts, with bf16 and
the three kinds of 8-bit factors, rounding included. Attention: every backend at the model's two
windows. On a CPU the same table of the rounding as it is emulated there: of use to test this bench.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from reference.config.model import ModelConfig
from reference.kernels.attention_trial import Timer, choose_backends, cuda_milliseconds
from reference.kernels.eight_bit import KINDS
from reference.kernels.matmul_trial import profiled_kernels, time_product
from reference.model.linear import PASSES


def nanochat_config(depth: int, *, vocab_size: int = 32768, seq_len: int = 2048) -> ModelConfig:
    """nanochat's model of a depth: 64 channels a layer, up to a multiple of 128, heads of 128."""
    width = -(-64 * depth // 128) * 128
    heads = width // 128
    return ModelConfig(
        vocab_size, n_layer=depth, n_embd=width, n_head=heads, n_kv_head=heads, seq_len=seq_len
    )


def map_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of each kind of map in a block."""
    C = config.n_embd
    return {"q k v proj": (C, C), "up": (config.ffn_dim, C), "down": (C, config.ffn_dim)}


def bench_matmuls(
    depths: Sequence[int],
    *,
    tokens: int,
    device: torch.device,
    maps: Sequence[str] = (),
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """A row for each depth, map, product and kind of factors; stops early once `enough`.

    Args:
        maps: Names of `map_shapes`; empty: all.
    """
    timer = timer_of(device)
    kernels = profiled_kernels if device.type == "cuda" else None
    for depth in depths:
        for name, (n, k) in map_shapes(nanochat_config(depth)).items():
            if maps and name not in maps:
                continue
            for which in PASSES:
                base = None
                for kind in KINDS:
                    if enough():
                        return
                    row = time_product(n, k, tokens, which, kind, device, timer, kernels)
                    base = row.ms if kind == "bf16" else base
                    yield {
                        "depth": depth,
                        "map": name,
                        **row._asdict(),
                        "tokens": tokens,
                        "tflops": 2e-9 * n * k * tokens / row.ms if row.ms else None,
                        "speed": base / row.ms if base and row.ms else None,
                    }


def bench_attention(
    depths: Sequence[int],
    *,
    batch: int,
    device: torch.device,
    seq_len: int = 2048,
    timer: Timer | None = None,
    documents: bool = False,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """A row for each depth, window and backend, the reason where one does not run."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for depth in depths:
        if enough():
            return
        config = nanochat_config(depth, seq_len=seq_len)
        shape = (batch, seq_len, config.n_head, config.n_kv_head, config.head_dim)
        chosen, rows = choose_backends(
            shape,
            config.windows,
            device=device,
            dtype=dtype,
            documents=documents,
            timer=timer or timer_of(device),
        )
        for row in rows:
            yield {
                "depth": depth,
                **row._asdict(),
                "documents": documents,
                "chosen": chosen[row.window] == row.backend,
            }


def timer_of(device: torch.device) -> Timer:
    """Milliseconds of a call by the device's own clock."""
    return cuda_milliseconds if device.type == "cuda" else _cpu_milliseconds


def _cpu_milliseconds(function: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter_ns()
        function()
        times.append((time.perf_counter_ns() - began) / 1e6)
    return sorted(times)[1]

"""Gradients of compiled blocks against eager ones, on a CPU with real numbers: gradients.py OUT

One block of each kind of 8-bit factors, compiled up to the backend. OUT: the version of torch, and
for each kind the number of blocks that were compared or the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.kernels.gradient_check import check_compiled_gradients
from reference.model.gpt import GPT
from reference.model.int8_maps import use_int8
from reference.model.linear import Products, set_products

CONFIG = ModelConfig(512, n_layer=2, n_embd=64, n_head=2, n_kv_head=2, seq_len=64, short_window=32)


def compared(kind: str) -> int | str:
    """Blocks whose gradients agree with one kind of factors, or why they do not."""
    torch._dynamo.reset()
    model = GPT(CONFIG)
    model.init_weights(0)
    model.place("cpu", "bfloat16")
    if kind == "int8":
        use_int8(model, ("attention", "mlp"))
    else:
        set_products(model, ("attention", "mlp"), Products.of(kind))  # type: ignore[arg-type]
    for block in model.blocks:
        block.compile(dynamic=False, backend="aot_eager")
    try:
        return check_compiled_gradients(model, 2, CONFIG.seq_len)
    except TrainerError as error:
        return str(error)


def main() -> None:
    found = {kind: compared(kind) for kind in ("fp8", "fp8_rowwise", "int8")}
    Path(sys.argv[1]).write_text(json.dumps({"torch": torch.__version__, "compared": found}))


if __name__ == "__main__":
    main()

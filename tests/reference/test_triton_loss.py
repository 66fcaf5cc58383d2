"""The Triton loss kernel: in Triton's interpreter against the plain path, and compiled for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from reference.model.loss import FUSED_CHUNK_BYTES, fused_chunks

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

INTERPRETED = """
import torch
from reference.kernels import triton_loss
from reference.model import loss

loss.FUSED_CHUNK_BYTES = 64 * 128 * 4  # several chunks, the last one short
worst = 0.0
for softcap in (15.0, 2.0, 0.0):
    for vocab, block in ((100, 32), (128, 256), (1, 64)):
        g = torch.Generator().manual_seed(vocab)
        hidden = 3 * torch.randn(150, 16, generator=g)
        hidden[5] = 0.0
        weight = torch.randn(128, 16, generator=g)
        weight[vocab:] = 1e4  # padding must not be seen
        targets = torch.randint(0, vocab, (150,), generator=g)
        targets[::7] = -1
        targets[64:128] = -100  # a whole chunk without a target
        scale = (targets >= 0) * torch.linspace(-1, 2, 150)
        plain = loss._loss_and_gradients(hidden, weight, targets, scale, vocab, softcap)
        triton_loss.BLOCK = block
        fused = loss.fused_loss_and_gradients(hidden, weight, targets, scale, vocab, softcap)
        for a, b in zip(plain, fused, strict=True):
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1.0)))
        kept = (hidden @ weight.T).contiguous()
        before = kept.clone()
        only = triton_loss.losses_(kept, targets, None, vocab_size=vocab, softcap=softcap)
        assert torch.equal(kept, before), "without row_scale the logits stay"
        assert torch.allclose(only, plain[0], rtol=1e-5, atol=1e-5)
assert worst < 3e-6, worst

# Large logits without a cap; a row with a NaN has a loss of NaN, its neighbours do not.
logits = torch.randn(4, 128) * 1e4
logits[2, 7] = float("nan")
targets = torch.tensor([3, 4, 5, 6])
expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
got = triton_loss.losses_(logits, targets, torch.ones(4), vocab_size=128, softcap=0.0)
assert torch.isnan(got[2]) and not torch.isnan(got[[0, 1, 3]]).any()
assert torch.allclose(got[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-5)
"""

COMPILED = """
import os, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from reference.kernels import triton_loss as t

tools = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin")
types = {
    "logits_ptr": "*bf16", "targets_ptr": "*i64", "row_scale_ptr": "*fp32",
    "losses_ptr": "*fp32", "visible": "i32", "padded": "i32", "softcap": "fp32",
}
for capability in (89, 90):
    for capped in (True,):
        const = {"CAPPED": capped, "GRADIENT": True, "STATISTICS": False, "BLOCK": t.BLOCK}
        source = ASTSource(
            fn=t.loss_kernel,
            signature={**types, **{name: "constexpr" for name in const}},
            constexprs=const,
            attrs={(i,): [["tt.divisibility", 16]] for i in range(6)},
        )
        target = GPUTarget("cuda", capability, 32)
        out = triton.compile(source, target=target, options={"num_warps": t.WARPS})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(out.asm["cubin"])
            file.flush()
            command = [f"{tools}/cuobjdump", "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack = (int(re.search(rf"{n}:(\\d+)", usage)[1]) for n in ("REG", "STACK"))
        print(capability, capped, "registers", registers, "stack", stack)
"""


@needs_triton
def test_interpreted_kernel_equals_the_plain_path() -> None:
    _run(INTERPRETED, TRITON_INTERPRET="1")


@needs_triton
def test_compiled_kernel_spills_nothing_on_ada_and_hopper() -> None:
    lines = re.findall(r"registers (\d+) stack (\d+)", _run(COMPILED))
    assert len(lines) == 2
    for registers, stack in lines:
        assert int(stack) == 0  # spilled registers live on the stack
        assert int(registers) <= 128  # two programs of 256 threads fit a multiprocessor


@pytest.mark.parametrize("tokens", [1, 63, 64, 8192, 8193, 65536])
def test_chunks_cover_all_rows_and_none_is_a_short_tail(tokens: int) -> None:
    row = 49152 * 2
    parts = fused_chunks(tokens, row)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(tokens))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) * row <= FUSED_CHUNK_BYTES + 64 * row
    assert min(sizes) >= min(max(sizes) // 2, tokens)


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

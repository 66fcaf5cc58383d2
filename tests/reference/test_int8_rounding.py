"""Fused int8 rounding: the formulas against fp64, the kernels against the formulas."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from reference.kernels.int8_rounding import (
    TOKENS,
    block_mm,
    produce,
    round_both,
    round_both_plain,
)

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

INTERPRETED = """
import torch
from reference.kernels import int8_rounding as r, int8_rounding_triton as k

def case(M, N, dtype):
    g = torch.Generator().manual_seed(M)
    x = torch.randn(M, N, generator=g) * torch.logspace(-3, 2, M)[:, None]
    x[3] = 0.0
    return x.to(dtype), torch.randn(M, N, generator=g).to(dtype)

for M, N in ((300, 96), (128, 64), (5, 70)):
    for dtype in (torch.float32, torch.bfloat16):
        x, gate = case(M, N, dtype)
        for name, number in r.PRODUCERS.items():
            second = gate if name == "relu2_backward" else None
            plain = r.round_both_plain(x, name, second)
            fused = k.launch_round_both(x, number, second)
            for a, b in zip(plain, fused, strict=True):
                if name != "norm":
                    assert torch.equal(a, b), (M, N, dtype, name)
                elif a.dtype == torch.int8:  # at most a step, and rarely: half-way values
                    difference = (a.int() - b.int()).abs()
                    assert difference.max() <= 1 and difference.float().mean() < 1e-3
                else:
                    assert torch.allclose(a, b, rtol=1e-6)

# A value that is not finite is seen in its row and its columns, and nowhere else.
x[2, 9] = float("inf")
x[4, 11] = float("nan")
for name, number in r.PRODUCERS.items():
    second = gate.abs() + 1 if name == "relu2_backward" else None
    for both in (r.round_both_plain(x, name, second), k.launch_round_both(x, number, second)):
        assert both.row_scale.isnan().flatten().nonzero().flatten().tolist() == [2, 4], name
        seen = set(both.column_scale.isnan().any(1).nonzero().flatten().tolist())
        assert {9, 11} <= seen and (name == "norm" or seen == {9, 11}), name

a = r.round_both_plain(torch.randn(300, 96))
b = r.round_both_plain(torch.randn(300, 70))
expected = r.block_mm(b.columns, a.columns, b.column_scale, a.column_scale)
for add in (False, True):
    c = torch.randn(70, 96) if add else torch.full((70, 96), float("nan"))
    before = c.clone()
    k.block_mm_kernel[(9,)](
        b.columns, a.columns, c, b.column_scale, a.column_scale, 70, 96, 300, 3,
        32, 32, r.TOKENS, 2, add,
    )
    assert torch.equal(c, before + expected if add else expected), add
"""

COMPILED = """
import os, re, subprocess, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from reference.kernels import int8_rounding_triton as k

tools = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin")

def build(kernel, types, const, warps, stages):
    source = ASTSource(
        fn=kernel,
        signature={**types, **{name: "constexpr" for name in const}},
        constexprs=const,
        attrs={(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values())
               if t != "fp32"},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    out = triton.compile(source, target=GPUTarget("cuda", 89, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(out.asm["cubin"])
        file.flush()
        command = [f"{tools}/cuobjdump", "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{n}:(\\d+)", usage)[1]) for n in ("REG", "STACK"))
    mma = "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32" in out.asm["ptx"]
    print("kernel", warps, registers, stack, out.metadata.shared, int(mma))

pointers = {"x_ptr": "*bf16", "gate_ptr": "*bf16", "scale_ptr": "*fp32", "root_ptr": "*fp32"}
tile = {
    **pointers, "rows_ptr": "*i8", "columns_ptr": "*i8", "column_scale_ptr": "*fp32",
    "M": "i32", "N": "i32", "blocks": "i32", "smallest": "fp32", "rounding": "fp32",
}
build(k.tile_kernel, tile, {"PRODUCER": 3, "TOKENS": k.TOKENS, "CHANNELS": k.TILE_CHANNELS}, 8, 3)
product = {
    "a_ptr": "*i8", "b_ptr": "*i8", "c_ptr": "*fp32", "scale_a_ptr": "*fp32",
    "scale_b_ptr": "*fp32", "M": "i32", "N": "i32", "K": "i32", "blocks": "i32",
}
for m, n, stages, warps in k.TILES[:2]:
    const = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k.TOKENS, "GROUP_M": k.GROUP_M, "ADD": True}
    build(k.block_mm_kernel, product, const, warps, stages)
"""


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


@needs_triton
def test_interpreted_kernels_equal_the_formulas_to_the_bit() -> None:
    _run(INTERPRETED, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_compiled_kernels_fit_an_ada_multiprocessor() -> None:
    lines = re.findall(r"kernel (\d+) (\d+) (\d+) (\d+) (\d)", _run(COMPILED))
    assert len(lines) == 3
    for number, (warps, registers, stack, shared, mma) in enumerate(lines):
        assert int(stack) == 0, "registers are spilled"
        assert int(warps) * 32 * int(registers) <= 65_536
        assert int(shared) <= 101_376
        assert number == 0 or mma == "1", "the product must use the int8 tensor instruction"


@pytest.mark.parametrize("producer", ["identity", "norm", "relu2", "relu2_backward"])
def test_both_layouts_hold_the_produced_values_within_half_a_step(producer: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3 * TOKENS + 5, 40, generator=g)
    x[7] = 0.0
    gate = torch.randn(x.shape, generator=g) if producer == "relu2_backward" else None
    both, y = round_both(x, producer, gate), produce(x, producer, gate)
    rows = both.rows.float() * both.row_scale
    assert ((rows - y).abs() <= 0.5001 * both.row_scale).all()
    scale = both.column_scale.T.repeat_interleave(TOKENS, dim=0)[: len(x)]
    columns = both.columns.T.float() * scale
    assert ((columns - y).abs() <= 0.5001 * scale).all()
    assert not rows[7].any()


def test_the_block_product_is_exact_for_its_rounded_factors() -> None:
    a, b = (round_both_plain(torch.randn(400, n)) for n in (24, 30))
    got = block_mm(a.columns, b.columns, a.column_scale, b.column_scale)
    scales = [both.column_scale.double().repeat_interleave(TOKENS, 1)[:, :400] for both in (a, b)]
    exact = (a.columns.double() * scales[0]) @ (b.columns.double() * scales[1]).T
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-5)
    into = torch.ones(24, 30)
    block_mm(a.columns, b.columns, a.column_scale, b.column_scale, into=into)
    torch.testing.assert_close(into, got + 1.0)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        round_both(torch.randn(4, 8).T)
    with pytest.raises(ValueError, match="gate"):
        round_both(torch.randn(4, 8), "relu2_backward")

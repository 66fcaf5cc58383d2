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
    BLOCK,
    EPSILON,
    block_mm,
    inverse_rms,
    produce,
    round_both,
    round_tiles,
)

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

INTERPRETED = """
import torch
from reference.kernels import int8_rounding as r, int8_rounding_triton as k

def case(M, N, dtype):
    g = torch.Generator().manual_seed(M)
    x = torch.randn(M, N, generator=g) * torch.logspace(-3, 2, M)[:, None]
    x[3] = 0.0
    x = x.to(dtype)
    return x, {"relu2_backward": torch.randn(M, N, generator=g).to(dtype), "norm": r.inverse_rms(x)}

for M, N in ((300, 96), (128, 256), (5, 140)):
    for dtype in (torch.float32, torch.bfloat16):
        x, others = case(M, N, dtype)
        for name, number in r.PRODUCERS.items():
            plain = r.round_both(x, name, others.get(name))
            fused = k.launch_round_both(x, number, others.get(name))
            for a, b in zip(plain, fused, strict=True):
                assert a.shape == b.shape and torch.equal(a, b), (M, N, dtype, name)

# A value that is not finite is seen in its row and its columns, and nowhere else.
x[2, 9] = float("inf")
x[4, 11] = float("nan")
for name, number in r.PRODUCERS.items():
    other = others["relu2_backward"].abs() + 1 if name == "relu2_backward" else None
    other = torch.ones(len(x), 1) if name == "norm" else other
    for both in (r.round_both(x, name, other), k.launch_round_both(x, number, other)):
        assert both.row_scale.isnan().any(0).nonzero().flatten().tolist() == [2, 4], name
        assert both.column_scale.isnan().any(0).nonzero().flatten().tolist() == [9, 11], name

a = r.round_both(torch.randn(300, 96))
b = r.round_both(torch.randn(300, 70))
for dtype in (torch.float32, torch.bfloat16):
    expected = r.block_mm(b.columns, a.columns, b.column_scale, a.column_scale)
    for add in (False, True):
        c = torch.randn(70, 96) if add else torch.full((70, 96), float("nan"))
        c = c.to(dtype)
        before = c.clone()
        k.block_mm_kernel[(9,)](
            b.columns, a.columns, c, b.column_scale, a.column_scale, 70, 96, 300, 3,
            32, 32, r.BLOCK, 2, add,
        )
        if dtype == torch.float32:
            assert torch.equal(c, before + expected if add else expected), add
        elif not add:  # the interpreter cuts fp32 off to bf16, a GPU rounds
            torch.testing.assert_close(c.float(), expected, rtol=2**-7, atol=1e-3)
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

tile = {
    "x_ptr": "*bf16", "other_ptr": "*bf16", "rows_ptr": "*i8", "row_scale_ptr": "*fp32",
    "columns_ptr": "*i8", "column_scale_ptr": "*fp32", "M": "i32", "N": "i32",
    "smallest": "fp32", "rounding": "fp32",
}
for number in (3, 2):
    build(k.tile_kernel, tile, {"PRODUCER": number, "BLOCK": k.BLOCK}, k.ROUND_WARPS, 3)
product = {
    "a_ptr": "*i8", "b_ptr": "*i8", "c_ptr": "*fp32", "scale_a_ptr": "*fp32",
    "scale_b_ptr": "*fp32", "M": "i32", "N": "i32", "K": "i32", "blocks": "i32",
}
for m, n, stages, warps in k.TILES:
    const = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k.BLOCK, "GROUP_M": k.GROUP_M, "ADD": True}
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
    assert len(lines) == 7
    for number, (warps, registers, stack, shared, mma) in enumerate(lines):
        assert int(stack) == 0, "registers are spilled"
        assert int(warps) * 32 * int(registers) <= 65_536
        assert int(shared) <= 101_376
        assert number < 2 or mma == "1", "the product must use the int8 tensor instruction"


@pytest.mark.parametrize("producer", ["identity", "norm", "relu2", "relu2_backward"])
def test_both_layouts_hold_the_produced_values_within_half_a_step(producer: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3 * BLOCK + 5, 140, generator=g)
    x[7] = 0.0
    other = {
        "norm": inverse_rms(x),
        "relu2_backward": torch.randn(x.shape, generator=g),
    }.get(producer)
    both, y = round_both(x, producer, other), produce(x, producer, other)
    if producer == "norm":
        torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (140,), eps=EPSILON))
    scale = both.row_scale.T.repeat_interleave(BLOCK, dim=1)[:, :140]
    rows = both.rows.float() * scale
    assert ((rows - y).abs() <= 0.5001 * scale).all()
    scale = both.column_scale.repeat_interleave(BLOCK, dim=0)[: len(x)]
    columns = both.columns.T.float() * scale
    assert ((columns - y).abs() <= 0.5001 * scale).all()
    assert not rows[7].any()


def test_values_are_lifted_by_thresholds_so_that_their_mean_stays() -> None:
    y = torch.full((BLOCK, BLOCK), 0.3)
    y[:, 0] = 127.0
    lift = torch.rand((BLOCK, BLOCK), generator=torch.Generator().manual_seed(0))
    both = round_tiles(y, lift)
    assert set(both.rows[:, 1:].unique().tolist()) == {0, 1}
    assert float(both.rows[:, 1:].float().mean()) == pytest.approx(0.3, abs=0.02)
    assert not round_tiles(y).rows[:, 1:].any()


def test_the_block_product_is_exact_for_its_rounded_factors() -> None:
    a, b = (round_both(torch.randn(400, n)) for n in (24, 30))
    found = block_mm(a.columns, b.columns, a.column_scale, b.column_scale)
    scales = [both.column_scale.T.double().repeat_interleave(BLOCK, 1)[:, :400] for both in (a, b)]
    exact = (a.columns.double() * scales[0]) @ (b.columns.double() * scales[1]).T
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)
    into = torch.ones(24, 30)
    block_mm(a.columns, b.columns, a.column_scale, b.column_scale, into=into)
    torch.testing.assert_close(into, found + 1.0)
    half = block_mm(a.columns, b.columns, a.column_scale, b.column_scale, dtype=torch.bfloat16)
    assert torch.equal(half, found.bfloat16())


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        round_both(torch.randn(4, 8).T)
    for producer in ("norm", "relu2_backward"):
        with pytest.raises(ValueError, match="other"):
            round_both(torch.randn(4, 8), producer)
    with pytest.raises(ValueError, match="other"):
        round_both(torch.randn(4, 8), "relu2", torch.randn(4, 8))

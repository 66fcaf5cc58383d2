"""Compiles our Triton kernels for a card and prints what each takes, a JSON line a kernel."""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reference.kernels import int8_loss_triton, int8_rounding_triton, triton_loss

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
INT8_MMA = "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"
ADA, HOPPER = 89, 90


def build(
    kernel: Any, types: dict[str, str], const: dict[str, Any], arch: int, **options: Any
) -> None:
    """Compiles `kernel` for sm_`arch`; pointers and sizes are multiples of 16, as in training."""
    source = ASTSource(
        fn=kernel,
        signature={**types, **{name: "constexpr" for name in const}},
        constexprs=const,
        attrs={
            (i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t != "fp32"
        },
    )
    out = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(out.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    facts = {
        "kernel": kernel.fn.__name__,
        "arch": arch,
        "threads": 32 * options["num_warps"],
        "registers": registers,
        "stack": stack,
        "shared": out.metadata.shared,
        "int8_mma": INT8_MMA in out.asm["ptx"],
        "conversions": out.asm["ptx"].count("cvt.rn.f32.s32"),
        "operations": len(re.findall(r"\b(?:mul|add|sub|fma)\.(?:rn\.)?f32", out.asm["ptx"])),
        "tile": const.get("BLOCK_M", 0) * const.get("BLOCK_N", 0),
    }
    print(json.dumps(facts))


def main() -> None:
    types = {
        "logits_ptr": "*bf16", "targets_ptr": "*i64", "row_scale_ptr": "*fp32",
        "losses_ptr": "*fp32", "visible": "i32", "padded": "i32", "softcap": "fp32",
    }  # fmt: skip
    const = {"CAPPED": True, "GRADIENT": True, "STATISTICS": False, "BLOCK": triton_loss.BLOCK}
    for arch in (ADA, HOPPER):
        build(triton_loss.loss_kernel, types, const, arch, num_warps=triton_loss.WARPS)

    types = {
        "logits_ptr": "*bf16", "log_sum_ptr": "*fp32", "factor_ptr": "*fp32", "lift_ptr": "*fp32",
        "rows_ptr": "*i8", "row_scale_ptr": "*fp32", "columns_ptr": "*i8",
        "column_scale_ptr": "*fp32", "M": "i32", "V": "i32", "visible": "i32",
        "softcap": "fp32", "smallest": "fp32",
    }  # fmt: skip
    const = {"CAPPED": True, "BLOCK": int8_rounding_triton.BLOCK}
    warps = int8_loss_triton.WARPS
    build(
        int8_loss_triton.gradient_kernel, types, const, ADA, num_warps=warps, enable_fp_fusion=False
    )

    k = int8_rounding_triton
    types = {
        "x_ptr": "*bf16", "other_ptr": "*bf16", "rows_ptr": "*i8", "row_scale_ptr": "*fp32",
        "columns_ptr": "*i8", "column_scale_ptr": "*fp32", "M": "i32", "N": "i32",
        "smallest": "fp32", "rounding": "fp32",
    }  # fmt: skip
    for producer in (3, 2):
        const = {"PRODUCER": producer, "BLOCK": k.BLOCK}
        warps = k.ROUND_WARPS
        build(
            k.tile_kernel, types, const, ADA, num_warps=warps, num_stages=3, enable_fp_fusion=False
        )
    types = {
        "a_ptr": "*i8", "b_ptr": "*i8", "c_ptr": "*fp32", "scale_a_ptr": "*fp32",
        "scale_b_ptr": "*fp32", "M": "i32", "N": "i32", "K": "i32", "blocks": "i32",
    }  # fmt: skip
    for m, n, stages, warps in k.TILES:
        const = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k.BLOCK, "GROUP_M": k.GROUP_M, "ADD": True}
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
        build(k.block_mm_kernel, types, const, ADA, **options)


main()

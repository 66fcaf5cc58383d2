"""Matrix products whose factors are rounded to 8 bits: fp8 with one scale or one a row, int8.

All three products of a linear map have the form a @ b.T with the sum over the last axis of both,
and both factors laid out along it: the only layout that Ada's 8-bit kernels take. Whatever does not
lie that way is turned while it is rounded, in the same pass once compiled.

    kind          factors                                scale                   kernel
    fp8           e4m3, gradients e5m2 (wider range)     one a matrix            cuBLAS
    fp8_rowwise   e4m3                                   one a row, both sides   CUTLASS
    int8          -127…127                               one for 128 of a row    Triton

Here int8 factors are rounded from memory, for single products in trials and benches. Training in
int8 rounds where a tensor is made (`reference.model.int8_maps`), with the same kernels.

Scales are taken from the tensor itself, each time. On a CPU the same factors are multiplied by
PyTorch's own kernels, so what a test sees is the rounding itself.

References:
    FP8 formats: https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from reference.kernels.int8_rounding import BLOCK, block_mm, round_both

Kind = Literal["bf16", "fp8", "fp8_rowwise", "int8"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FACTOR_MULTIPLE = 16  # what the kernels want every dimension to be a multiple of
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
SMALLEST_AMAX = 1e-12  # an all-zero row or matrix stays zero instead of becoming NaN


class Factor(NamedTuple):
    """A rounded matrix: (rows, K) 8-bit values, contiguous, times fp32 `scale`.

    `scale` is a scalar or (rows, 1); for int8 (ceil(K / BLOCK), rows).
    """

    values: Tensor
    scale: Tensor

    def dequantized(self) -> Tensor:
        """The fp32 matrix that is in effect multiplied."""
        scale = self.scale
        if self.values.dtype == torch.int8:
            scale = scale.T.repeat_interleave(BLOCK, dim=1)[:, : self.values.size(1)]
        return self.values.float() * scale


def quantize(x: Tensor, kind: Kind, *, gradient: bool = False) -> Factor:
    """Rounds a matrix (rows, K), of any layout, to the nearest value that `kind` can hold.

    Args:
        gradient: A gradient rather than a weight or an activation: wider range for "fp8".
    """
    if kind == "int8":
        both = round_both(x.contiguous())
        return Factor(both.rows, both.row_scale)
    dtype = E5M2 if kind == "fp8" and gradient else E4M3
    x = x.float()
    amax = x.abs().amax() if kind == "fp8" else x.abs().amax(dim=1, keepdim=True)
    scale = amax.clamp_min(SMALLEST_AMAX) / LARGEST[dtype]
    # A product of rounded numbers may pass the largest one by a bit; a cast to fp8 makes that NaN.
    values = (x / scale).clamp(-LARGEST[dtype], LARGEST[dtype])
    return Factor(values.to(dtype).contiguous(), scale)


def product(
    a: Tensor, b: Tensor, kind: Kind, dtype: torch.dtype, *, gradient: bool = False
) -> Tensor:
    """a (m, K) @ b (n, K).T in `dtype`, the factors rounded to `kind`.

    Sizes that the kernels do not take (a multiple of 16 is needed) are multiplied as they are.

    Args:
        gradient: `a` is a gradient.
    """
    if kind == "bf16" or any(size % FACTOR_MULTIPLE for size in (*a.shape, b.size(0))):
        return a.to(dtype) @ b.to(dtype).T
    return multiply(quantize(a, kind, gradient=gradient), quantize(b, kind), kind, dtype)


def multiply(a: Factor, b: Factor, kind: Kind, dtype: torch.dtype) -> Tensor:
    """a (m, K) @ b (n, K).T of rounded factors, summed in fp32 (int8: exactly)."""
    if kind == "int8":
        half = torch.bfloat16
        return block_mm(a.values, b.values, a.scale, b.scale, dtype=half).to(dtype)
    if kind == "fp8":
        scale_a, scale_b = a.scale, b.scale
    else:
        scale_a, scale_b = a.scale, b.scale.T  # (m, 1) and (1, n)
    y = torch._scaled_mm(
        a.values,
        b.values.T,
        scale_a=scale_a,
        scale_b=scale_b,
        out_dtype=torch.bfloat16,
        # Sums of gradients keep the full accumulator; rows of their own scale need it less.
        use_fast_accum=a.values.dtype == E4M3,
    )
    return y.to(dtype)

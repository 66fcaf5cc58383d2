"""int8 matrix product with a scale for each row of both factors, as one operator.

On a GPU it is a Triton kernel (`reference.kernels.int8_triton`); elsewhere PyTorch's exact integer
product. An operator of its own, because the compiler must neither look into it nor split it.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("n4090::int8_scaled_mm", mutates_args=())
def scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    """(a @ b.T) * scale_a * scale_b.T in bf16; a (m, K) and b (n, K) int8, scales (rows, 1) fp32.

    K up to 133,000: beyond it a sum of products may leave 32 bits.
    """
    if a.is_cuda:
        from reference.kernels.int8_triton import launch

        return launch(a, b, scale_a, scale_b)
    return (torch._int_mm(a, b.T).float() * scale_a * scale_b.T).to(torch.bfloat16)


@scaled_mm.register_fake
def _(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    return a.new_empty((a.size(0), b.size(0)), dtype=torch.bfloat16)

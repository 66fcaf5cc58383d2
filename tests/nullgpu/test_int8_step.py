"""An int8 training step on the null device: which kernels it launches, and how often."""

from __future__ import annotations

import pytest
from nullgpu_eager import eager_kernels, more_than_expected
from nullgpu_runs import NullDevice

LAYERS, MICRO_STEPS, TOKENS = 2, 2, 4 * 512
SPEC = {
    "recipe": "reference",
    "decided": True,
    "model": {"n_layer": LAYERS, "n_embd": 256, "n_head": 2, "n_kv_head": 2, "seq_len": 512},
    "vocab_size": 4096,
    "pretrain": {
        "matmul": "int8",
        "matmul_layers": ["attention", "mlp", "head"],
        "attention": "varlen",
        "device_batch_size": 4,
        "total_batch_size": MICRO_STEPS * TOKENS,
    },
}

# The most eager kernels over a whole activation in a step (see test_step.py). The blocks are few
# and small here, so the head's and the accumulators of the weights' gradients count as well, and
# what the learned scales of the norms multiply once a step.
EAGER = {
    "mul": 32,
    "fill": 18,
    "add": 17,
    "copy": 10,
    "norm": 8,
    "rows of a table": 6,
    "neg": 2,
    "sum": 2,
}


@pytest.mark.gpuless
def test_an_int8_step_launches_its_kernels_and_no_product_in_bf16(null_gpu: NullDevice, tmp_path):
    found, whole, step = null_gpu.step(tmp_path, "int8", SPEC)
    assert not whole.of("refused"), whole.of("refused")[:3]
    assert not found["breaks"], found["breaks"]
    assert found["graphs"][0] > 0 and found["graphs"][1] == 0
    assert found["decisions"]["int8"] == ["attention", "mlp", "head"]
    kernels = eager_kernels(step, TOKENS * SPEC["model"]["n_embd"])
    assert not more_than_expected(kernels, EAGER), kernels
    launches = step.count("launch")
    # A block has four maps (queries, keys and values are one), the head is another: three products
    # each. Inputs and gradients of every map are rounded in each micro-step, weights once a step.
    maps = 4 * LAYERS
    assert launches["block_mm_kernel"] == MICRO_STEPS * 3 * (maps + 1)
    assert launches["tile_kernel"] == MICRO_STEPS * (2 * maps + 1) + maps + 1
    assert launches["loss_kernel"] == launches["gradient_kernel"] == MICRO_STEPS
    # Tables of tokens, of values in every other layer, and the targets' rows of the head.
    assert launches["add_rows_kernel"] == MICRO_STEPS * 3
    # Over the tokens of a micro-batch only the narrow gates are left to cuBLAS.
    for _, _, sizes, *_ in step.of("gemm"):
        m, n, k, _ = map(int, sizes.split())
        assert TOKENS not in (m, n, k) or min(m, n, k) < 64, sizes

"""Rows added by index in Triton's interpreter: each once, in its place."""

import torch

from reference.kernels.table_gradient_triton import launch_add_rows

for tokens in ([5], [3] * 20, [0, 7, 7, 2, 7, 0, 9, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1], [9, 8, 7]):
    for dtype in (torch.float32, torch.bfloat16):
        g = torch.Generator().manual_seed(len(tokens))
        tokens_, C = torch.tensor(tokens), 300  # more than one block of channels, an odd rest
        rows = torch.randn(len(tokens), C, generator=g).to(dtype)
        total = torch.randn(10, C, generator=g).to(dtype)
        sums = torch.zeros(10, C).index_add_(0, tokens_, rows.float())
        expected = (total.float() + sums).to(dtype)
        launch_add_rows(total, *torch.sort(tokens_, stable=True), rows)
        untouched = [t for t in range(10) if t not in tokens]
        assert torch.equal(total[untouched], expected[untouched])
        tolerance = 1e-5 if dtype == torch.float32 else 0.04
        torch.testing.assert_close(total, expected, atol=tolerance, rtol=tolerance)

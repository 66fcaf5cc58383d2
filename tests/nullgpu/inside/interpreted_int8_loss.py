"""The kernels of the int8 head in Triton's interpreter against the formulas."""

import torch

from reference.kernels import int8_loss as plain
from reference.kernels import int8_loss_triton as k
from reference.kernels import triton_loss

for n, V, visible, softcap in ((130, 192, 150, 15.0), (5, 128, 128, 0.0)):
    g = torch.Generator().manual_seed(n)
    logits = (4 * torch.randn(n, V, generator=g)).bfloat16()
    targets = torch.randint(0, visible, (n,), generator=g)
    targets[1] = -1
    factor = torch.rand(n, generator=g) / 1000
    factor[1] = 0.0
    expected = plain.statistics(logits, targets, visible, softcap)
    found = triton_loss.statistics(logits, targets, vocab_size=visible, softcap=softcap)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    lift = plain.thresholds(logits.device)
    a = plain.round_gradient(logits, expected.log_sum, factor, visible, softcap)
    b = k.launch_round_gradient(logits, expected.log_sum, factor, lift, visible, softcap)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        if x.dtype == torch.int8:  # exponentials may differ in their last bit
            difference = (x.int() - y.int()).abs()
            assert difference.max() <= 1 and difference.float().mean() < 1e-3
        else:
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-20)
    assert not b.rows[1].any() and not b.rows[:, visible:].any()

# A value that is not finite is seen in its row and its columns, and nowhere else.
logits[3, 7] = float("nan")
for result in (
    plain.round_gradient(logits, expected.log_sum, factor, visible, softcap),
    k.launch_round_gradient(logits, expected.log_sum, factor, lift, visible, softcap),
):
    assert result.row_scale.isnan().any(0).nonzero().flatten().tolist() == [3]
    assert result.column_scale.isnan().any(0).nonzero().flatten().tolist() == [7]

"""Rounding and product of the int8 maps in Triton's interpreter: the formulas, bit for bit."""

import torch

from reference.kernels import int8_rounding as r
from reference.kernels import int8_rounding_triton as k


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

# The largest sums that a block can have, of both signs.
full = torch.full((32, 256), 127, dtype=torch.int8)
full[::2] *= -1
ones, c = torch.ones(2, 32), torch.empty(32, 32)
k.block_mm_kernel[(1,)](full, full, c, ones, ones, 32, 32, 256, 2, 32, 32, r.BLOCK, 1, False)
assert torch.equal(c, (full.double() @ full.double().T).float())

a = r.round_both(torch.randn(300, 96))
b = r.round_both(torch.randn(300, 70))
for dtype in (torch.float32, torch.bfloat16):
    expected = r.block_mm(b.columns, a.columns, b.column_scale, a.column_scale)
    for add in (False, True):
        c = torch.randn(70, 96) if add else torch.full((70, 96), float("nan"))
        c = c.to(dtype)
        before = c.clone()
        k.block_mm_kernel[(9,)](
            b.columns,
            a.columns,
            c,
            b.column_scale,
            a.column_scale,
            70,
            96,
            300,
            3,
            32,
            32,
            r.BLOCK,
            2,
            add,
        )
        if dtype == torch.float32:
            assert torch.equal(c, before + expected if add else expected), add
        elif not add:  # the interpreter cuts fp32 off to bf16, a GPU rounds
            torch.testing.assert_close(c.float(), expected, rtol=2**-7, atol=1e-3)

"""Fused int8 rounding: the formulas against fp64, the kernels against the formulas."""

from __future__ import annotations

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

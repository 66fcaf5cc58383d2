"""The Triton loss kernel: in Triton's interpreter against the plain path, and compiled for GPUs."""

from __future__ import annotations

import pytest

from reference.model.loss import FUSED_CHUNK_BYTES, fused_chunks


@pytest.mark.parametrize("tokens", [1, 63, 64, 8192, 8193, 65536])
def test_chunks_cover_all_rows_and_none_is_a_short_tail(tokens: int) -> None:
    row = 49152 * 2
    parts = fused_chunks(tokens, row)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(tokens))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) * row <= FUSED_CHUNK_BYTES + 64 * row
    assert min(sizes) >= min(max(sizes) // 2, tokens)

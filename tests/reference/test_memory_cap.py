"""The cap on a GPU's memory reaches the allocator, which wants a device with an index."""

from __future__ import annotations

import types

import pytest
import torch

from reference.train.device import memory_limit_bytes


@pytest.mark.parametrize(("name", "index"), [("cuda", 1), ("cuda:0", 0)])
def test_the_cap_is_set_for_a_device_with_and_without_an_index(name, index, monkeypatch):
    fractions = []
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(total_memory=96 << 30)
    )
    monkeypatch.setattr(
        torch._C, "_cuda_setMemoryFraction", lambda *call: fractions.append(call), raising=False
    )
    assert memory_limit_bytes(torch.device(name), 24.0) == 24 << 30
    assert fractions == [(0.25, index)]
    assert memory_limit_bytes(torch.device(name), 0) == 96 << 30 and len(fractions) == 1

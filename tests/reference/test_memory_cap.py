"""The cap on a GPU's memory reaches the allocator, which wants a device with an index."""

from __future__ import annotations

import types

import pytest
import torch

from reference.train.device import memory_limit_bytes, plannable_bytes


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


def test_memory_that_others_hold_counts_only_where_it_is_measured(monkeypatch):
    whole, free, ours = 24 << 30, 10 << 30, 2 << 30
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(total_memory=whole)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, whole))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: ours)
    device = torch.device("cuda")
    assert plannable_bytes(device, 0, measure=False) == whole
    found = plannable_bytes(device, 0, measure=True)
    assert free + ours < found < 1.06 * (free + ours)
    free = whole - (1 << 30)
    assert plannable_bytes(device, 0, measure=True) == whole  # never more than the card
    assert plannable_bytes(torch.device("cpu"), 0, measure=True) is None

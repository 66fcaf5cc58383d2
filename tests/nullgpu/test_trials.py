"""What a run decides by timing, on the null device: every kernel is compiled and launched."""

from __future__ import annotations

import json

import pytest
from nullgpu_runs import INSIDE, Log, NullDevice

pytestmark = pytest.mark.gpuless


def test_every_attention_kernel_runs_or_says_why_not(null_gpu: NullDevice, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out.json"
    null_gpu.run(INSIDE / "attention.py", out, log=log)
    found = json.loads(out.read_text())
    rows = {(r["backend"], r["window"], r["documents"]): r["reason"] for r in found["rows"]}
    for documents in (False, True):
        for window in (512, 2048):
            for backend in ("varlen", "flex", "flex_small"):
                assert rows[backend, window, documents] is None, rows[backend, window, documents]
    assert rows["sdpa", 2048, False] is None
    assert "not installed" in rows["fa2", 512, False]
    assert "cuDNN" in rows["cudnn", 2048, False]
    device = Log.read(log)
    assert not device.of("refused"), device.of("refused")[:3]
    tiles = {event[3] for event in device.of("launch") if "flex_attention" in event[0]}
    assert max(map(int, tiles)) <= 101_376

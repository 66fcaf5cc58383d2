"""The script for a GPU, rehearsed: every part at toy size, and up to the first kernel of a GPU."""

from __future__ import annotations

import json
import types

import pytest
import torch

from reference import gpu_check
from reference.bench.kernels import nanochat_config


def test_the_rehearsal_goes_through_every_part_and_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu_check, "bench_matmuls",
        lambda depths, **options: iter([{"depth": 2, "map": "up", "which": "forward",
            "kind": "bf16", "ms": 1.0, "tflops": 2.0, "speed": 1.0, "reason": None}]),
    )  # fmt: skip
    code = gpu_check.main(["--device", "cpu", "--out", str(tmp_path), "--steps", "2"])
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    numerics = document["parts"]["numerics"]["result"]
    assert code == 0 and numerics["ok"], numerics
    assert len(numerics["rows"]) == 9 and not document["not_reached"]
    losses = {}
    for name in gpu_check.VARIANTS:
        row = document["parts"][f"d20 {name}"]["result"]
        assert row["reason"] is None, (name, row)
        losses[name] = row["loss_last"]
    assert losses["baseline"] == pytest.approx(losses["ours, bf16"], rel=1e-4)
    assert losses["ours, fp8"] == pytest.approx(losses["ours, bf16"], rel=0.02)
    text = (tmp_path / "gpu_check.md").read_text()
    assert "| d20 ours, fp8 |" in text and "- ok: int8, forward" in text
    assert text in capsys.readouterr().out


def test_no_time_left_is_said_part_by_part(tmp_path):
    report = gpu_check.Report(tmp_path, 0.0)
    report.part("numerics", 20, lambda: pytest.fail("there was no time for this"))
    assert "Not reached in time: numerics" in (tmp_path / "gpu_check.md").read_text()


def test_without_a_gpu_it_says_so(capsys, tmp_path):
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    assert "no GPU can be seen" in capsys.readouterr().err


def test_on_a_gpu_it_gets_as_far_as_the_first_kernel(tmp_path, monkeypatch):
    """This PyTorch has no CUDA: what asks for memory there fails, and the report says that."""
    properties = types.SimpleNamespace(
        name="NVIDIA GeForce RTX 4090", major=8, minor=9, total_memory=24 << 30,
        shared_memory_per_block_optin=101_376,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    small = nanochat_config(2, vocab_size=512, seq_len=64)
    monkeypatch.setattr(gpu_check, "nanochat_config", lambda depth, **_: small)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert parts["environment"]["result"]["capability"] == "8.9"
    for name in ("numerics", "d12 baseline", "d20 ours, fp8", "attention", "kernels"):
        text = json.dumps(parts[name])
        assert "CUDA" in text, (name, text[:300])

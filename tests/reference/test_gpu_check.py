"""The script for a GPU, rehearsed: every part at toy size, and up to the first kernel of a GPU."""

from __future__ import annotations

import json
import types

import pytest
import torch

from reference import gpu_check
from reference.bench.gpu_predictions import judged, product_gain
from reference.bench.gpu_report import OtherReport, Report
from reference.bench.kernels import nanochat_config


def test_the_rehearsal_goes_through_every_part_and_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "bench_matmuls", one_product)
    asked = ["--device", "cpu", "--out", str(tmp_path), "--steps", "2"]
    code = gpu_check.main(asked)
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    numerics = document["parts"]["numerics"]["result"]
    assert code == 0 and numerics["ok"], numerics
    assert len(numerics["rows"]) == 14 and not document["not_reached"]
    losses = {}
    for name in gpu_check.VARIANTS:
        row = document["parts"][f"d20 {name}"]["result"]
        assert row["reason"] is None, (name, row)
        losses[name] = row["loss_last"]
    assert losses["baseline"] == pytest.approx(losses["ours, bf16"], rel=1e-4)
    assert losses["ours, fp8"] == pytest.approx(losses["ours, bf16"], rel=0.02)
    text = (tmp_path / "gpu_check.md").read_text()
    assert "| d20 ours, fp8 |" in text and "- ok: int8, forward" in text
    assert "no figure below means anything" in text
    assert text in capsys.readouterr().out
    verdicts = {row["about"]: row["verdict"] for row in document["predictions"]}
    assert verdicts["kernels with wrong results"] == "held"
    assert verdicts["graphs compiled inside steps"] == "held"
    assert verdicts["d20 ours, fp8: peak memory over plan"] == "not measured"
    assert verdicts["d20 ours, bf16: tokens/s on an RTX 4090"] == "for another card"

    # The same command again measures nothing anew; other options would mix two kinds of figures.
    monkeypatch.setattr(gpu_check, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert gpu_check.main(asked) == 0
    assert json.loads((tmp_path / "gpu_check.json").read_text())["parts"] == document["parts"]
    assert gpu_check.main([*asked[:-1], "3"]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_check.json", "gpu_check.md"]


def one_product(depths, *, maps, **_):
    return iter([{"depth": depths[0], "map": maps[0], "shape": "512x128", "which": "forward",
        "kind": "bf16", "ms": 1.0, "tflops": 2.0, "speed": 1.0, "reason": None, "tokens": 64}],
    )  # fmt: skip


def test_rows_are_on_disk_as_they_come_and_a_failed_part_is_done_again(tmp_path):
    def on_disk():
        return json.loads((tmp_path / "gpu_check.json").read_text())["parts"]

    def rows(fails):
        yield {"ms": 1.0}
        assert on_disk()["kernel"]["result"] == [{"ms": 1.0}]
        if fails:
            raise RuntimeError("no such kernel")
        yield {"ms": 2.0}

    first = Report(tmp_path, 100.0)
    first.part("kernel", 0, lambda: rows(True))
    assert "no such kernel" in on_disk()["kernel"]["result"]["failed"]
    first.part("after", 0, lambda: {"value": 1})
    second = Report(tmp_path, 100.0)
    assert list(second.parts) == ["after"]
    second.part("kernel", 0, lambda: rows(False))
    assert on_disk()["kernel"]["result"] == [{"ms": 1.0}, {"ms": 2.0}]
    with pytest.raises(OtherReport, match="another card"):
        Report(tmp_path, 100.0, {"device": "another"})


def test_predictions_are_judged_by_what_was_measured():
    names = ("d20 ours, bf16", "d20 ours, int8")
    recipes = {name: gpu_check.recipe_of(20, gpu_check.VARIANTS[name[4:]], toy=False)
               for name in names}  # fmt: skip
    step = {"planned_bytes": 100, "graphs_in_steps": 0, "wait_share": 0.001, "loss_last": 5.0}
    parts = {
        "environment": {"result": {"device": "NVIDIA GeForce RTX 4090"}},
        "d20 ours, bf16": {"result": {**step, "tokens_per_s": 34_000.0, "peak_bytes": 95}},
        "d20 ours, int8": {"result": {**step, "tokens_per_s": 36_000.0, "peak_bytes": 120}},
        "products d20 up": {"result": [{"depth": 20, "map": "up", "shape": "5120x1280",
            "which": "forward", "kind": "int8", "tokens": 8192, "speed": 9.0}]},
    }  # fmt: skip
    found = {row.about: row.verdict for row in judged(parts, recipes)}
    assert found["d20 ours, bf16: tokens/s on an RTX 4090"] == "held"
    assert found["d20 ours, bf16: peak memory over plan"] == "held"
    assert found["d20 ours, int8: peak memory over plan"] == "did not hold"
    assert found["d20 ours, int8: speed against bf16"] == "did not hold"
    assert found["d20 ours, int8: last loss apart from bf16's"] == "held"
    assert found["kernels with wrong results"] == "not measured"
    (product,) = [verdict for about, verdict in found.items() if "int8 product" in about]
    assert product == "did not hold"
    parts["environment"]["result"]["device"] = "NVIDIA H200"
    found = {row.about: row.verdict for row in judged(parts, recipes)}
    assert found["d20 ours, bf16: tokens/s on an RTX 4090"] == "for another card"
    assert found["d20 ours, int8: peak memory over plan"] == "did not hold"


def test_an_8_bit_product_gains_at_most_what_its_rate_allows():
    for kind, most in (("fp8", 2.0), ("int8", 2.6)):
        small, large = (product_gain(5120, 1280, n, kind) for n in (256, 8192))
        assert 0 < small < large < most


def test_no_time_left_is_said_part_by_part(tmp_path):
    report = Report(tmp_path, 0.0)
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
    for name in ("numerics", "d12 baseline", "d20 ours, fp8", "attention", "products d20 up"):
        text = json.dumps(parts[name])
        assert "CUDA" in text, (name, text[:300])

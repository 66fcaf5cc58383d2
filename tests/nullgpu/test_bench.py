"""`n4090-kit bench train|kernels|levers` on the null device, as a stranger calls them.

Each runs to its end and gives figures, or in words why it has none. The figures mean nothing here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nullgpu_environment import CHECKOUT
from nullgpu_runs import Log, NullDevice

pytestmark = pytest.mark.gpuless_full

# `reference` with two blocks: as many kinds of compiled code, and far fewer weights.
CHANGES = {
    "vocab_size = 49152": "vocab_size = 16384",
    "n_layer = 20": "n_layer = 2",
    "n_embd = 1280": "n_embd = 256",
    "n_head = 10": "n_head = 2",
    "n_kv_head = 10": "n_kv_head = 2",
    "seq_len = 2048": "seq_len = 512",
    "total_batch_size = 524288": "total_batch_size = 4096",
}
FREE_BYTES = "import torch; print(torch.cuda.mem_get_info()[0])"
ROOM_BYTES = 120 << 20  # beside the trainer; its twin's weights and moments take 170 MB
# Levers that need what the environment or the null device lacks, and the word for it.
LACKING = {
    "attention fa2": "not installed",
    "attention fa3": "not installed",
    "soap": "cusolver",
    "soap muon": "cusolver",
}


def small_recipe(folder: Path) -> Path:
    text = (CHECKOUT / "reference/recipes/reference.toml").read_text()
    for old, new in CHANGES.items():
        assert old in text, old
        text = text.replace(old, new, 1)
    path = folder / "small.toml"
    path.write_text(text)
    return path


def bench(
    null_gpu: NullDevice, folder: Path, *options: str | Path, **settings: str
) -> tuple[Any, Log]:
    command = ("-m", "kit.cli.main", "bench", *options, "--device", "cuda", "--json")
    done = null_gpu.run(*command, log=folder / "log", CUDA_NULL_BRIEF="1", **settings)
    return json.loads(done.stdout), Log.read(folder / "log")


def test_bench_train(null_gpu: NullDevice, tmp_path):
    """Beside its plain twin, and alone where the twin does not fit: its memory is never halved."""
    command = ("train", "--recipe", small_recipe(tmp_path), "--steps", "3")
    found, device = bench(null_gpu, tmp_path, *command)
    assert found["plain"]["tokens_per_s"] > 0 and len(found["step_ms"]["plain"]) == 3
    check_trainer(found, device)
    free = null_gpu.run("-c", FREE_BYTES, log=tmp_path / "free").stdout
    room = found["peak_memory_bytes"] + ROOM_BYTES
    taken = (int(free) - room) >> 20
    found, device = bench(null_gpu, tmp_path, *command, CUDA_NULL_TAKEN_MIB=str(taken))
    assert found["plain"] is None and "does not fit" in found["plain_reason"]
    check_trainer(found, device)


def check_trainer(found: Any, device: Log) -> None:
    assert not device.of("refused") and not device.of("oom")
    assert found["tokens_per_s"] > 0 and len(found["step_ms"]["ours"]) == 3
    assert found["graphs_compiled"] > 0 and found["graphs_compiled_in_steps"] == 0
    assert found["micro_batch"] == 4 and found["micro_batch_parts"] == 1


def test_bench_kernels(null_gpu: NullDevice, tmp_path):
    found, device = bench(
        *(null_gpu, tmp_path, "kernels", "--depths", "4"),
        *("--tokens", "1024", "--seq-len", "1024"),
    )
    assert not device.of("refused"), device.of("refused")[:3]
    assert found["complete"] and "4090" in found["device"]
    assert len(found["products"]) == 3 * 3 * 4
    assert not [row for row in found["products"] if row["reason"] or not row["ms"] > 0]
    rows = {(row["backend"], row["window"]): row for row in found["attention"]}
    for window in (256, 1024):
        assert sum(row["chosen"] for row in rows.values() if row["window"] == window) == 1
        for backend in ("varlen", "flex", "flex_small"):
            assert rows[backend, window]["ms"] > 0, rows[backend, window]


def test_bench_levers(null_gpu: NullDevice, tmp_path):
    found, device = bench(
        null_gpu, tmp_path, "levers", "--recipe", small_recipe(tmp_path), "--steps", "2"
    )
    rows = {row["lever"]: row for row in found["rows"]}
    for lever, row in rows.items():
        if lever in LACKING:
            assert LACKING[lever] in row["reason"]
        elif row["reason"] != "the recipe has it already":
            assert row["reason"] is None, row
            assert row["tokens_per_s"] > 0 and row["peak_bytes"] > 0
            assert lever == "no compiling" or row["graphs_before"] > 0, row
            assert row["graphs_in_steps"] == 0, row
    assert not device.of("refused"), device.of("refused")[:3]

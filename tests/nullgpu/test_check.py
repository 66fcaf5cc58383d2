"""The script for a GPU on the null device: two calls, of which the second continues the first."""

from __future__ import annotations

import json

import pytest
from nullgpu_runs import NullDevice

pytestmark = pytest.mark.gpuless_full


def test_gpu_check_continues_an_earlier_call(null_gpu: NullDevice, tmp_path):
    seen = []
    for call in ("first", "second"):
        done = null_gpu.run(
            *("-m", "reference.gpu_check", "--out", "out", "--toy", "--steps", "2"),
            *("--seconds", "300"),
            log=tmp_path / call,
            check=False,
            CUDA_NULL_BRIEF="1",
        )
        # The int8 kernels are compared with the CPU's arithmetic, which only a real device matches.
        assert done.returncode == 1, done.stderr[-3000:]
        seen.append(json.loads((tmp_path / "out/gpu_check.json").read_text()))
    first, second = (document["parts"] for document in seen)
    assert second["environment"]["result"]["device"] == "NVIDIA GeForce RTX 4090"
    assert not [name for name, part in second.items() if "failed" in part["result"]]
    finished = {name: part for name, part in first.items() if part["whole"]}
    assert {"environment", "numerics"} <= set(finished)
    assert {name: second[name] for name in finished} == finished
    assert len(second) > len(first) or not seen[1]["not_reached"]
    verdicts = {row["verdict"] for row in seen[1]["predictions"]}
    assert {"held", "not measured"} <= verdicts or not seen[1]["not_reached"]

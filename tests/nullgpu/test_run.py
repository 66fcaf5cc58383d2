"""A whole run of the command line on the null device, stopped in pretraining and resumed.

Every stage runs on `device = "cuda"` and NVML is answered, so the result has the card's own facts.
Its numbers mean nothing, and `verify` has to say so: it refuses the run for its losses, and for
nothing else.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from nullgpu_environment import CHECKOUT
from nullgpu_runs import LIMIT_S, Log, NullDevice

pytestmark = pytest.mark.gpuless

# The smoke recipe, made short, with checkpoints and evaluations in the middle. The trial of
# attention kernels has a test of its own.
CHANGES = {
    'name = "smoke"': 'name = "nullgpu"',
    "budget_s = 1200": "budget_s = 7200",
    "stories = 20000": "stories = 1500",
    "vocab_size = 1024": "vocab_size = 512",
    "max_chars = 4_000_000": "max_chars = 400_000",
    "n_layer = 4": "n_layer = 2",
    "num_steps = 450": 'num_steps = 40\nattention = "varlen"',
    "eval_every = 225": "eval_every = 20",
    "checkpoint_every = 100": "checkpoint_every = 4",
    "warmup_steps = 20": "warmup_steps = 2",
    "num_steps = 120": "num_steps = 6",
    "checkpoint_every = 40": "checkpoint_every = 3",
    "max_per_task = 100": "max_per_task = 4",
    "max_new_tokens = 32": "max_new_tokens = 8",
}
KIT = ("-m", "kit.cli.main")
# Curve, training and noise: the checks that look at losses, which are all 0 here.
OF_LOSSES = {"V17", "V28", "V30"}


def test_every_stage_runs_on_the_device_and_pretraining_resumes(null_gpu: NullDevice, tmp_path):
    work, log = tmp_path / "work", tmp_path / "log"
    options = ("--work", work, "--device", "cuda", "--quiet")
    first = null_gpu.start(
        *KIT, "run", "--recipe", recipe(tmp_path), *options, log=log, CUDA_NULL_BRIEF="1"
    )
    stop_after_a_checkpoint(first, work)
    printed = "\n".join(first.communicate(timeout=LIMIT_S))
    (run,) = (work / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["claims"]["status"] != "complete", printed
    null_gpu.run(*KIT, "run", "--resume", run, "--quiet", log=log, CUDA_NULL_BRIEF="1")

    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    check_stages(events)
    check_graphs(events)
    check_result(json.loads((run / "result.json").read_text()), run)
    check_device(Log.read(log))
    done = null_gpu.run(*KIT, "verify", "--json", run, log=tmp_path / "verify", check=False)
    verdict = json.loads(done.stdout)
    refused = {check for check, status in verdict["checks"].items() if status == "fail"}
    assert refused == OF_LOSSES, done.stdout


def recipe(folder: Path) -> Path:
    text = (CHECKOUT / "reference/recipes/smoke.toml").read_text()
    for old, new in CHANGES.items():
        assert old in text, old
        text = text.replace(old, new, 1)
    path = folder / "nullgpu.toml"
    path.write_text(text)
    return path


def stop_after_a_checkpoint(process: subprocess.Popen[str], work: Path) -> None:
    ends = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < ends:
        for events in work.glob("runs/*/events.jsonl"):
            if '"ev":"checkpoint"' in events.read_text():
                process.send_signal(signal.SIGINT)
                return
        time.sleep(0.2)
    printed = "\n".join(process.communicate(timeout=60))
    raise AssertionError(f"the run ended before its first checkpoint:\n{printed[-6000:]}")


def check_stages(events: list[dict[str, Any]]) -> None:
    """Both attempts at pretraining and every later stage; no step is missing."""
    ended = [(e["data"]["stage"], e["data"]["status"]) for e in events if e["ev"] == "stage_stop"]
    later = [(stage, "complete") for stage in ("pretrain", "core", "sft", "chat_eval")]
    assert ended == [("tokenizer", "complete"), ("pretrain", "stopped"), *later]
    steps: dict[str, set[int]] = {}
    for stage, event in staged(events):
        if event["ev"] == "step":
            steps.setdefault(stage, set()).add(event["data"]["step"])
    assert steps == {"pretrain": set(range(40)), "sft": set(range(6))}
    names = {event["data"]["name"] for event in events if event["ev"] == "eval"}
    assert {"val_bpb", "own_questions_score", "sft_val_loss", "chat"} <= names


def check_graphs(events: list[dict[str, Any]]) -> None:
    """Pretraining (twice) and fine-tuning compile before their first step, and never in one."""
    notes = [(s, e["data"]["text"]) for s, e in staged(events) if e["ev"] == "note"]
    before = [stage for stage, text in notes if "graphs compiled in advance" in text]
    assert before == ["pretrain", "pretrain", "sft"], notes
    assert not any("on the way" in text or "out of memory" in text for _, text in notes), notes


def check_result(result: dict[str, Any], run: Path) -> None:
    assert result["claims"]["status"] == "complete"
    (gpu,) = result["hardware"]["before"]["gpus"]
    assert gpu["name"] == "NVIDIA GeForce RTX 4090" and gpu["power_limit_w"] == 450
    samples = [json.loads(line) for line in (run / "telemetry.jsonl").read_text().splitlines()]
    assert any(sample.get("gpu_power_w") == 60 for sample in samples)


def check_device(device: Log) -> None:
    assert not device.of("refused") and not device.of("oom")
    launches = device.count("launch")
    assert any(name.startswith("triton_") for name in launches)
    # Pretraining and fine-tuning attend by `varlen`, the evaluations by what scores any length.
    assert any("flash_bwd" in name for name in launches), sorted(launches)


def staged(events: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Each event with the stage that it belongs to."""
    found, stage = [], ""
    for event in events:
        stage = event["data"]["stage"] if event["ev"] == "stage_start" else stage
        found.append((stage, event))
    return found

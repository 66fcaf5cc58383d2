"""Prints the losses of a few training steps of every recipe switch, exactly.

Run it at two commits and compare: a refactoring of the trainer changes no line.

    python tests/support/losses.py > before.txt
"""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

import torch
from tiny_training import MORE_SWITCHES, SWITCHES, Recorder, make_world, training_request

from reference.bench.trial_run import trial_run
from reference.train import pretrain, sft

ROOT = Path(__file__).parents[2]


def show(case: str, events: Recorder) -> None:
    """Prints one line for each figure of `events` that training computes."""
    for name, data in events.seen:
        if name == "step":
            figures = [data["loss"], data["lr"], data.get("flops", 0.0)]
            print(case, data["step"], data["tokens"], *(float(f).hex() for f in figures))
        elif name == "eval":
            print(case, data["name"], data["step"], float(data["value"]).hex())
        elif name == "model":
            print(case, data["initial_weights"], data["flops_per_token"], data["parameters"])


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        world = make_world(root)
        for number, (case, changes) in enumerate({**SWITCHES, **MORE_SWITCHES}.items()):
            events, out = Recorder(), root / f"out-{number}"
            pretrain.run(training_request(world, out, changes), events)
            show(case, events)
            if case == "deterministic":
                torch.use_deterministic_algorithms(False)
        smoke = tomllib.loads((ROOT / "reference/recipes/smoke.toml").read_text())
        changes = {
            "model": smoke["model"],
            "pretrain": {**smoke["pretrain"], "num_steps": 6, "warmup_steps": 3, "eval_every": 3,
                         "eval_tokens": 4096},
            "sft": {**smoke["sft"], "num_steps": 4},
        }  # fmt: skip
        events, base = Recorder(), root / "base"
        pretrain.run(training_request(world, base, changes), events)
        show("smoke", events)
        asked = training_request(world, root / "chat", changes, stage="sft", base=base)
        events = Recorder()
        sft.run(asked, events)
        show("smoke sft", events)
        recipe = dict(asked.recipe)
        for section in ({}, {"matmul": "fp8", "seq_len_ramp": [[0, 64], [0.5, 256]]}):
            recipe["pretrain"] = {**asked.recipe["pretrain"], **section}
            run = trial_run(recipe, device="cpu", steps=2, warmup=1)
            print("bench", *(loss.hex() for loss in [*run.losses, run.val_bpb]))


if __name__ == "__main__":
    main()

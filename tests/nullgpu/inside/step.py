"""A few optimizer steps of a recipe on the null device: step.py SPEC.json OUT.json

SPEC: `recipe` (a recipe's name) or `depth`, and changes in `model`, `pretrain`, `vocab_size`;
`decided`: take the recipe's kernels and factors as a resumed run does, without a trial. OUT: what
`trial_run` reports, the allocator's peaks, graph breaks and counts of compiled graphs.
The last step stands between two `mark` lines of the device's log.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from reference.bench import trial_run as trial
from reference.config.resolve import resolve_recipe
from reference.gpu_check import recipe_of
from reference.optim.optimizer import MuonAdamW
from reference.train import step as training_step

LIBRARY = ctypes.CDLL("libnullgpu.so")


def mark(text: str) -> None:
    """Writes a line into the device's log."""
    LIBRARY.null_log(b"mark\t%s\n", text.encode())
    LIBRARY.null_flush()


def mark_steps() -> None:
    """Puts each step between lines `mark step` and `mark end`, its update after `mark update`."""
    plain_step, plain_update = training_step.Stepper.step, MuonAdamW.step

    def marked_update(self: Any, *arguments: Any) -> None:
        mark("update")
        plain_update(self, *arguments)

    def marked_step(self: Any, *arguments: Any, **options: Any) -> float:
        mark("step")
        loss = plain_step(self, *arguments, **options)
        mark("end")
        return loss

    training_step.Stepper.step = marked_step
    MuonAdamW.step = marked_update


def recipe_from(spec: dict[str, Any]) -> dict[str, Any]:
    if spec.get("recipe"):
        recipe = resolve_recipe(spec["recipe"])
    else:
        recipe = recipe_of(spec["depth"], {"vram_cap_gib": 0}, toy=False)
    recipe["model"].update(spec.get("model", {}))
    recipe["pretrain"].update(spec.get("pretrain", {}))
    recipe["tokenizer"]["vocab_size"] = spec.get("vocab_size", recipe["tokenizer"]["vocab_size"])
    recipe["model"].pop("vocab_size", None)
    return recipe


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_float32_matmul_precision("high")
    mark_steps()
    recipe = recipe_from(spec)
    attention = (recipe["pretrain"]["attention"],) * 2 if spec.get("decided") else None
    run = trial.trial_run(
        recipe, device="cuda", steps=1, warmup=spec.get("warmup", 1), attention=attention
    )
    found = {
        "peak_bytes": run.peak_bytes,
        "planned_bytes": run.planned_bytes,
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "micro_batch": run.micro_batch,
        "parts": run.parts,
        "losses": run.losses,
        "graphs": run.graphs,
        "prepare_s": run.prepare_s,
        "decisions": run.decisions,
        "notes": run.notes,
        "breaks": dict(counters["graph_break"]),
        "unimplemented": dict(counters["unimplemented"]),
    }
    Path(sys.argv[2]).write_text(json.dumps(found, indent=1))
    LIBRARY.null_flush()


if __name__ == "__main__":
    main()

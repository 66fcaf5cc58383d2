"""Stage `pretrain` on the null device, once for each case: switches.py CASES.json OUT.jsonl

CASES: name -> changes to the sections of the tiny recipe of `tests/support`. OUT gets a line for
each case as it ends. The log of the device has the lines `mark case`, and `mark step`, `mark end`
around each step.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from step import mark, mark_steps
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from tiny_training import Recorder, make_world, training_request

from reference.kernels import autotune
from reference.kernels.compiling import forget_compiled
from reference.train import pretrain
from reference.train.device import forget_determinism

# The null device has no times: whatever is timed later is the faster one, so that 8-bit factors,
# which are timed after bf16, are always taken.
CLOCK = itertools.count(1_000_000, -1)


def last_is_fastest(function: Any, **_: Any) -> float:
    function()
    return float(next(CLOCK))


def shown(world: Path, out: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """What a run of the stage reported, or its error."""
    events = Recorder()
    request = training_request(world, out, changes)
    error = None
    counters.clear()
    try:
        pretrain.run(dataclasses.replace(request, device="cuda"), events)
    except Exception as found:
        error = f"{type(found).__name__}: {found}"
    finally:
        breaks = dict(counters["graph_break"])
        forget_compiled()
        forget_determinism()
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        gc.collect()
        torch.cuda.empty_cache()
    return {
        "error": error,
        "steps": [step for step, _, _ in events.losses],
        "notes": [data["text"] for data in events.data("note")],
        "checkpoints": len(events.data("checkpoint")),
        "evaluations": [data["name"] for data in events.data("eval")],
        "breaks": breaks,
    }


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    torch.set_float32_matmul_precision("high")
    autotune.cuda_milliseconds = last_is_fastest
    mark_steps()
    with tempfile.TemporaryDirectory() as folder, Path(sys.argv[2]).open("w") as out:
        # Documents as long as text has them: blocks are compiled for at most one in 128 tokens.
        world = make_world(Path(folder), longer=16)
        for number, (name, changes) in enumerate(cases.items()):
            mark(f"case {name}")
            began = time.perf_counter()
            row = shown(world, world / f"out{number}", changes)
            row["seconds"] = round(time.perf_counter() - began, 1)
            out.write(json.dumps({"case": name, **row}) + "\n")
            out.flush()
    mark("case")


if __name__ == "__main__":
    main()

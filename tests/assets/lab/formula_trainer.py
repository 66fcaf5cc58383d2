"""A trainer of a formula instead of a model: the contract's reports in milliseconds.

Its loss falls as a power of the FLOPs; `trainer.options.gain` and the seed shift it, so that a test
knows what a study has to find. Options: gain, noise, diverge, crash (exits once without a word).
"""

import json
import math
import os
import random
import sys
from pathlib import Path

request = json.loads(Path(sys.argv[1]).read_text())
out = Path(request["paths"]["out"])
out.mkdir(parents=True, exist_ok=True)
if request["stage"] == "tokenizer":
    with (out / "count").open("a") as file:
        file.write("x")
    sys.exit(0)
options = request["recipe"]["trainer"]["options"]
marker = Path(request["paths"]["run"]).parent / f"crashed-{request['seed']}"
if options.get("crash") and not marker.exists():
    marker.touch()
    sys.exit(9)
events = os.fdopen(int(os.environ["N4090_EVENTS_FD"]), "w", buffering=1)


def emit(ev: str, **data: object) -> None:
    events.write(json.dumps({"ev": ev, "data": data}) + "\n")


pretrain = request["recipe"]["pretrain"]
steps, tokens = pretrain["num_steps"], pretrain["total_batch_size"]
noise = random.Random(f"{request['seed']} {options}").gauss(0, options.get("noise", 1e-4))
shared = random.Random(request["seed"]).gauss(0, 1e-3)
scale = math.exp(noise + shared - options.get("gain", 0.0))
emit("model", parameters=1, flops_per_token=100.0)
for step in range(steps + 1):
    loss = 3.0 * ((step + 20) * tokens) ** -0.1 * scale
    if step % pretrain["eval_every"] == 0 or step == steps:
        emit("eval", name="val_bpb", step=step, value=loss)
    if step == steps:
        break
    if options.get("diverge") and step > steps // 2:
        emit("error", kind="nan_loss", message="the loss is nan", hint="")
        sys.exit(1)
    emit("step", step=step, tokens=(step + 1) * tokens, loss=loss, progress=step / steps, dt_s=0.01)

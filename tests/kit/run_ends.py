"""A small trainer that ends its run in many ways, and the supervisor's view of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.prepare.inputs import Inputs
from kit.recipe import parse_recipe
from kit.run import supervisor
from kit.run.plan import RunPlan
from kit.run.process import StopFlag
from kit.trust.keys import load_or_create_signer

STAGES = ("tokenizer", "pretrain", "sft", "chat_eval")
RECIPE = """
schema_version = 1
name = "ends"
track = "smoke"
budget_s = 60
grace_s = 0
stages = [STAGES]

[trainer]
command = ["python", "{recipe_dir}/ends_trainer.py"]
loader = "ends_trainer.py:load"
"""
# Each stage runs the code that the test wrote for it, then leaves a small output.
TRAINER = """
import ctypes, json, os, signal, socket, subprocess, sys, time
from pathlib import Path
request = json.loads(Path(sys.argv[1]).read_text())
stage, out = request["stage"], Path(request["paths"]["out"])
out.mkdir(parents=True, exist_ok=True)
fd = int(os.environ["N4090_EVENTS_FD"])
def send(line):
    view = memoryview(line if isinstance(line, bytes) else line.encode())
    while view:
        view = view[os.write(fd, view):]
def emit(ev, **data):
    send(json.dumps({"ev": ev, "data": data}) + "\\n")
def leave(text="{}"):
    names = {"chat_eval": "chat.json", "core": "core.json"}
    (out / names.get(stage, "model.json")).write_text(text)
code = json.loads(Path(__file__).with_name("code.json").read_text()).get(stage, "leave()")
exec(code)
"""


@dataclass(frozen=True)
class Ended:
    """A run that the supervisor brought to its end."""

    run: Path
    result: dict[str, Any]

    @property
    def claims(self) -> dict[str, Any]:
        claims: dict[str, Any] = self.result["claims"]
        return claims

    def events(self, ev: str) -> list[dict[str, Any]]:
        lines = (self.run / "events.jsonl").read_text().splitlines()
        return [event["data"] for line in lines if (event := json.loads(line))["ev"] == ev]


def run_to_its_end(
    root: Path,
    code: dict[str, str],
    *,
    stop: StopFlag | None = None,
    observe: Callable[[dict[str, Any]], None] = lambda event: None,
    inputs: Inputs | None = None,
    budget_s: int = 60,
) -> Ended:
    """Runs stages under the supervisor, each of which executes its text in `code`.

    Stages that a recipe must have before them only leave an output.
    """
    last = max(STAGES.index(stage) for stage in code)
    stages = ", ".join(json.dumps(stage) for stage in STAGES[: last + 1])
    text = RECIPE.replace("STAGES", stages).replace("budget_s = 60", f"budget_s = {budget_s}")
    root.mkdir(parents=True, exist_ok=True)
    (root / "ends_trainer.py").write_text(TRAINER)
    (root / "code.json").write_text(json.dumps(code))
    plan = RunPlan(
        recipe=parse_recipe(text, folder=root, label="ends.toml"),
        work=root / "work",
        run=root / "work" / "runs" / "ends",
        inputs=inputs or Inputs(None, None, None, None),
        seed=1,
        seed_source="command line",
        device="cpu",
        threads=1,
        probe=False,
    )
    signer = load_or_create_signer(root / "work" / "keys")
    path = supervisor.supervise(
        plan, signer, observe=observe, stop=StopFlag() if stop is None else stop
    )
    return Ended(plan.run, json.loads(path.read_text()))

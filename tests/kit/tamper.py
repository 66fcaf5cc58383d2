"""Honest runs to tamper with: one read from disk, others written by `support.synthetic`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.draft import KEY, Draft, Event, chain_lines, write_signed
from support.synthetic import (
    BOOT,
    RECIPE,
    SECOND_BOOT,
    gpu_run,
    safetensors,
)
from support.synthetic_machine import gpu_4090, reclassify

from kit.core_eval.statistics import TaskOutcomes, normal_interval
from kit.recipe import load_recipe, parse_recipe
from kit.result import core_section
from kit.run.group import REGISTER_NAMESPACE, challenge_seed
from kit.run.plan import RunPlan, plan_run
from kit.trust import sshsig
from kit.trust.digest import sha256_bytes
from kit.trust.sign import signed_bytes
from kit.typed import to_json

__all__ = [
    "BOOT",
    "HONEST",
    "KEY",
    "OTHER_KEY",
    "RECIPE",
    "SECOND_BOOT",
    "Draft",
    "chain_lines",
    "gpu_4090",
    "gpu_run",
    "reclassify",
    "safetensors",
    "sshsig",
    "write_signed",
]
ASSETS = Path(__file__).parents[1] / "assets"
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"forger").digest())


def load_draft(folder: Path, key: Any) -> Draft:
    """A run that the supervisor made, opened up again."""

    def records(name: str) -> list[Event]:
        lines = (folder / name).read_text().splitlines()
        found = [json.loads(line) for line in lines]
        for record in found:
            del record["seq"], record["prev"]
        return found

    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in ("tokenizer", "checkpoints", "eval")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }
    return Draft(
        records("events.jsonl"),
        records("telemetry.jsonl"),
        (folder / "recipe.toml").read_text(),
        files,
        key,
    )


CPU_RECIPE = """
schema_version = 1
name = "bigram"
track = "smoke"
budget_s = 120
stages = ["tokenizer", "pretrain", "sft", "chat_eval"]

[trainer]
command = ["python", "{recipe_dir}/bigram_trainer.py"]
loader = "bigram_trainer.py:load"
config = "bigram_trainer.py:TRAINER"
"""


def supervised_run(root: Path, prefix: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> Path:
    """A real run through the supervisor with the forty-line trainer; returns its folder.

    Args:
        prefix: Words before the command, as `faketime` or `unshare` want it.
        options: More options of `run`.
    """
    import pyarrow
    from pyarrow import parquet

    for name in ("data", "sft", "chat_eval"):
        (root / name).mkdir()
    for i in range(3):
        texts = [f"story {i} {j}: the cat sat on mat {j}" for j in range(40)]
        parquet.write_table(pyarrow.table({"text": texts}), root / f"data/shard_{i}.parquet")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (root / "sft/a.jsonl").write_text(json.dumps(turns) + "\n")
    (root / "chat_eval/a.jsonl").write_text("{}\n")
    (root / "bigram.toml").write_text(CPU_RECIPE)
    shutil.copy(ASSETS / "bigram_trainer.py", root)
    command = [
        *prefix,
        sys.executable,
        "-c",
        "from kit.cli.main import main; main()",
        *("run", "--quiet", "--device", "cpu", "-r", str(root / "bigram.toml")),
        *("--work", str(root / "work"), "--data", str(root / "data")),
        *("--sft", str(root / "sft"), "--chat-eval", str(root / "chat_eval")),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next((root / "work/runs").iterdir())


def pretraining_plan(root: Path) -> Callable[[], RunPlan]:
    """Plans runs of the forty-line trainer's tokenizer and pretraining, all with one seed."""
    import pyarrow
    from pyarrow import parquet

    (root / "data").mkdir()
    for i in range(3):
        texts = [f"story {i}: the cat sat on mat {j}" for j in range(40)]
        parquet.write_table(pyarrow.table({"text": texts}), root / f"data/shard_{i}.parquet")
    shutil.copy(ASSETS / "bigram_trainer.py", root)
    (root / "bigram.toml").write_text(CPU_RECIPE.replace(', "sft", "chat_eval"', ""))
    recipe = load_recipe(str(root / "bigram.toml"))
    given = {"data": root / "data"}
    return lambda: plan_run(recipe, root / "work", given, device="cpu", seed=1, probe=False)


def registration(key: Any = KEY, recipe: str = RECIPE, **changes: Any) -> dict[str, Any]:
    """A group of three runs, announced before the synthetic days begin, signed by `key`."""
    parsed = parse_recipe(recipe, folder=Path(), label="recipe")
    line = sshsig.public_key(key).line
    document = {
        "schema_version": 1,
        "recipe": {"name": parsed.name, "track": parsed.track, "digest": parsed.digest},
        "runs": 3,
        "challenge": {"value": "drawn by the board", "source": "given"},
        "public_key": line,
        "registered_at": "2026-09-01T12:00:00Z",
        "signatures": [],
        **changes,
    }
    armored = sshsig.sign(signed_bytes(document), REGISTER_NAMESPACE, key)
    entry = {"format": "sshsig", "namespace": REGISTER_NAMESPACE, "public_key": line}
    return {**document, "signatures": [{**entry, "signature": armored}]}


def enrol(draft: Draft, index: int, document: dict[str, Any] | None = None) -> Draft:
    """Makes the draft run `index` of a group, with its seed."""
    document = document or registration(recipe=draft.recipe)
    challenge = document["challenge"]["value"]
    value = challenge_seed(challenge, document["public_key"], index)
    draft.header()["seed"] = {"value": value, "source": "challenge"}
    draft.header()["group"] = {"registration": document, "index": index}
    return draft


# Honest runs that must pass, whatever kind of a day it was.
HONEST: dict[str, Callable[[], Draft]] = {
    "4090": gpu_run,
    "4090, another seed": lambda: gpu_run(seed=5),
    "4090 at 300 W": lambda: gpu_run(seed=2, power_w=292.0, step_s=14.0),
    "4090, hot and throttled": lambda: gpu_run(
        seed=3, power_w=330.0, temperature_c=88.0, throttle=0x60, step_s=15.0
    ),
    "4090, killed and resumed": lambda: gpu_run(seed=4, resume_at=37),
    "4090, resumed after a reboot": lambda: gpu_run(seed=6, resume_at=37, reboot=True),
    "4090, slept half an hour": lambda: gpu_run(seed=7, sleep_at=40),
    "4090, stood still for 90 s": lambda: gpu_run(seed=17, stall_at=20),
    "4090, out of memory": lambda: gpu_run(seed=8, fail_at=33),
    "4090, one of a registered group": lambda: enrol(gpu_run(seed=10), 1),
    "4090, stopped": lambda: gpu_run(seed=9, stop_at=1),
}


def score(draft: Draft, document: dict[str, Any]) -> None:
    """Gives the run these answers to CORE, reported as the evaluator reports them."""
    tasks = [
        TaskOutcomes(t["label"], t["file"], t["baseline"], t["outcomes"]) for t in document["tasks"]
    ]
    low, high, _ = normal_interval(tasks)
    document["interval"] = {"low": low, "high": high}
    content = json.dumps(document).encode()
    digest = sha256_bytes(content)
    section = to_json(core_section({**document, "digest": digest}))
    assert section is not None
    found = {task["task"]: task for task in section["tasks"]}
    draft.files["eval/core.json"] = content
    for event in draft.of("eval", "core"):
        data = event["data"]
        if data["name"] == "core":
            data.update(value=section["value"], sha256=digest)
        else:
            task = found[data["task"]]
            data.update(n=task["n"], value=task["accuracy"])


def scale(draft: Draft, factor: float, clocks: str, telemetry: bool = True) -> None:
    """All times `factor` times as long, on the named clocks."""
    base = draft.events[0]
    t0, wall0, c0 = base["t_ns"], base["wall_ms"], dict(base["clocks"])
    for event in draft.events:
        if "t" in clocks:
            event["t_ns"] = int(t0 + (event["t_ns"] - t0) * factor)
        if "w" in clocks:
            event["wall_ms"] = int(wall0 + (event["wall_ms"] - wall0) * factor)
        for letter, name in (("r", "raw_ns"), ("s", "syscall_ns"), ("u", "uptime_ms")):
            if letter in clocks:
                value = event["clocks"][name]
                event["clocks"][name] = int(c0[name] + (value - c0[name]) * factor)
    for record in draft.telemetry if telemetry else []:
        record["t_ms"] = int(t0 / 1e6 + (record["t_ms"] - t0 / 1e6) * factor)
        record["wall_ms"] = int(wall0 + (record["wall_ms"] - wall0) * factor)
        record.pop("gpu_energy_j", None)


def step_times(draft: Draft, factor: float) -> None:
    """The trainer's two clocks say that each step took `factor` times as long."""
    for event in draft.of("step"):
        for name in ("dt_s", "cuda_s"):
            event["data"][name] = round(event["data"][name] * factor, 6)

"""Honest runs to tamper with: one read from disk, others written from a 4090's public figures.

A `Draft` is a run before it is chained and signed, so that a mutation can be made as a forger would
make it: change anything, chain the log again, build the result from it again, sign it again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kit.hardware.fingerprint import classify
from kit.recipe import parse_recipe
from kit.result import build_result
from kit.run.group import REGISTER_NAMESPACE, challenge_seed
from kit.run.log import LOG_KIND
from kit.run.telemetry import TELEMETRY_KIND, Summary
from kit.trust import sshsig
from kit.trust.canonical import canonical_bytes
from kit.trust.chain import chain_seed
from kit.trust.digest import FileDigest, manifest_digest, sha256_bytes
from kit.trust.sign import signed_bytes
from kit.verify.thresholds import CORE_TASKS

Event = dict[str, Any]
ASSETS = Path(__file__).parents[1] / "assets"
KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"honest").digest())
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"forger").digest())
CORE_DIGEST = json.loads((Path(__file__).parents[2] / "kit/core_eval/bundle.json").read_text())[
    "digest"
]

RECIPE = """
schema_version = 1
name = "d20"
title = "a run as the reference recipe makes them"
track = "rtx4090-24h"
division = "closed"
budget_s = 86400
device = "cuda"
stages = ["tokenizer", "pretrain", "core", "sft", "chat_eval"]

[seed]
policy = "random"

[data]
kind = "folder"

[tokenizer]
vocab_size = 49152

[model]
n_layer = 20
n_embd = 1280
n_head = 10
n_kv_head = 10
seq_len = 2048

[pretrain]
hours = 20.0
device_batch_size = 4
total_batch_size = 524288

[sft]
num_steps = 22
device_batch_size = 4
total_batch_size = 524288
"""


def chain_lines(records: list[dict[str, Any]], kind: str) -> bytes:
    """The records as a chain file: what a forger with the source can always write."""
    head, lines = chain_seed(kind), []
    for seq, record in enumerate(records):
        line = canonical_bytes({**record, "seq": seq, "prev": head})
        head = sha256_bytes(line)
        lines.append(line + b"\n")
    return b"".join(lines)


@dataclass
class Draft:
    """A run that can still be changed."""

    events: list[Event]
    telemetry: list[Event]
    recipe: str
    files: dict[str, bytes]
    key: Any = KEY
    namespace: str = sshsig.RESULT_NAMESPACE
    summary_edits: dict[str, Any] = field(default_factory=dict)
    result_edits: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)

    def copy(self) -> Draft:
        return copy.deepcopy(self, {id(self.key): self.key})

    def of(self, ev: str, stage: str | None = None) -> list[Event]:
        """Events of a kind; of one stage, when given."""
        found, current = [], None
        for event in self.events:
            if event["ev"] == "stage_start":
                current = event["data"]["stage"]
            if event["ev"] == ev and (stage is None or current == stage):
                found.append(event)
        return found

    def header(self) -> dict[str, Any]:
        data: dict[str, Any] = self.events[0]["data"]
        return data

    def fingerprints(self) -> list[dict[str, Any]]:
        return [event["data"]["fingerprint"] for event in self.of("fingerprint")]

    def write(self, folder: Path) -> Path:
        """Chains, builds, signs; returns the result's path."""
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(self.recipe)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        telemetry = chain_lines(self.telemetry, TELEMETRY_KIND)
        if self.telemetry:
            (folder / "telemetry.jsonl").write_bytes(telemetry)
        self._fill(telemetry)
        (folder / "events.jsonl").write_bytes(chain_lines(self.events, LOG_KIND))
        result = build_result(folder)
        for edit in self.result_edits:
            edit(result)
        return write_signed(folder, result, self.key, self.namespace)

    def _fill(self, telemetry: bytes) -> None:
        """Digests and sums that the supervisor takes from files."""
        for event in self.events:
            data = event["data"]
            if event["ev"] == "telemetry" and data.get("count") is None:
                summary = Summary()
                for record in self.telemetry:
                    summary.add(record)
                lines = telemetry.splitlines()
                event["data"] = {
                    **summary.to_json(),
                    "lost": 0,
                    "core_share": 0.001,
                    "head": sha256_bytes(lines[-1]) if lines else None,
                    "count": len(lines),
                    "bytes": len(telemetry),
                    **self.summary_edits,
                }
            elif event["ev"] == "artifacts" and "files" not in data:
                folder = data["folder"]
                names = data.pop("names", None)
                files = [
                    FileDigest(name.removeprefix(folder + "/"), len(content), sha256_bytes(content))
                    for name, content in sorted(self.files.items())
                    if name.startswith(folder + "/")
                    and (names is None or name.removeprefix(folder + "/") in names)
                ]
                data["digest"] = manifest_digest(files)
                data["files"] = [
                    {"path": f.path, "bytes": f.bytes, "sha256": f.digest} for f in files
                ]


def write_signed(
    folder: Path,
    result: dict[str, Any],
    key: Any = KEY,
    namespace: str = sshsig.RESULT_NAMESPACE,
) -> Path:
    """Writes result.json with one signature by `key`."""
    result = {**result, "signatures": []}
    result["signatures"] = [
        {
            "format": "sshsig",
            "namespace": namespace,
            "public_key": sshsig.public_key(key).line,
            "signature": sshsig.sign(signed_bytes(result), namespace, key),
        }
    ]
    path = folder / "result.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return path


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


# --- a 4090, from the public figures -----------------------------------------------------------

UUID_HASH = "sha256:" + "4" * 64
BOOT, SECOND_BOOT = "b007" * 4, "b008" * 4
GIB = 2**30


def gpu_4090(**changes: Any) -> dict[str, Any]:
    """What NVML says of a stock card."""
    facts: dict[str, Any] = {
        "name": "NVIDIA GeForce RTX 4090",
        "uuid_hash": UUID_HASH,
        "pci_id": "10de:2684",
        "board": "1043:889d",
        "vbios": "95.02.18.80.c1",
        "architecture": 8,
        "capability": [8, 9],
        "cuda_cores": 16384,
        "memory_bytes": 25757220864,
        "memory_used_bytes": 400_000_000,
        "memory_bus_bits": 384,
        "bar1_bytes": 34359738368,
        "pcie_generation": 4,
        "pcie_width": 16,
        "sm_clock_max_mhz": 3105,
        "memory_clock_max_mhz": 10501,
        "sm_offset_mhz": 0,
        "memory_offset_mhz": 0,
        "power_limit_w": 450.0,
        "power_default_w": 450.0,
        "power_limits_w": [150.0, 600.0],
        "temperature_c": 41,
        "ecc": False,
        "mig": None,
        "display_active": False,
        "processes": 0,
        "foreign_processes": 0,
        "reasons": {"mig": "Not Supported"},
    }
    return {**facts, **changes}


def probe_4090(rng: random.Random, **changes: Any) -> dict[str, Any]:
    """What the probes measure on one, from the bands."""
    figures: dict[str, Any] = {
        "name": "NVIDIA GeForce RTX 4090",
        "count_visible": 1,
        "capability": [8, 9],
        "sm_count": 128,
        "memory_bytes": 25386352640,
        "l2_bytes": 75497472,
        "torch": "2.13.0",
        "bf16_tflops": round(rng.gauss(165.6, 1.0), 2),
        "fp16_fp32acc_tflops": 165.1,
        "fp16_fp16acc_tflops": 287.5,
        "fp8_tflops": 310.2,
        "int8_tops": 505.0,
        "fp32_tflops": 53.1,
        "fp64_tflops": 1.291,
        "copy_gb_s": round(rng.gauss(910, 4), 1),
        "l2_sweep_gb_s": {"16": 3500.0, "32": 3300.0, "64": 1100.0, "256": 910.0},
        "l2_knee_bytes": 67108864.0,
        "pcie_to_gpu_gb_s": 25.1,
        "pcie_from_gpu_gb_s": 26.2,
        "fp16_accumulation_ratio": 1.7414,
        "fp64_share": 0.0243,
        "elapsed_s": 62.0,
        "reasons": {},
    }
    return {**figures, **changes}


def fingerprint_4090(
    rng: random.Random, gpu: dict[str, Any] | None = None, probe: dict[str, Any] | None = None
) -> dict[str, Any]:
    gpus = [gpu or gpu_4090()]
    measured = probe or probe_4090(rng)
    return {
        "format": 1,
        "host": {
            "cpu_model": "AMD Ryzen 9 7950X 16-Core Processor",
            "cores_logical": 32,
            "cores_allowed": 32,
            "ram_bytes": 67108864000,
            "swap_bytes": 0,
            "kernel": "6.8.0-45-generic",
            "system": "Ubuntu 24.04",
            "architecture": "x86_64",
            "cgroup_cpus": None,
            "cgroup_memory_bytes": None,
            "virtualisation": "none seen",
            "reasons": {},
        },
        "driver": "580.65.06",
        "cuda_driver": "13.0",
        "gpus": gpus,
        "probes": {
            "cpu": {
                "matmul_gflops": round(rng.gauss(1500, 40), 1),
                "copy_gb_s": round(rng.gauss(38, 1), 2),
                "sha256_mb_s": 2100.0,
                "python_mops": 45.0,
                "elapsed_s": 2.1,
                "reasons": {},
            },
            "gpu": measured,
        },
        "class": classify(gpus, measured),
        "reasons": {},
    }


def reclassify(fingerprint: dict[str, Any]) -> None:
    """What an honest kit writes after a figure of the fingerprint changed."""
    fingerprint["class"] = classify(fingerprint["gpus"], fingerprint["probes"]["gpu"])


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
    document = document or registration()
    challenge = document["challenge"]["value"]
    value = challenge_seed(challenge, document["public_key"], index)
    draft.header()["seed"] = {"value": value, "source": "challenge"}
    draft.header()["group"] = {"registration": document, "index": index}
    return draft


class Clock:
    """A machine's clocks, with their real flaws: drift, granularity, a stamp a little later."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.t_s = 0.02
        self.wall_ms = 1_790_000_000_000
        self.boot_s = 0.0
        self.slept_s = 0.0
        self.wall_step_s = 0.0

    def advance(self, seconds: float) -> None:
        self.t_s += seconds

    def stamp(self) -> dict[str, Any]:
        self.t_s += abs(self.rng.gauss(8e-6, 3e-6))
        since = self.t_s - self.boot_s
        raw = (since - self.slept_s) * (1 + 2e-6)
        return {
            "t_ns": int(self.t_s * 1e9),
            "wall_ms": int(self.wall_ms + (self.t_s * (1 + 1e-5) + self.wall_step_s) * 1000),
            "clocks": {
                "raw_ns": int(raw * 1e9),
                "syscall_ns": int(raw * 1e9) + self.rng.randrange(300, 90_000),
                "uptime_ms": int(since * 100) * 10,
            },
        }


def safetensors(seed: int, size: int = 4096) -> bytes:
    """A small but whole safetensors file."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def core_document(rng: random.Random) -> dict[str, Any]:
    """eval/core.json of a model a little below the target."""
    tasks = []
    for label, (count, baseline) in CORE_TASKS.items():
        chance = 0.01 * baseline + 0.22 * (1 - 0.01 * baseline)
        outcomes = "".join("1" if rng.random() < chance else "0" for _ in range(count))
        tasks.append({"label": label, "file": label, "baseline": baseline, "outcomes": outcomes})
    return {
        "format": 1,
        "metric": "CORE",
        "partial": False,
        "bundle": {"kind": "core", "digest": CORE_DIGEST, "tasks": len(tasks)},
        "interval": {"low": 0.21, "high": 0.23},
        "tasks": tasks,
    }


@dataclass
class Plan:
    """What kind of a day the synthetic card has."""

    seed: int = 1
    steps: int = 48
    step_s: float = 11.6
    power_w: float = 415.0
    temperature_c: float = 66.0
    throttle: int = 0x4
    resume_at: int | None = None
    reboot: bool = False
    fail_at: int | None = None
    sleep_at: int | None = None
    stop_at: int | None = None
    batch: int = 524288


class Synthesis:
    """Writes the log and telemetry of a day as the supervisor would."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.clock = Clock(self.rng)
        self.events: list[Event] = []
        self.telemetry: list[Event] = []
        self.files: dict[str, bytes] = {}
        self.energy_j = 1e6
        self.next_sample_s = 0.0
        self.sampling = False
        self.busy = False
        self.text = RECIPE.replace("524288", str(plan.batch))
        self.recipe = parse_recipe(self.text, folder=Path(), label="recipe")

    def say(self, src: str, ev: str, **data: Any) -> Event:
        event = {**self.clock.stamp(), "src": src, "ev": ev, "data": data}
        self.events.append(event)
        return event

    def wait(self, seconds: float) -> None:
        """Lets time pass, sampling once a second."""
        end = self.clock.t_s + seconds
        while self.sampling and self.next_sample_s <= end:
            self.clock.t_s = max(self.clock.t_s, self.next_sample_s)
            self.sample()
            self.next_sample_s += 1.0
        self.clock.t_s = max(self.clock.t_s, end)

    def sample(self) -> None:
        plan, rng, clock = self.plan, self.rng, self.clock
        power = rng.gauss(plan.power_w, 9) if self.busy else rng.gauss(62, 3)
        self.energy_j += power * 1.0 * (1 + rng.gauss(0, 0.002))
        self.telemetry.append(
            {
                "ev": "sample",
                "t_ms": int(clock.t_s * 1000),
                "wall_ms": clock.stamp()["wall_ms"],
                "load": 2.1,
                "cpu_util": round(rng.uniform(4, 9), 1),
                "ram_used_bytes": 21_000_000_000 + rng.randrange(10**7),
                "gpu_sm_mhz": 2520 - rng.randrange(4) * 15 if self.busy else 210,
                "gpu_mem_mhz": 10251 if self.busy else 405,
                "gpu_power_w": round(power, 3),
                "gpu_temp_c": int(rng.gauss(plan.temperature_c, 1)),
                "gpu_used_bytes": 22_400_000_000,
                "gpu_util": 100 if self.busy else 0,
                "gpu_throttle": plan.throttle if self.busy else 0x1,
                "gpu_energy_j": round(self.energy_j, 3),
            }
        )

    def start_telemetry(self) -> None:
        stamp = self.clock.stamp()
        self.telemetry.append(
            {
                "ev": "start",
                "t_ms": stamp["t_ns"] // 10**6,
                "wall_ms": stamp["wall_ms"],
                "interval_s": 1.0,
                "gpu_uuid_hash": UUID_HASH,
                "reasons": {"rapl": "no RAPL counter can be read"},
            }
        )
        self.sampling = True
        self.next_sample_s = self.clock.t_s

    def run(self) -> Draft:
        plan = self.plan
        self.open()
        self.say("sup", "run_start", compile_caches=sha256_bytes(b""))
        status: dict[str, Any] = {"status": "complete", "reason": None}
        for stage in self.recipe.stages:
            if plan.stop_at is not None and stage == "core":
                status = {
                    "status": "stopped",
                    "reason": "stopped",
                    "message": "stopped on request",
                    "stage": "core",
                }
                break
            if not self.stage(stage):
                status = {
                    "status": "failed",
                    "reason": "out_of_memory",
                    "message": "CUDA out of memory",
                    "stage": stage,
                }
                break
        self.say("sup", "run_stop", **status)
        self.close()
        return Draft(self.events, self.telemetry, self.text, self.files)

    def open(self) -> None:
        recipe = self.recipe
        self.say(
            "sup",
            "header",
            log=LOG_KIND,
            contract=1,
            run="d20-20260921-120000-abcd",
            kit={"version": "0.0.1", "code": sha256_bytes(b"code")},
            image={"digest": sha256_bytes(b"image"), "reason": None},
            recipe={"name": recipe.name, "track": recipe.track, "digest": recipe.digest},
            seed={"value": 20260921, "source": "random"},
            signer={"public_key": sshsig.public_key(KEY).line, "created": False},
            software={"python": "3.12.3", "torch": "2.13.0"},
            device="cuda",
            threads=16,
            boot=BOOT,
            environment={
                "rx_bytes": 1000,
                "tx_bytes": 1000,
                "ld_preload": False,
                "time_namespace": "none",
                "container": "docker",
            },
        )
        shards = [
            FileDigest(f"shard_{i:05d}.parquet", 100_000_000 + i, sha256_bytes(b"%d" % i))
            for i in range(6)
        ]
        talk = [FileDigest("smoltalk.jsonl", 5_000_000, sha256_bytes(b"talk"))]
        core = [FileDigest("core.yaml", 3199, sha256_bytes(b"core"))]
        inputs = {"data": shards, "sft": talk, "chat_eval": talk, "core": core}
        self.say(
            "sup",
            "inputs",
            **{
                name: {
                    "digest": manifest_digest(files),
                    "bytes": sum(file.bytes for file in files),
                    "files": [
                        {"path": f.path, "bytes": f.bytes, "sha256": f.digest} for f in files
                    ],
                }
                for name, files in inputs.items()
            },
        )
        self.clock.advance(64)
        self.say("sup", "fingerprint", when="before", fingerprint=fingerprint_4090(self.rng))
        self.start_telemetry()
        self.wait(0.05)

    def close(self) -> None:
        self.sampling = False
        self.sample()
        self.say("sup", "telemetry")
        self.clock.advance(64)
        self.say("sup", "fingerprint", when="after", fingerprint=fingerprint_4090(self.rng))
        environment = {**self.events[0]["data"]["environment"], "rx_bytes": 2500, "tx_bytes": 1800}
        self.say("sup", "end", environment=environment)

    def begin(self, stage: str, attempt: int = 0) -> None:
        self.say(
            "sup",
            "stage_start",
            stage=stage,
            attempt=attempt,
            command=["python", "-m", "reference"],
        )
        self.wait(2.0)

    def end(self, stage: str, attempt: int = 0, status: str = "complete", **more: Any) -> None:
        self.say(
            "sup",
            "stage_stop",
            stage=stage,
            attempt=attempt,
            status=status,
            reason=more.get("reason"),
            exit_code=0 if status == "complete" else 1,
            accepted=10,
            dropped=0,
        )

    def outputs(self, stage: str, folder: str, files: dict[str, bytes], **more: Any) -> None:
        self.files.update({f"{folder}/{name}": content for name, content in files.items()})
        self.say("sup", "artifacts", stage=stage, folder=folder, **more)

    def stage(self, stage: str) -> bool:
        if stage == "pretrain":
            return self.pretrain()
        self.begin(stage)
        self.busy = stage != "tokenizer"
        if stage == "tokenizer":
            self.wait(8)
            self.outputs(stage, "tokenizer", {"tokenizer.json": b'{"kind":"bpe"}'})
        elif stage == "core":
            self.wait(25)
            self.say("eval", "note", text="model loaded in 3.1 s")
            document = json.dumps(core_document(self.rng)).encode()
            self.outputs(stage, "eval", {"core.json": document}, names=["core.json"])
        elif stage == "sft":
            for step in range(22):
                self.wait(max(0.1, self.rng.gauss(self.plan.step_s, 0.01)))
                self.step(step, 1.6 - 0.01 * step + self.rng.gauss(0, 0.01), self.plan.batch)
            self.say("trainer", "eval", name="val_loss", step=22, value=1.31)
            self.outputs(stage, "checkpoints/sft", self.model(2))
        else:
            self.wait(12)
            tasks = {
                name: {
                    "outcomes": [int(self.rng.random() < 0.35) for _ in range(200)],
                    "ended": [int(self.rng.random() < 0.97) for _ in range(200)],
                    "baseline": 0.25,
                }
                for name in ("arc_easy", "mmlu")
            }
            content = json.dumps({"tasks": tasks}).encode()
            self.outputs(stage, "eval", {"chat.json": content}, names=["chat.json"])
        self.busy = False
        self.wait(0.4)
        self.end(stage)
        return True

    def model(self, seed: int) -> dict[str, bytes]:
        return {
            "config.json": b'{"loader": "reference"}',
            "model.safetensors": safetensors(seed),
            "tokenizer.json": b'{"kind":"bpe"}',
        }

    def step(self, step: int, loss: float, batch: int) -> None:
        self.say(
            "trainer",
            "step",
            step=step,
            tokens=(step + 1) * batch,
            loss=round(loss, 6),
            lr=1.0,
            progress=round(step / 1000, 6),
            micro_batches=64,
            step_tokens=batch,
            dt_s=(took_s := round(self.plan.step_s + self.rng.gauss(0, 0.012), 6)),
            cuda_s=round(took_s - abs(self.rng.gauss(2e-4, 1e-4)), 6),
            wait_s=0.001,
        )

    def describe(self) -> None:
        from reference.estimate import estimate

        counted = estimate(self.recipe.document)
        self.say(
            "trainer",
            "model",
            parameters=counted["parameters"]["total"],
            flops_per_token=counted["flops_per_token"]["nanochat"],
            vocab_size=49152,
            config={**self.recipe.section("model"), "vocab_size": 49152},
            device="cuda:0",
            initial_weights=sha256_bytes(b"weights of the seed"),
        )

    def pretrain(self) -> bool:
        import math

        plan, rng = self.plan, self.rng
        self.begin("pretrain")
        self.wait(30)
        self.describe()
        self.say("trainer", "eval", name="val_bpb", step=0, value=3.24)
        attempt, step = 0, 0
        while step < plan.steps:
            self.busy = True
            self.wait(max(0.1, rng.gauss(plan.step_s, 0.012)))
            share = step / plan.steps
            self.step(
                step, math.log(49152) * (1 - 0.72 * share**0.15) + rng.gauss(0, 0.02), plan.batch
            )
            step += 1
            if plan.fail_at == step:
                self.say(
                    "trainer", "error", kind="out_of_memory", message="CUDA out of memory", hint=""
                )
                self.end("pretrain", attempt, "failed", reason="out_of_memory")
                return False
            if plan.sleep_at == step:
                self.busy = False
                self.sampling, sampled = False, self.sampling
                self.clock.slept_s += 1800
                self.clock.advance(1800)
                self.next_sample_s = self.clock.t_s + 0.5
                self.sampling = sampled
                self.say("trainer", "eval", name="val_bpb", step=step, value=1.02)
            if step % 30 == 0:
                self.wait(11)
                self.say("trainer", "eval", name="val_bpb", step=step, value=1.4 - step / 300)
                self.say("trainer", "checkpoint", step=step, bytes=9_000_000_000, elapsed_s=10.0)
            if plan.resume_at == step:
                attempt += 1
                self.resume()
                self.begin("pretrain", attempt)
                self.wait(30)
                self.describe()
                step = step // 30 * 30
                plan.resume_at = None
        self.say("trainer", "memory", step=step, peak_bytes=22_400_000_000)
        self.say("trainer", "eval", name="val_bpb", step=step, value=0.8412)
        self.busy = False
        self.wait(6)
        self.outputs("pretrain", "checkpoints/pretrain", self.model(1))
        self.end("pretrain", attempt)
        return True

    def resume(self) -> None:
        """Everything dies; forty seconds later (or after a reboot) it goes on."""
        self.busy = self.sampling = False
        last_s = self.clock.t_s
        self.clock.advance(240 if self.plan.reboot else 40)
        if self.plan.reboot:
            self.clock.boot_s = self.clock.t_s
        down_s = round(self.clock.t_s - last_s, 3)
        boot = SECOND_BOOT if self.plan.reboot else BOOT
        self.say("sup", "resume", rebooted=self.plan.reboot, downtime_s=down_s, boot=boot)
        self.start_telemetry()


def gpu_run(**choices: Any) -> Draft:
    """A day of a 4090, shortened to about a quarter of an hour."""
    return Synthesis(Plan(**choices)).run()


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
    "4090, out of memory": lambda: gpu_run(seed=8, fail_at=33),
    "4090, one of a registered group": lambda: enrol(gpu_run(seed=10), 1),
    "4090, stopped": lambda: gpu_run(seed=9, stop_at=1),
}

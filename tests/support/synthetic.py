"""A day of an RTX 4090 that never was, written from public figures: to test and time `verify`.

Clocks drift and tick as real ones do, power and step times vary with the measured spreads, and the
day can be hot, throttled, interrupted, rebooted, asleep or out of memory. Its key is public, so
nobody can mistake it for a result.
"""

from __future__ import annotations

import json
import math
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kit
from kit.core_eval.bundle import core_facts
from kit.core_eval.statistics import TaskOutcomes, normal_interval
from kit.recipe import parse_recipe
from kit.result import core_section
from kit.run.code import code_digest
from kit.run_log import LOG_KIND
from kit.trust import sshsig
from kit.trust.digest import FileDigest, manifest_digest, sha256_bytes
from kit.typed import to_json
from kit.verify.expected import Expected
from kit.verify.thresholds import CORE_TASKS
from support.draft import KEY, Draft, Event
from support.synthetic_machine import UUID_HASH, Clock, fingerprint_4090

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
kind = "hub"
repo = "karpathy/climbmix-400b-shuffle"
shards = 5

[tokenizer]
vocab_size = 8192

[model]
n_layer = 30
n_embd = 64
n_head = 2
n_kv_head = 2
seq_len = 131072
window_pattern = "L"
value_embeddings = false

[pretrain]
hours = 20.0
device_batch_size = 1
total_batch_size = 524288

[sft]
num_steps = 22
device_batch_size = 1
total_batch_size = 524288
"""
VOCABULARY = 8192
# A model of a d20's work a token and of few parameters, so that its weights can lie beside each
# synthetic run: long rows instead of wide layers.
PARAMETERS = 2_523_222

QUESTIONS = ("arc_easy", "mmlu")

BOOT, SECOND_BOOT = "b007" * 4, "b008" * 4


def safetensors(seed: int, size: int = PARAMETERS) -> bytes:
    """A small but whole safetensors file."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def core_document(rng: random.Random) -> dict[str, Any]:
    """eval/core.json of a model a little below the target."""
    tasks: list[dict[str, Any]] = []
    for label, (count, baseline) in CORE_TASKS.items():
        chance = 0.01 * baseline + 0.22 * (1 - 0.01 * baseline)
        outcomes = "".join("1" if rng.random() < chance else "0" for _ in range(count))
        tasks.append({"label": label, "file": label, "baseline": baseline, "outcomes": outcomes})
    interval = normal_interval(
        [TaskOutcomes(t["label"], t["file"], t["baseline"], t["outcomes"]) for t in tasks]
    )
    return {
        "format": 1,
        "metric": "CORE",
        "partial": False,
        "max_per_task": -1,
        "bundle": {"kind": "core", "digest": core_facts()["digest"], "tasks": len(tasks)},
        "interval": {"low": interval.low, "high": interval.high},
        "tasks": tasks,
    }


def _prefixed(digest: str) -> str:
    return f"sha256:{digest.removeprefix('sha256:')}"


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
    stall_at: int | None = None  # the machine does nothing for `stall_s`, and the clocks run on
    stall_s: float = 90.0
    stop_at: int | None = None
    batch: int = 524288
    recipe: str | None = None  # instead of the one here


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
        text = RECIPE.replace("524288", str(plan.batch)).replace("20.0", str(self.hours()))
        self.text = plan.recipe or text
        self.recipe = parse_recipe(self.text, folder=Path(), label="recipe")
        self.expected = Expected(self.recipe)
        self.vocabulary: int = self.recipe.section("tokenizer")["vocab_size"]
        self.questions = self.recipe.section("data")["chat_eval"] or QUESTIONS
        assert self.expected.course is not None
        self.course = self.expected.course
        counted = self.course.parameters(self.vocabulary)
        assert counted is not None
        self.parameters = counted

    def hours(self) -> float:
        """Hours of pretraining that the recipe gives: a tenth more than the plan needs."""
        plan = self.plan
        seconds = 40 + plan.steps * plan.step_s + plan.steps // 30 * 11
        seconds += 1800 if plan.sleep_at else 0
        seconds += plan.stall_s if plan.stall_at else 0
        if plan.resume_at:
            # The downtime, the start of the program, and the steps since the last checkpoint.
            seconds += (240 if plan.reboot else 40) + 30 + plan.resume_at % 30 * plan.step_s
        return round(1.1 * seconds / 3600, 6)

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
            kit={"version": kit.__version__, "code": code_digest()},
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
                "clocks_from": {
                    "clock_gettime": "libc.so.6",
                    "syscall": "libc.so.6",
                    "/proc/uptime": "proc",
                },
                "rtc_s": self.clock.rtc_s(),
            },
        )
        shards = [
            FileDigest(f"shard_{i:05d}.parquet", 100_000_000 + i, sha256_bytes(b"%d" % i))
            for i in range(self.recipe.section("data")["shards"] + 1)
        ]
        talk = [FileDigest("smoltalk.jsonl", 5_000_000, sha256_bytes(b"talk"))]
        questions = [
            FileDigest(f"{name}.jsonl", 500_000, sha256_bytes(name.encode()))
            for name in self.questions
        ]
        core = [
            FileDigest(path, facts["bytes"], _prefixed(facts["sha256"]))
            for path, facts in core_facts()["files"].items()
        ]
        inputs = {"data": shards, "sft": talk, "chat_eval": questions, "core": core}
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
            command=self.expected.command(stage),
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
            self.core()
        elif stage == "sft":
            self.say("trainer", "eval", name="sft_val_loss", step=0, value=1.72)
            last = self.recipe.section("sft")["num_steps"]
            for step in range(last):
                self.wait(max(0.1, self.rng.gauss(self.plan.step_s, 0.01)))
                loss = 1.6 - 0.01 * step + self.rng.gauss(0, 0.01)
                self.step(step, loss, self.plan.batch, stage="sft", progress=step / last)
            self.say("trainer", "eval", name="sft_val_loss", step=last, value=1.31)
            self.say("trainer", "memory", step=last, peak_bytes=21_900_000_000)
            self.outputs(stage, "checkpoints/sft", self.model(2))
        else:
            self.wait(12)
            self.chat()
        self.busy = False
        self.wait(0.4)
        self.end(stage)
        return True

    def core(self) -> None:
        document = core_document(self.rng)
        content = json.dumps(document).encode()
        section = to_json(core_section({**document, "digest": sha256_bytes(content)}))
        assert section is not None
        for task in section["tasks"]:
            accuracy = task["accuracy"]
            self.say(
                "eval", "eval", name="core_task", task=task["task"], n=task["n"], value=accuracy
            )
        digest, value = sha256_bytes(content), section["value"]
        self.say("eval", "eval", name="core", value=value, sha256=digest, path="eval/core.json")
        self.outputs("core", "eval", {"core.json": content}, names=["core.json"])

    def chat(self) -> None:
        tasks: dict[str, dict[str, Any]] = {
            name: {
                "outcomes": [int(self.rng.random() < 0.35) for _ in range(200)],
                "ended": [int(self.rng.random() < 0.97) for _ in range(200)],
                "baseline": 0.25,
            }
            for name in self.questions
        }
        for name, task in tasks.items():
            value = sum(task["outcomes"]) / 200
            self.say("trainer", "eval", name="chat_task", task=name, n=200, value=value)
        self.say("trainer", "eval", name="chat", value=0.13, file="eval/chat.json")
        document = {"tasks": tasks, "max_per_task": -1, "left_out": []}
        content = json.dumps(document).encode()
        self.outputs("chat_eval", "eval", {"chat.json": content}, names=["chat.json"])

    def model(self, seed: int) -> dict[str, bytes]:
        return {
            "config.json": b'{"loader": "reference"}',
            "model.safetensors": safetensors(100 * self.plan.seed + seed),
            "tokenizer.json": b'{"kind":"bpe"}',
        }

    def step(
        self, step: int, loss: float, batch: int, stage: str = "pretrain", progress: float = 0.0
    ) -> None:
        self.say(
            "trainer",
            "step",
            step=step,
            tokens=(step + 1) * batch,
            loss=round(loss, 6),
            lr=self.course.learning_rate(stage, step, progress),
            progress=progress,
            micro_batches=4,
            step_tokens=batch,
            dt_s=(took_s := round(self.plan.step_s + self.rng.gauss(0, 0.012), 6)),
            cuda_s=round(took_s - abs(self.rng.gauss(2e-4, 1e-4)), 6),
            wait_s=0.001,
        )

    def describe(self) -> None:
        model = {**self.recipe.section("model"), "vocab_size": self.vocabulary}
        trainer: Any = self.recipe.trainer
        self.say(
            "trainer",
            "model",
            parameters=self.parameters,
            flops_per_token=trainer.flops_per_token(self.recipe.document, [1.0], self.vocabulary)[
                0
            ],
            vocab_size=self.vocabulary,
            config=model,
            device="cuda:0",
            initial_weights=sha256_bytes(b"weights of the seed"),
        )

    def pretrain(self) -> bool:
        plan, rng = self.plan, self.rng
        began_s, first = self.clock.t_s, len(self.events)
        before_s: list[float] = []
        self.begin("pretrain")
        self.wait(30)
        self.describe()
        self.say("trainer", "eval", name="val_bpb", step=0, value=3.24)
        attempt, step = 0, 0
        while step < plan.steps:
            self.busy = True
            before_s.append(self.clock.t_s - began_s)
            self.wait(max(0.1, rng.gauss(plan.step_s, 0.012)))
            share = step / plan.steps
            self.step(
                step,
                math.log(self.vocabulary) * (1 - 0.72 * share**0.15) + rng.gauss(0, 0.02),
                plan.batch,
            )
            step += 1
            if plan.fail_at == step:
                self.say(
                    "trainer", "error", kind="out_of_memory", message="CUDA out of memory", hint=""
                )
                self.follow_the_clock(first, before_s, plan.steps / step)
                self.end("pretrain", attempt, "failed", reason="out_of_memory")
                return False
            if plan.stall_at == step:
                self.clock.advance(plan.stall_s)
                self.energy_j += 62.0 * plan.stall_s
                self.next_sample_s = self.clock.t_s + 0.5
            if plan.sleep_at == step:
                self.busy = False
                self.sampling, sampled = False, self.sampling
                self.clock.slept_s += 1800
                self.clock.advance(1800)
                self.next_sample_s = self.clock.t_s + 0.5
                self.sampling = sampled
                self.say("trainer", "eval", name="val_bpb", step=step, value=1.02)
            if step % 30 == 0 or step % self.recipe.section("pretrain")["eval_every"] == 0:
                self.wait(11)
                self.say(
                    "trainer",
                    "eval",
                    name="val_bpb",
                    step=step,
                    value=0.84 + 2.4 * math.exp(-3 * share),
                )
                self.say("trainer", "checkpoint", step=step, bytes=9_000_000_000, elapsed_s=10.0)
            if plan.resume_at == step:
                attempt += 1
                self.resume()
                self.begin("pretrain", attempt)
                self.wait(30)
                self.describe()
                step = step // 30 * 30
                plan.resume_at = None
        self.follow_the_clock(first, before_s)
        self.say("trainer", "memory", step=step, peak_bytes=22_400_000_000)
        self.say("trainer", "eval", name="val_bpb", step=step, value=0.8412)
        self.busy = False
        self.wait(6)
        self.outputs("pretrain", "checkpoints/pretrain", self.model(1))
        self.end("pretrain", attempt)
        return True

    def follow_the_clock(self, first: int, before_s: list[float], share: float = 1.0) -> None:
        """Gives the steps from event `first` on the progress and learning rate of their time.

        Args:
            before_s: Seconds into the stage when each step began.
            share: Of the time so far, that the whole stage would have taken.
        """
        end_s = share * (before_s[-1] + 0.5 * self.plan.step_s)
        steps = [event["data"] for event in self.events[first:] if event["ev"] == "step"]
        for data, seconds in zip(steps, before_s, strict=True):
            data["progress"] = progress = seconds / end_s
            data["lr"] = self.course.learning_rate("pretrain", data["step"], progress)

    def resume(self) -> None:
        """Everything dies; forty seconds later (or after a reboot) it goes on."""
        self.busy = self.sampling = False
        last_s = self.clock.t_s
        self.clock.advance(240 if self.plan.reboot else 40)
        if self.plan.reboot:
            self.clock.boot_s = self.clock.t_s
        down_s = round(self.clock.t_s - last_s, 3)
        boot = SECOND_BOOT if self.plan.reboot else BOOT
        self.say(
            "sup",
            "resume",
            rebooted=self.plan.reboot,
            downtime_s=down_s,
            boot=boot,
            since_boot_s=50.0 if self.plan.reboot else 90_000.0,
            rtc_s=self.clock.rtc_s(),
            time_namespace="none",
        )
        self.start_telemetry()


def gpu_run(**choices: Any) -> Draft:
    """A day of a 4090, shortened to about a quarter of an hour."""
    return Synthesis(Plan(**choices)).run()

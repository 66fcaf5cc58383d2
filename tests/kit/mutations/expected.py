"""V27 to V30: a run that contradicts its own recipe, inputs and machine, everything else redone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import tamper
from tamper import Draft

from kit.core_eval.bundle import core_facts
from kit.trust.digest import FileDigest, manifest_digest, sha256_bytes
from mutations.registry import mutation

Data = dict[str, Any]


def with_recipe(draft: Draft, old: str, new: str) -> None:
    """Changes the recipe's text and its digest in the header."""
    assert old in draft.recipe, old
    draft.recipe = draft.recipe.replace(old, new)
    draft.header()["recipe"]["digest"] = sha256_bytes(draft.recipe.encode())


def forged(name: str, expected: str, change: Callable[[Draft], Any], *, base: str = "4090") -> None:
    mutation(name, expected, kind="draft", base=base)(change)


def drop_until(draft: Draft, first: int) -> None:
    draft.events = [
        e for e in draft.events if e["ev"] != "step" or e["data"]["step"] >= first or is_sft(e)
    ]


def is_sft(event: Data) -> bool:
    return event["data"].get("loss", 9) < 1.8


def move_stage(draft: Draft, stage: str, before: str) -> None:
    """Does a stage before another one, with the clocks of a run that did."""
    bounds: dict[str, list[int]] = {}
    for index, event in enumerate(draft.events):
        if event["ev"] in ("stage_start", "stage_stop"):
            bounds.setdefault(event["data"]["stage"], []).append(index)
    (begin, end), (place, _) = bounds[stage], bounds[before]
    head, between = draft.events[:place], draft.events[place:begin]
    moved, tail = draft.events[begin : end + 1], draft.events[end + 1 :]
    length_ns = tail[0]["t_ns"] - moved[0]["t_ns"]
    late(moved, between[0]["t_ns"] - moved[0]["t_ns"])
    late(between, length_ns)
    draft.events = [*head, *moved, *between, *tail]


def late(events: list[Data], by_ns: int) -> None:
    """Moves events in time, on every clock."""
    for event in events:
        event["t_ns"] += by_ns
        event["wall_ms"] += by_ns // 10**6
        for name, unit in (("raw_ns", 1), ("syscall_ns", 1), ("uptime_ms", 10**6)):
            event["clocks"][name] += by_ns // unit


def insert_copy(draft: Draft, event: Data, **data: Any) -> None:
    at = draft.events.index(event)
    draft.events.insert(at, {**event, "data": {**event["data"], **data}})


def shift(draft: Draft, years: float) -> None:
    for record in [*draft.events, *draft.telemetry]:
        record["wall_ms"] += int(years * 365.25 * 86_400_000)


# --- V27: the course ---


def fail_stage(draft: Draft) -> None:
    stop = next(e for e in draft.of("stage_stop") if e["data"]["stage"] == "core")
    stop["data"].update(status="failed", reason="crashed", exit_code=1)


forged("SFT before pretraining", "V27", lambda d: move_stage(d, "sft", "pretrain"))
forged("CORE before pretraining", "V27", lambda d: move_stage(d, "core", "pretrain"))
forged("chat evaluation before finetuning", "V27", lambda d: move_stage(d, "chat_eval", "sft"))
forged("a failed stage in a complete run", "V27", fail_stage)
forged(
    "a stage that crashed and is called complete",
    "V27",
    lambda d: d.of("stage_stop")[1]["data"].update(exit_code=139),
)
forged("outputs counted twice", "V27", lambda d: insert_copy(d, d.of("artifacts")[1]))
forged("outputs never counted", "V27", lambda d: d.events.remove(d.of("artifacts")[0]))
forged("inputs counted twice", "V27", lambda d: insert_copy(d, d.of("inputs")[0]))
forged("a second start fingerprint", "V27", lambda d: insert_copy(d, d.of("fingerprint")[0]))
forged("telemetry summed up before the stop", "V27", lambda d: swap(d, "run_stop", "telemetry"))
forged("no last look at the surroundings", "V27", lambda d: d.events.remove(d.of("end")[0]))
forged(
    "caches that were not empty",
    "V27",
    lambda d: d.of("run_start")[0]["data"].update(compile_caches="sha256:" + "1" * 64),
)
forged("a run of 2029", "V27", lambda d: shift(d, 3))
forged("a run of next month", "V27", lambda d: shift(d, 0.35))
forged("contract 99", "V27", lambda d: d.header().update(contract=99))
forged("no contract at all", "V27", lambda d: d.header().pop("contract"))
forged("a foreign version", "V27", lambda d: d.header()["kit"].update(version="3.1.4"))
forged("more threads than cores", "V27", lambda d: d.header().update(threads=512))
forged("no torch", "V27", lambda d: d.header()["software"].update(torch=None))
forged("device cpu", "V27 V28", lambda d: on_cpu(d))
forged("a header that says cpu", "V27", lambda d: d.header().update(device="cpu"))
forged("no device", "V27", lambda d: d.header().pop("device"))
forged(
    "another program than the recipe's",
    "V27",
    lambda d: d.of("stage_start")[1]["data"].update(command=["python", "mine.py"]),
)
forged(
    "another program for CORE",
    "V27",
    lambda d: d.of("stage_start")[2]["data"].update(command=["python", "-m", "reference"]),
)
forged("no command", "V27", lambda d: d.of("stage_start")[0]["data"].pop("command"))
forged(
    "closed, with a trainer of its own",
    "V27",
    lambda d: with_recipe(
        d, "[tokenizer]", '[trainer]\ncommand = ["python", "{recipe_dir}/x.py"]\n\n[tokenizer]'
    ),
)
forged(
    "closed, with a loader of its own",
    "V27",
    lambda d: with_recipe(d, "[tokenizer]", '[trainer]\nloader = "x.py:load"\n\n[tokenizer]'),
)
forged(
    "closed, with data of its own",
    "V27",
    lambda d: with_recipe(d, "karpathy/climbmix-400b-shuffle", "mallory/answers"),
)
forged(
    "closed, with a folder of data",
    "V27",
    lambda d: with_recipe(d, 'kind = "hub"', 'kind = "folder"'),
)


def swap(draft: Draft, first: str, second: str) -> None:
    (one,), (two,) = draft.of(first), draft.of(second)
    for key in ("ev", "data"):
        one[key], two[key] = two[key], one[key]


def on_cpu(draft: Draft) -> None:
    """Every mention of the GPU's use becomes the CPU's."""
    draft.header()["device"] = "cpu"
    for event in draft.of("model"):
        event["data"]["device"] = "cpu"


# --- V19: seeds ---

forged("a seed typed in, in the closed division", "V19", lambda d: seed(d, source="command line"))


def seed(draft: Draft, **fields: Any) -> None:
    draft.header()["seed"].update(fields)


# --- V28: the training ---


def model(name: str, expected: str = "V28", **fields: Any) -> None:
    forged(name, expected, lambda d: [e["data"].update(fields) for e in d.of("model")])


def config(name: str, expected: str, **fields: Any) -> None:
    forged(name, expected, lambda d: [e["data"]["config"].update(fields) for e in d.of("model")])


def steps(name: str, expected: str, change: Callable[[Data], Any], stage: str = "pretrain") -> None:
    forged(name, expected, lambda d: [change(e["data"]) for e in d.of("step", stage)])


model("parameters out of the air", "V21 V28", parameters=50_000_000_000)
model("three parameters", "V21 V28", parameters=3)
model("another vocabulary", "V17 V28 V30", vocab_size=500)
model("no device in the model event", "V28", device=None)
config("another window pattern", "V28", window_pattern="SSSL")
config("another softcap", "V28", softcap=30.0)
config("no window pattern", "V28", short_window=64)
forged(
    "a model event without its layers",
    "V28",
    lambda d: [e["data"]["config"].pop("n_layer") for e in d.of("model")],
)
forged("no model event", "V28", lambda d: d.events.remove(d.of("model")[0]))
forged("a log that begins at step 20", "V28", lambda d: drop_until(d, 20))
steps("another batch than the recipe's", "V28", lambda s: s.update(step_tokens=262_144))
steps("a constant learning rate", "V28", lambda s: s.update(lr=1.0))
steps("no learning rate", "V28", lambda s: s.pop("lr"))
steps("no step times", "V06 V28", lambda s: s.pop("dt_s"))
steps("no progress", "V28", lambda s: s.pop("progress"))
steps("progress ten times as slow", "V28", lambda s: s.update(progress=s["progress"] / 10))
steps("finetuning with another batch", "V28", lambda s: s.update(step_tokens=1024), "sft")
steps("finetuning without progress", "V28", lambda s: s.update(progress=0.5), "sft")
forged(
    "hours unlike the recipe",
    "V28",
    lambda d: with_recipe(d, hours_line(d), "hours = 20.5"),
)
forged(
    "steps unlike the recipe",
    "V28",
    lambda d: with_recipe(d, "num_steps = 22", "num_steps = 400"),
)
forged(
    "finetuning by hours that the log does not show",
    "V28",
    lambda d: with_recipe(d, "[sft]", "[sft]\nhours = 3.0"),
)
forged(
    "evaluations unlike the recipe",
    "V28",
    lambda d: with_recipe(d, "[pretrain]", "[pretrain]\neval_every = 7"),
)
forged("no evaluation of the fresh model", "V28", lambda d: d.events.remove(d.of("eval")[0]))
forged(
    "no evaluation of finetuning",
    "V28",
    lambda d: [d.events.remove(e) for e in d.of("eval", "sft")],
)
forged(
    "an evaluation that is no figure",
    "V17 V28",
    lambda d: d.of("eval", "pretrain")[-1]["data"].update(value=-0.7),
)
forged(
    "80 GB held on a card of 24",
    "V28",
    lambda d: d.of("memory")[0]["data"].update(peak_bytes=80 * 2**30),
)
forged(
    "less memory than the model",
    "V28",
    lambda d: d.of("memory")[0]["data"].update(peak_bytes=2**20),
)
forged("no memory event", "V28", lambda d: [d.events.remove(e) for e in d.of("memory", "sft")])


def hours_line(draft: Draft) -> str:
    return next(line for line in draft.recipe.splitlines() if line.startswith("hours"))


# --- V29: the scope ---


def inputs(draft: Draft, name: str, files: list[FileDigest]) -> None:
    draft.of("inputs")[0]["data"][name] = {
        "digest": manifest_digest(files),
        "bytes": sum(file.bytes for file in files),
        "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.digest} for f in files],
    }


def shards(draft: Draft, size: int) -> None:
    inputs(
        draft,
        "data",
        [FileDigest(f"shard_{i:05d}.parquet", size, sha256_bytes(b"%d" % i)) for i in range(6)],
    )


def tests_among_shards(draft: Draft) -> None:
    facts = next(iter(core_facts()["files"].values()))
    digest = f"sha256:{facts['sha256'].removeprefix('sha256:')}"
    files = [FileDigest(f"shard_{i:05d}.parquet", 10**8, sha256_bytes(b"%d" % i)) for i in range(5)]
    inputs(draft, "data", [*files, FileDigest("shard_00005.parquet", facts["bytes"], digest)])


def squeeze(draft: Draft, stage: str, factor: float) -> None:
    """Makes a stage take `factor` of its time, and moves what follows to where it ended."""
    own = [e for e in draft.events if e["ev"] in ("stage_start", "stage_stop")]
    begin, end = (draft.events.index(e) for e in own if e["data"]["stage"] == stage)
    inside, tail = draft.events[begin + 1 : end + 1], draft.events[end + 1 :]
    t0 = draft.events[begin]["t_ns"]
    late(tail, -int((inside[-1]["t_ns"] - t0) * (1 - factor)))
    for event in inside:
        late([event], -int((event["t_ns"] - t0) * (1 - factor)))
        if event["ev"] == "step":
            for name in ("dt_s", "cuda_s"):
                event["data"][name] = round(event["data"][name] * factor, 6)
    stop_ms = draft.of("run_stop")[0]["t_ns"] // 10**6
    draft.telemetry[:] = [r for r in draft.telemetry if r["t_ms"] <= stop_ms + 900]


forged("one byte of data", "V29", lambda d: shards(d, 1))
forged("a kilobyte of data for all tokens", "V29", lambda d: shards(d, 1000))
forged("CORE's own file among the shards", "V29", tests_among_shards)
forged(
    "the questions among the conversations",
    "V29",
    lambda d: inputs(
        d,
        "sft",
        [
            FileDigest(f["path"], f["bytes"], f["sha256"])
            for f in d.of("inputs")[0]["data"]["chat_eval"]["files"]
        ],
    ),
)
forged("no conversations for finetuning", "V29", lambda d: d.of("inputs")[0]["data"].pop("sft"))
forged("no bundle for CORE", "V29", lambda d: d.of("inputs")[0]["data"].pop("core"))
forged(
    "another bundle than was read",
    "V29",
    lambda d: inputs(d, "core", [FileDigest("core.yaml", 3199, sha256_bytes(b"easy"))]),
)
forged(
    "fewer shards than the recipe",
    "V29",
    lambda d: with_recipe(d, "shards = 5", "shards = 120"),
)
forged(
    "a corpus unlike the recipe's digest",
    "V29",
    lambda d: with_recipe(d, "shards = 5", f'shards = 5\ndigest = "sha256:{"7" * 64}"'),
)
forged(
    "input sizes that do not add up",
    "V29",
    lambda d: d.of("inputs")[0]["data"]["data"].update(bytes=10**12),
)
forged("CORE in no time", "V29", lambda d: squeeze(d, "core", 0.0007))
forged("SFT at many times the roof", "V29", lambda d: squeeze(d, "sft", 0.02))
forged(
    "no reports of CORE's tasks",
    "V29",
    lambda d: [d.events.remove(e) for e in d.of("eval", "core")[:-1]],
)
forged("no report of CORE", "V29", lambda d: d.events.remove(d.of("eval", "core")[-1]))
forged(
    "CORE reported otherwise",
    "V29",
    lambda d: d.of("eval", "core")[-1]["data"].update(value=0.31),
)
forged(
    "questions that were not read",
    "V29",
    lambda d: rename_chat(d, "mmlu", "mine"),
)
forged(
    "more questions than the recipe asks",
    "V29",
    lambda d: with_recipe(d, "[sft]", "[chat_eval]\nmax_per_task = 50\n\n[sft]"),
)
forged(
    "a roof doubled by a word",
    "V13 V29",
    lambda d: (
        with_recipe(d, "[pretrain]", '[pretrain]\nmatmul = "fp8"'),
        faster(d, 0.72),
    ),
)


def rename_chat(draft: Draft, old: str, new: str) -> None:
    document = json.loads(draft.files["eval/chat.json"])
    document["tasks"][new] = document["tasks"].pop(old)
    draft.files["eval/chat.json"] = json.dumps(document).encode()
    for event in draft.of("eval", "chat_eval"):
        if event["data"].get("task") == old:
            event["data"]["task"] = new


def faster(draft: Draft, factor: float) -> None:
    tamper.scale(draft, factor, "twrsu")
    tamper.step_times(draft, factor)


# --- V30: the noise ---


def losses(
    name: str, change: Callable[[Data, random.Random], float], expected: str = "V30"
) -> None:
    """Every loss after the first one anew."""

    def apply(draft: Draft) -> None:
        rng = random.Random(3)
        for event in draft.of("step", "pretrain")[1:]:
            event["data"]["loss"] = round(change(event["data"], rng), 9)

    forged(name, expected, apply)


def curve(step: int) -> float:
    return math.log(8192) * (1 - 0.72 * (step / 48) ** 0.15)


losses("losses without noise", lambda s, r: curve(s["step"]))
losses("losses with hardly any noise", lambda s, r: curve(s["step"]) * (1 + r.gauss(0, 1e-4)))
losses("losses with wild noise", lambda s, r: curve(s["step"]) * math.exp(r.gauss(0, 0.1)))
losses("a loss of 0.001", lambda s, r: 0.001 * (1 + r.gauss(0, 0.003)))
losses("losses that only rise", lambda s, r: 9.0 + s["step"] * 0.05 + r.gauss(0, 0.03))
losses("losses that stay", lambda s, r: 9.0 + r.gauss(0, 0.03))
losses("one loss again and again", lambda s, r: 2.6 + 0.02 * (s["step"] // 12))
losses(
    "losses unlike their bits per byte",
    lambda s, r: 0.4 * curve(s["step"]) * (1 + r.gauss(0, 0.004)),
)
forged(
    "bits per byte that do not fall",
    "V30",
    lambda d: [e["data"].update(value=3.24) for e in d.of("eval", "pretrain")],
)
forged(
    "bits per byte unlike the vocabulary",
    "V30",
    lambda d: d.of("eval", "pretrain")[0]["data"].update(value=1.1),
)


def answers(name: str, change: Callable[[str], str]) -> None:
    def apply(draft: Draft) -> None:
        document = json.loads(draft.files["eval/core.json"])
        for task in document["tasks"]:
            task["outcomes"] = change(task["outcomes"])
        tamper.score(draft, document)

    forged(name, "V30", apply)


def in_order(outcomes: str) -> str:
    return "".join(sorted(outcomes))


def by_turns(outcomes: str) -> str:
    return ("10" * len(outcomes))[: len(outcomes)]


answers("every answer right", lambda outcomes: "1" * len(outcomes))
answers("answers in order", in_order)
answers("answers by turns", by_turns)

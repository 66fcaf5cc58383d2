"""A corpus of a few kilobytes and requests to train on it: for tests of whole training stages."""

from __future__ import annotations

import json
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kit.recipe import parse_recipe
from reference.events import Events
from reference.request import Request
from reference.rows.documents import token_folder, tokenize_shard, write_index
from reference.tokenizer.bpe import Tokenizer

TEXT = """
schema_version = 1
name = "tiny"
track = "smoke"
budget_s = 600
[tokenizer]
vocab_size = 320
[model]
n_layer = 2
n_embd = 32
n_head = 2
n_kv_head = 2
seq_len = 32
short_window = 16
[pretrain]
num_steps = 8
"""
SECTION = {
    "num_steps": 8, "device_batch_size": 2, "total_batch_size": 128, "warmup_steps": 0,
    "scale_lr": False, "eval_every": 4, "eval_tokens": 256, "checkpoint_every": 3,
}  # fmt: skip
# One entry for each switch of the trainer, with changes to the sections of the recipe above.
SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "none": {},
    "length ramp": {"pretrain": {"seq_len_ramp": [[0, 8], [0.3, 16], [0.7, 32]]}},
    "all ramps": {
        "pretrain": {"seq_len_ramp": [[0, 16], [0.4, 32]], "window_ramp": [[0, 0.5], [0.6, 1]],
                     "batch_ramp": [[0, 64], [0.5, 128]]},
    },
    "8 bits until late": {"pretrain": {"matmul": "fp8", "matmul_until": 0.6}},
    "untied late, 8 bits, short rows": {
        "model": {"tied_until": 0.5},
        "pretrain": {"matmul": "int8", "matmul_layers": ["attention", "mlp", "head"],
                     "seq_len_ramp": [[0, 16], [0.5, 32]]},
    },
    "tied, states in other types": {
        "model": {"tied_until": 1},
        "pretrain": {"momentum_dtype": "bfloat16", "factored_second_moment": True},
    },
    "growth": {
        "model": {"n_layer": 4, "n_embd": 64, "n_head": 4, "n_kv_head": 4},
        "pretrain": {"growth_layers": [[0, 2], [0.3, 4]], "growth_width": [[0, 32], [0.6, 64]],
                     "seq_len_ramp": [[0, 16], [0.4, 32]], "average": "ema"},
    },
    "its own teacher": {
        "model": {"tied_until": 0.7},
        "pretrain": {"distill_from": 0.3, "distill_refresh": 0.4, "distill_temperature": 2,
                     "growth_layers": [[0, 1], [0.5, 2]]},
    },
    "documents apart": {"pretrain": {"document_mask": True, "prefetch": 3}},
    "rows replayed, conversations late": {
        "pretrain": {"replay_share": 0.25, "replay_from": 0.25, "replay_keep": 6,
                     "sft_share": 0.25, "sft_from": 0.5, "document_mask": True},
    },
    "swiglu, one key head, logits in 8 bits": {
        "model": {"ffn": "swiglu", "n_kv_head": 1},
        "pretrain": {"matmul": "fp8_rowwise", "matmul_layers": ["mlp", "head"]},
    },
}  # fmt: skip

# Switches that need no test of a resume of their own.
MORE_SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "muon2": {"pretrain": {"matrix_optimizer": "muon2"}},
    "two momenta": {"pretrain": {"matrix_optimizer": "bi_maxwell", "maxwell_from": 2}},
    "soap": {"pretrain": {"matrix_optimizer": "soap", "soap_max_dim": 64}},
    "soap_muon": {"pretrain": {"matrix_optimizer": "soap_muon", "soap_refresh_steps": 2}},
    "adamw": {"pretrain": {"matrix_optimizer": "adamw", "matrix_lr": 0.002}},
    "average of the tail": {"pretrain": {"average": "tail", "average_share": 0.4}},
    "scaled rates": {"pretrain": {"scale_lr": True, "warmup_steps": 3}},
    "square decay": {"pretrain": {"decay": "square", "weight_decay_schedule": "linear"}},
    "power decay, momentum": {
        "pretrain": {"decay": "power", "warmdown_ratio": 1, "momentum": [0.5, 0.9, 0.6],
                     "momentum_steps": 3},
    },
    "deterministic": {"pretrain": {"deterministic": True}},
    "compiled optimizer, memory cap": {
        "pretrain": {"compile_optimizer": True, "vram_cap_gib": 4},
    },
    "whole loss": {"pretrain": {"fused_loss": False}},
    "micro-batch left open": {"pretrain": {"device_batch_size": 0}},
    "bf16, no smear, no backout": {
        "model": {"dtype": "bfloat16", "smear": False, "backout": False},
    },
}  # fmt: skip


# A batch of two micro-batches; what the benchmarks time.
BENCH = {"num_steps": 100, "device_batch_size": 2, "total_batch_size": 128}


def tiny_recipe(**pretrain: Any) -> dict[str, Any]:
    """The recipe above, resolved, with other values in `[pretrain]`."""
    document = parse_recipe(TEXT, folder=Path()).document
    document["pretrain"].update(pretrain)
    return document


def defaults(section: str) -> dict[str, Any]:
    """Every field of a section of the tiny recipe."""
    return parse_recipe(TEXT, folder=Path()).section(section)


class Recorder(Events):
    """Keeps the events of a stage in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def emit(self, ev: str, **data: Any) -> None:
        json.dumps(data, allow_nan=False)
        self.seen.append((ev, data))

    def data(self, ev: str) -> list[dict[str, Any]]:
        return [data for name, data in self.seen if name == ev]

    @property
    def losses(self) -> list[tuple[int, int, float]]:
        """(step, tokens, loss) of every step event."""
        return [(data["step"], data["tokens"], data["loss"]) for data in self.data("step")]

    @property
    def notes(self) -> str:
        return "\n".join(data["text"] for data in self.data("note"))


def make_world(root: Path, *, longer: int = 1) -> Path:
    """Writes a tokenizer, a tokenized corpus and conversations under `root`; returns `root`.

    Args:
        longer: Documents are this many times as long, about 60 tokens each otherwise.
    """
    texts = [f"{i} and {i + 1} are {2 * i + 1}, " * (1 + i % 7) * longer for i in range(300)]
    tokenizer = Tokenizer.train(texts, 320)
    tokenizer.save(root / "tokenizer")
    folder = token_folder(root / "cache", "r")
    for name, part in (("a", texts[30:]), ("b", texts[:30])):
        pq.write_table(pa.table({"text": part}), root / f"{name}.parquet")
        tokenize_shard(root / f"{name}.parquet", folder, tokenizer)
    write_index(folder, ["a"], ["b"])
    conversations = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i + 1}, "}]
        for i in range(40)
    ]
    (root / "sft").mkdir()
    lines = "".join(json.dumps(conversation) + "\n" for conversation in conversations)
    (root / "sft/talks.jsonl").write_text(lines)
    return root


def training_request(
    world: Path,
    out: Path,
    changes: dict[str, dict[str, Any]],
    *,
    stage: str = "pretrain",
    attempt: int = 0,
    **paths: Path,
) -> Request:
    """A request to train on `world`, with `changes` to the sections of the tiny recipe.

    Args:
        paths: Further paths of the request, such as `base` of the stage sft.
    """
    recipe = parse_recipe(TEXT, folder=world).document
    for section, values in {"pretrain": {}, **changes}.items():
        recipe[section].update({**(SECTION if section == "pretrain" else {}), **values})
    now = clock_gettime_ns(CLOCK_BOOTTIME)
    document = {
        "contract": 1, "stage": stage, "run_id": "r", "seed": 7, "attempt": attempt,
        "device": "cpu", "threads": 1, "recipe": recipe,
        "paths": {"out": str(out), "cache": str(world / "cache"),
                  "tokenizer": str(world / "tokenizer"), "data": str(world),
                  "sft": str(world / "sft"), **{k: str(path) for k, path in paths.items()}},
        "clock": {"start_ns": now, "stage_start_ns": now, "deadline_ns": now + int(6e11),
                  "budget_s": 600.0},
    }  # fmt: skip
    path = out.with_name(f"{out.name}-request.json")
    path.write_text(json.dumps(document))
    return Request.load(path)

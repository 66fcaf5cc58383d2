"""A trainer that is not the reference: counts byte pairs. The whole contract in a page."""

import json
import os
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

BOS = 256


class Course:
    """What `verify` holds a run to, where this trainer is installed."""

    def __init__(self):
        self.model = {}

    model_fields, step_fields = (), ("dt_s",)

    def parameters(self, vocab_size):
        return 257 * 257

    def forward_flops(self, vocab_size):
        return 1.0

    def eight_bit_share(self, vocab_size):
        return 0.0

    def batch_tokens(self, stage, progress):
        return None  # a step is a shard

    def learning_rate(self, stage, step, progress):
        return None  # there is none

    def evaluated_steps(self, stage, last):
        return []

    def usable_s(self, stage):
        return None


class Trainer:
    """What the kit asks about this trainer's part of a recipe."""

    def sections(self):
        prior = {"description": "Count of every pair before the first text.", "type": "number",
                 "exclusiveMinimum": 0, "default": 1}  # fmt: skip
        return {
            "bigram": {
                "description": "Byte pairs.",
                "type": "object",
                "additionalProperties": False,
                "properties": {"prior": prior},
                "default": {},
            }
        }

    def problems(self, recipe):
        return []

    def facts(self, recipe):
        return {"dtype": "float32"}

    def flops_per_token(self, recipe, shares, vocab_size):
        return [1.0 for _ in shares]

    def course(self, recipe):
        return Course()

    def estimate(self, recipe):
        return None


TRAINER = Trainer()


def load(path, *, device="cpu", dtype="auto"):
    """Model loader: an object with vocab_size, bos_id, encode and logits."""
    import torch

    class Bigram:
        vocab_size, bos_id = 257, BOS
        table = torch.log(torch.from_numpy(load_file(Path(path) / "model.safetensors")["counts"]))

        def encode(self, texts):
            return [list(text.encode()) for text in texts]

        def logits(self, tokens):
            return self.table[tokens]

    return Bigram()


def count(table, texts):
    for text in texts:
        data = [BOS, *text.encode()]
        np.add.at(table, (data[:-1], data[1:]), 1)


def main(request_path):
    request = json.loads(Path(request_path).read_text())
    paths, out = request["paths"], Path(request["paths"]["out"])
    out.mkdir(parents=True, exist_ok=True)
    with os.fdopen(int(os.environ["N4090_EVENTS_FD"]), "w", buffering=1) as events:

        def emit(ev, **data):
            events.write(json.dumps({"ev": ev, "data": data}) + "\n")

        table = np.full((257, 257), request["recipe"]["bigram"]["prior"], np.float32)
        if request["stage"] == "tokenizer":
            (out / "tokenizer.json").write_text('{"kind": "bytes"}')
        elif request["stage"] == "pretrain":
            import pyarrow.parquet as pq

            emit("model", parameters=table.size, flops_per_token=1)
            for step, shard in enumerate(sorted(Path(paths["data"]).glob("*.parquet"))):
                count(table, pq.read_table(shard)["text"].to_pylist())
                loss = float(
                    -(table * np.log(table / table.sum(1, keepdims=True))).sum() / table.sum()
                )
                emit("step", step=step, tokens=int(table.sum()), loss=loss, dt_s=0.01)
        elif request["stage"] == "sft":
            table = load_file(Path(paths["base"]) / "model.safetensors")["counts"]
            for source in sorted(Path(paths["sft"]).glob("*.jsonl")):
                count(
                    table, (turn["content"] for line in source.open() for turn in json.loads(line))
                )
        else:
            task = {"outcomes": [0, 1], "ended": [1, 1], "baseline": 0.5}
            (out / "chat.json").write_text(json.dumps({"tasks": {"none": task}}))
        if request["stage"] in ("pretrain", "sft"):
            save_file({"counts": table}, out / "model.safetensors")
            (out / "config.json").write_text('{"loader": "bigram_trainer.py:load"}')
        emit("note", text=f"{request['stage']} done")


if __name__ == "__main__":
    main(sys.argv[1])

"""`tokenizer compare`: what a tokenizer costs and saves, beside others.

Measured: bytes per token by domain, how much of the vocabulary is used, encoding speed beside
tiktoken alone. Arithmetic of a recipe's model: FLOPs and memory of embedding and head, FLOPs per
byte. Estimated, and labelled so: what the change in text seen for the same compute does to bpb, by
the published fit bpb ~ C^-0.050; CORE is another matter, it moved by 0.010 to 0.018 between
tokenizers of equal bpb.

References:
    nanochat's scaling-law fit (dev/LOG.md, 2026-01-27) and audit of tokenizers (its pull request
    733)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.files import write_whole
from reference.model.cost import count_flops, count_parameters, estimate
from reference.pages import render
from reference.rows.reader import files_ending
from reference.tokenizer.bpe import Tokenizer

BPB_EXPONENT = -0.050
RARE = 10  # occurrences below which a token learns next to nothing
DOMAIN_BYTES = 2_000_000  # of each domain at most

_PAGE = Path(__file__).with_name("compare.html.jinja")


def read_domains(folder: Path, column: str = "text") -> dict[str, list[str]]:
    """Texts by `domain` or `source` column, else by file; some megabytes of each.

    Raises:
        TrainerError: No parquet file with such a column.
    """
    found: dict[str, list[str]] = {}
    room: dict[str, int] = {}
    files = files_ending(folder, ".parquet")
    if not files:
        raise TrainerError("bad_input", f"no *.parquet file in {folder}", "Name another folder.")
    for path in files:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise TrainerError("bad_input", f"{path} has no column {column!r}", "Name it.")
            label = next((name for name in ("domain", "source") if name in names), None)
            for batch in file.iter_batches(256, columns=[column, *([label] if label else [])]):
                texts = batch.column(0).to_pylist()
                labels = batch.column(1).to_pylist() if label else [path.stem] * len(texts)
                for text, name in zip(texts, labels, strict=True):
                    left = room.setdefault(str(name), DOMAIN_BYTES)
                    if text and left > 0:
                        found.setdefault(str(name), []).append(text)
                        room[str(name)] = left - len(text.encode())
    return found


def compare(
    tokenizers: Mapping[str, Tokenizer],
    domains: Mapping[str, Sequence[str]],
    recipe: Mapping[str, Any],
    repeats: int = 3,
) -> dict[str, Any]:
    """Figures of each tokenizer; the first is the one the others are compared with.

    Args:
        recipe: Resolved recipe: its model and batch.
        repeats: Timings of each, taken in turn with tiktoken's; the best counts.
    """
    rows = [
        {"name": name, **_figures(tokenizer, domains, recipe, repeats)}
        for name, tokenizer in tokenizers.items()
    ]
    first = rows[0]
    for row in rows:
        # The same compute sees this much more or less text.
        ratio = first["flops_per_byte"] / row["flops_per_byte"]
        row["text_ratio"] = ratio
        row["step_time_ratio"] = row["flops_per_token"] / first["flops_per_token"]
        row["bpb_factor_estimate"] = ratio**BPB_EXPONENT
    return {
        "recipe": recipe["name"],
        "domains": {
            name: sum(len(text.encode()) for text in texts) for name, texts in domains.items()
        },
        "tokenizers": rows,
        "notes": [
            "FLOPs, memory and step time are arithmetic for the recipe's model, not measured.",
            f"bpb factor: estimate by bpb ~ C^{BPB_EXPONENT} for the text seen with equal compute.",
        ],
    }


def _figures(
    tokenizer: Tokenizer,
    domains: Mapping[str, Sequence[str]],
    recipe: Mapping[str, Any],
    repeats: int,
) -> dict[str, Any]:
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    by_domain = {}
    total_bytes = total_tokens = 0
    for name, texts in domains.items():
        size = sum(len(text.encode()) for text in texts)
        tokens = 0
        for ids in tokenizer.encode_arrays(texts):
            counts += np.bincount(ids, minlength=len(counts))
            tokens += len(ids)
        by_domain[name] = size / max(1, tokens)
        total_bytes += size
        total_tokens += tokens
    bytes_per_token = total_bytes / max(1, total_tokens)
    config = ModelConfig.from_recipe(recipe["model"], tokenizer.vocab_size)
    parameters, flops = count_parameters(config), count_flops(config)
    own = {**recipe, "tokenizer": {**recipe["tokenizer"], "vocab_size": tokenizer.vocab_size}}
    head = 6 * parameters.unembedding
    learnt = counts[256 : len(tokenizer.ranks)]
    sample = [text for texts in domains.values() for text in texts[:60]]
    return {
        "digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": bytes_per_token,
        "by_domain": by_domain,
        "unused_share": float((learnt == 0).mean()) if len(learnt) else 0.0,
        "rare_share": float((learnt < RARE).mean()) if len(learnt) else 0.0,
        "embedding_parameters": parameters.embedding + parameters.value_embedding,
        "head_parameters": parameters.unembedding,
        "head_flops_share": head / flops.causal,
        "flops_per_token": flops.causal,
        "flops_per_byte": flops.causal / bytes_per_token,
        "vram_bytes": estimate(own)["vram_bytes"]["total"],
        **measure_speed(tokenizer, sample, repeats),
    }


def measure_speed(tokenizer: Tokenizer, texts: Sequence[str], repeats: int) -> dict[str, float]:
    """Speed of `encode` and `encode_arrays` beside tiktoken's batch mode, one thread each.

    The three take turns, each on its own processor time, so that other work on the machine falls
    on all of them.
    """
    size = sum(len(text.encode()) for text in texts)
    encoding = tokenizer._encoding
    # Two items make it a batch; one thread each.
    modes: dict[str, Callable[[], Any]] = {
        "tiktoken": lambda: encoding.encode_ordinary_batch(list(texts), num_threads=1),
        "encode": lambda: tokenizer.encode(texts),
        "arrays": lambda: tokenizer.encode_arrays(texts),
    }
    best = dict.fromkeys(modes, float("inf"))
    tokens = 0
    for _ in range(repeats):
        for name, mode in modes.items():
            result = None  # freeing the last one is not this one's time
            began = time.process_time()
            result = mode()
            best[name] = min(best[name], time.process_time() - began)
            tokens = sum(len(ids) for ids in result)
    return {
        "mb_per_s": size / 1e6 / best["encode"],
        "tokens_per_s": tokens / best["encode"],
        "tiktoken_tokens_per_s": tokens / best["tiktoken"],
        "speed_beside_tiktoken": best["tiktoken"] / best["encode"],
        "arrays_beside_tiktoken": best["tiktoken"] / best["arrays"],
    }


def write_page(found: dict[str, Any], target: Path) -> None:
    """The comparison as a self-contained HTML page with a plot."""
    highest = max(rate for row in found["tokenizers"] for rate in row["by_domain"].values())
    write_whole(target, render(_PAGE, {}, found=found, highest=highest))

"""Does each step of `data build` help a model that sees equally many tokens?

`python -m benchmarks.data_study --texts DIR --core DIR`

Six corpora come from the same sources: web text raw, filtered, deduplicated, both, both and mixed
with curated text, and the curated text mixed into raw web text (so that the gain of mixing and the
gain of cleaning can be told apart). On each a small model is trained with every seed; all share
tokenizer, model, schedule and number of tokens, and are scored on the same held-out documents.
Variants are compared seed by seed: the same seed has the same initial weights.

The intervals are Student's t over the seeds' differences, so they cover initialisation and data
order, not the choice of sources.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq

from reference.command_errors import explained
from reference.data.bench import TokenizedTexts
from reference.data.build import Options, build_corpus
from reference.data.manifest import read_manifest
from reference.data.spec import (
    Decontaminate,
    Dedup,
    Filters,
    Language,
    Mix,
    Quality,
    ShardRules,
    Source,
    Spec,
)
from reference.errors import TrainerError
from reference.files import write_whole
from reference.rows.reader import files_ending

WEB = ("web-raw", "c4", "openwebtext", "stackexchange")
CURATED = ("textbook", "wikipedia", "wikinews", "books", "speeches", "fineweb-edu")
NO_RULES = Filters(gopher_quality=False, gopher_repetition=False, fineweb=False)
CURATED_SHARE = 0.5
MIN_SCORE = 0.02  # of the quality model; keeps all but the clearest boilerplate
VOCAB_SIZE, SEQ_LEN, BATCH = 4096, 256, 8
MODEL = {"n_layer": 4, "n_embd": 128, "n_head": 2, "n_kv_head": 2, "seq_len": SEQ_LEN}
# The rates of recipe `nano`, which has the same batch of 2,048 tokens.
RATES = {
    "scale_lr": False,
    "matrix_lr": 0.008,
    "embedding_lr": 0.1,
    "unembedding_lr": 0.004,
    "value_embedding_lr": 0.05,
    "resid_lr": 0.001,
    "x0_lr": 0.05,
    "gate_lr": 0.02,
}
EVAL_TOKENS = 40_000  # of each held-out set
# Two-sided 95 % points of Student's t by degrees of freedom.
STUDENT = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}


def variants(texts: Path, core: Path | None) -> dict[str, Spec]:
    """The corpora compared, each a spec over the parquet files in `texts`."""
    web, curated = _sources(texts, WEB), _sources(texts, CURATED)
    if not web or not curated:
        raise TrainerError(
            "bad_input",
            f"{texts} needs NAME-*.parquet of {' or '.join(WEB)} and of {' or '.join(CURATED)}",
            "The study reads NAME-*.parquet of several sources of different quality.",
        )
    quality = Quality(
        clean=tuple(item.path for item in curated if item.name in ("textbook", "wikipedia")),
        noisy=tuple(item.path for item in web if item.name == "web-raw"),
        examples=1500,
        min_score=MIN_SCORE,
    )
    raw = Spec(
        source=tuple(web),
        name="raw",
        filters=NO_RULES,
        dedup=Dedup(exact=False, near=False),
        shards=ShardRules(validation=0.0, text_mb=20),
        part_mb=16,
    )
    filtered = dataclasses.replace(
        raw, name="filtered", filters=Filters(), language=Language(keep=("en",)), quality=quality
    )
    deduplicated = dataclasses.replace(raw, name="deduplicated", dedup=Dedup())
    both = dataclasses.replace(filtered, name="filtered, deduplicated", dedup=Dedup())
    shares = {item.name: CURATED_SHARE / len(curated) for item in curated}

    def mixed(base: Spec, name: str) -> Spec:
        joint = [dataclasses.replace(item, domain="web") for item in base.source]
        return dataclasses.replace(
            base,
            name=name,
            source=(*joint, *curated),
            mix=Mix(shares={**shares, "web": 1 - CURATED_SHARE}, max_epochs=4),
        )

    found = [
        raw,
        filtered,
        deduplicated,
        both,
        mixed(both, "filtered, deduplicated, mixed"),
        mixed(raw, "raw, mixed"),
    ]
    if core is not None:
        rules = Decontaminate(core=str(core))
        found = [
            dataclasses.replace(item, decontaminate=rules) if "mixed" in item.name else item
            for item in found
        ]
    return {item.name: item for item in found}


def _sources(texts: Path, names: Sequence[str]) -> list[Source]:
    files = [path.name for path in files_ending(texts, ".parquet")]
    return [
        Source(name=name, path=str(texts / f"{name}-*.parquet"))
        for name in names
        if fnmatch.filter(files, f"{name}-*.parquet")
    ]


def run_study(
    texts: Path,
    out: Path,
    *,
    seeds: int,
    steps: int,
    core: Path | None = None,
    threads: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Builds the corpora, trains on each with seeds 0 to `seeds` - 1, compares.

    Returns:
        What `out/study.json` holds: settings, bpb of every run, differences with intervals.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    texts = texts.resolve()
    specs = variants(texts, core.resolve() if core else None)
    tokenizer = _tokenizer(texts, out)
    held_out = _held_out(texts, tokenizer)
    runs: dict[str, list[dict[str, Any]]] = {}
    corpora: dict[str, Any] = {}
    for name, spec in specs.items():
        folder = out / "corpora" / name.replace(", ", "-")
        began = time.perf_counter()
        build_corpus(spec, folder, Options(memory_bytes=3 << 30))
        manifest = read_manifest(folder)
        corpora[name] = {
            "documents": sum(shard["rows"] for shard in manifest["shards"]),
            "text_bytes": sum(shard["text_bytes"] for shard in manifest["shards"]),
            "digest": manifest["digest"],
        }
        say(f"{name}: corpus in {time.perf_counter() - began:.0f} s")
    for seed in range(seeds):  # seed by seed, so that a study cut short is still balanced
        for name in specs:
            folder = out / "corpora" / name.replace(", ", "-")
            record = out / "runs" / f"{name.replace(', ', '-')}-{steps}-{seed}.json"
            if not record.is_file():
                began = time.perf_counter()
                result = _train(folder, tokenizer, held_out, seed, steps)
                write_whole(record, json.dumps(result, indent=1).encode())
                say(
                    f"{name}, seed {seed}: val_bpb {result['clean']:.4f}, "
                    f"{time.perf_counter() - began:.0f} s"
                )
            runs.setdefault(name, []).append(json.loads(record.read_text()))
    found = {
        "seeds": seeds,
        "steps": steps,
        "tokens": steps * BATCH * SEQ_LEN,
        "model": MODEL,
        "vocab_size": VOCAB_SIZE,
        "held_out": {name: len(documents) for name, documents in held_out.items()},
        "corpora": corpora,
        "runs": runs,
        "comparisons": comparisons(runs),
    }
    write_whole(out / "study.json", (json.dumps(found, indent=1) + "\n").encode())
    write_whole(out / "study.md", markdown(found).encode())
    return found


def comparisons(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Differences in bpb, later minus earlier, with 95 % intervals; below 0 is better."""
    pairs = [
        ("raw", "filtered"),
        ("raw", "deduplicated"),
        ("raw", "filtered, deduplicated"),
        ("raw", "raw, mixed"),
        ("filtered, deduplicated", "filtered, deduplicated, mixed"),
        ("raw, mixed", "filtered, deduplicated, mixed"),
    ]
    found = []
    for before, after in pairs:
        for held_out in ("clean", "web"):
            values = [
                b[held_out] - a[held_out] for a, b in zip(runs[before], runs[after], strict=True)
            ]
            mean, half = interval(values)
            verdict = (
                "better" if mean + half < 0 else "worse" if mean - half > 0 else "no effect seen"
            )
            found.append(
                {
                    "from": before,
                    "to": after,
                    "held_out": held_out,
                    "difference": mean,
                    "half_width": half,
                    "verdict": verdict,
                }
            )
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval, by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return mean, STUDENT.get(len(values) - 1, 1.96 + 2.5 / len(values)) * spread


def _tokenizer(texts: Path, out: Path) -> Any:
    from reference.rows.documents import find_shards, sample_texts
    from reference.tokenizer.bpe import FILE_NAME, Tokenizer

    folder = out / "tokenizer"
    if not (folder / FILE_NAME).is_file():
        shards = find_shards(texts)
        sample = sample_texts(shards.train, "text", max_chars=8_000_000, doc_cap=4000)
        Tokenizer.train(sample, VOCAB_SIZE).save(folder)
    return Tokenizer.load(folder)


def _held_out(texts: Path, tokenizer: Any) -> dict[str, TokenizedTexts]:
    """Documents that no corpus holds: of curated sources, and of the cleaner web sources."""
    table = pq.read_table(texts / "validation-000.parquet", columns=["text", "source"]).to_pydict()
    rows = list(zip(table["source"], table["text"], strict=True))
    groups = {"clean": CURATED, "web": ("c4", "openwebtext")}
    return {
        group: TokenizedTexts([text for source, text in rows if source in names], tokenizer)
        for group, names in groups.items()
    }


def _train(
    corpus: Path, tokenizer: Any, held_out: dict[str, TokenizedTexts], seed: int, steps: int
) -> dict[str, Any]:
    """One small model; its bpb on each held-out set."""
    import torch

    from reference.model.gpt import GPT, ModelConfig
    from reference.optim.optimizer import MuonAdamW, parameter_groups
    from reference.optim.schedule import ScheduleConfig
    from reference.rows.packing import PackedLoader, validation_batches
    from reference.train.loop import TrainState
    from reference.train.metrics import evaluate_bpb

    section = _defaults() | RATES | {"num_steps": steps}
    documents = TokenizedTexts(_first_texts(corpus, steps * BATCH * SEQ_LEN), tokenizer)
    config = ModelConfig.from_recipe(_model_defaults() | MODEL, tokenizer.vocab_size)
    model = GPT(config)
    model.init_weights(seed)
    model.place("cpu")
    optimizer = MuonAdamW(parameter_groups(model, section))
    schedule = ScheduleConfig.from_recipe(section)
    loader = PackedLoader(documents, BATCH, SEQ_LEN, seed, prefetch=False)
    state = TrainState.constant(
        model, optimizer, schedule, loader, batch_tokens=BATCH * SEQ_LEN, seq_len=SEQ_LEN
    )
    losses = [state.step(step / steps, step).loss for step in range(steps)]
    token_bytes = torch.from_numpy(tokenizer.token_bytes())
    scores = {
        name: evaluate_bpb(
            model, validation_batches(texts, BATCH, SEQ_LEN, max_tokens=EVAL_TOKENS), token_bytes
        )
        for name, texts in held_out.items()
    }
    return {
        **scores,
        "last_loss": losses[-1],
        "crop_rate": loader.crop_rate,
        "epochs": loader.epoch + 1,
    }


def _first_texts(corpus: Path, tokens: int) -> list[str]:
    """The head of the shuffled corpus, with room for what packing crops."""
    wanted = tokens * 8  # bytes; a token of this vocabulary stands for about 3.5
    found: list[str] = []
    for path in sorted(corpus.glob("train-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(256, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    found.append(text)
                    wanted -= len(text)
                if wanted <= 0:
                    return found
    return found


def _defaults() -> dict[str, Any]:
    return _resolved("pretrain")


def _model_defaults() -> dict[str, Any]:
    return _resolved("model")


def _resolved(section: str) -> dict[str, Any]:
    """A section of recipe `nano` with every default, from the kit's own command."""
    from reference.config.resolve import resolve_recipe

    return dict(resolve_recipe("nano")[section])


def markdown(found: dict[str, Any]) -> str:
    """The same tables for a document."""
    lines = [
        f"{found['tokens'] / 1e6:.2f} M tokens a run, {found['seeds']} seeds, 95 % intervals.",
        "",
        "| corpus | documents | text MB | bpb, clean held-out text | bpb, web text |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, runs in found["runs"].items():
        corpus = found["corpora"][name]
        means = [interval([run[key] for run in runs]) for key in ("clean", "web")]
        cells = " | ".join(f"{mean:.4f} ± {half:.4f}" for mean, half in means)
        size = corpus["text_bytes"] / 1e6
        lines.append(f"| {name} | {corpus['documents']:,} | {size:.1f} | {cells} |")
    lines += ["", "| from | to | held out | difference in bpb | |", "|---|---|---|---:|---|"]
    for row in found["comparisons"]:
        lines.append(
            f"| {row['from']} | {row['to']} | {row['held_out']} | {row['difference']:+.4f} ± "
            f"{row['half_width']:.4f} | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def print_table(found: dict[str, Any]) -> None:
    """The runs and the comparisons, for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title=f"val_bpb after {found['tokens'] / 1e6:.2f} M tokens, {found['seeds']} seeds",
        box=None,
    )
    for heading in ("corpus", "documents", "text MB", "clean text", "web text"):
        table.add_column(heading, justify="left" if heading == "corpus" else "right")
    for name, runs in found["runs"].items():
        corpus = found["corpora"][name]
        means = [interval([run[key] for run in runs]) for key in ("clean", "web")]
        table.add_row(
            name,
            f"{corpus['documents']:,}",
            f"{corpus['text_bytes'] / 1e6:.1f}",
            *(f"{mean:.4f} ± {half:.4f}" for mean, half in means),
        )
    console.print(table)
    table = Table(title="differences, seed by seed (below 0 is better)", box=None)
    for heading in ("from", "to", "held out", "bpb", "95 %", ""):
        table.add_column(heading, justify="right" if heading in ("bpb", "95 %") else "left")
    for row in found["comparisons"]:
        table.add_row(
            row["from"],
            row["to"],
            row["held_out"],
            f"{row['difference']:+.4f}",
            f"± {row['half_width']:.4f}",
            row["verdict"],
        )
    console.print(table)


FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("data_study")
@click.option(
    "--texts", type=FOLDER, required=True, help="Parquet files, each named after its source."
)
@click.option("--out", type=FOLDER, default=Path("data-study"), show_default=True)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=2))
@click.option("--steps", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--core", type=FOLDER, help="CORE bundle, to decontaminate against.")
@click.option("--threads", default=0, help="For torch; 0: its own choice.")
def main(texts: Path, out: Path, seeds: int, steps: int, core: Path | None, threads: int) -> None:
    """Train small models on raw, filtered, deduplicated and mixed text, and compare val_bpb.

    All see the same number of tokens and are scored on the same clean held-out text. A
    stopped study resumes when you run the command again.
    """
    with explained("data"):
        found = run_study(
            texts,
            out,
            seeds=seeds,
            steps=steps,
            core=core,
            threads=threads,
            say=lambda line: click.echo(line, err=True),
        )
    print_table(found)


if __name__ == "__main__":
    main()

"""`n4090-kit tokenizer …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from reference.command_errors import explained
from reference.data.commands import FOLDER
from reference.tables import print_table

LOCK = "tokenizer.lock.json"


@click.group()
def tokenizer() -> None:
    """Train, take over and compare tokenizers."""


@tokenizer.command()
@click.option("--data", "folder", type=FOLDER, required=True, help="Parquet files.")
@click.option("--out", type=FOLDER, required=True)
@click.option("--vocab-size", default=32768, show_default=True, help="Special tokens included.")
@click.option(
    "--digits",
    default=2,
    show_default=True,
    type=click.IntRange(1, 3),
    help="Most digits in one token.",
)
@click.option("--pattern", default="", help="A split pattern of your own instead.")
@click.option("--special", multiple=True, help="One more special token; repeatable.")
@click.option("--shard", "shards", multiple=True, help="A file to learn from; default: all.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--max-chars", default=2_000_000_000, show_default=True)
@click.option("--doc-cap", default=10_000, show_default=True, help="Characters of one document.")
@click.option(
    "--lock",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Do again what this lock records, and hold the outcome to it.",
)
def train(
    folder: Path,
    out: Path,
    vocab_size: int,
    digits: int,
    pattern: str,
    special: tuple[str, ...],
    shards: tuple[str, ...],
    text_column: str,
    max_chars: int,
    doc_cap: int,
    lock: Path | None,
) -> None:
    """Learn a byte-level BPE; OUT gets tokenizer.json and tokenizer.lock.json.

    The lock names every shard with its digest: the same shards and options give the same file.
    """
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "digits": digits,
        "pattern": pattern,
        "special": list(special),
        "text_column": text_column,
        "max_chars": max_chars,
        "doc_cap": doc_cap,
    }
    with explained("data"):
        from reference.tokenizer.train import train_locked

        found = train_locked(folder, out, options, shards, lock)
    click.echo(f"{found['digest']}  {found['vocab_size']:,} tokens  {out}")


@tokenizer.command()
@click.argument("source")
@click.option("--out", type=FOLDER, required=True)
@click.option("--pattern", default="", help="Split pattern of a .tiktoken file.")
def reuse(source: str, out: Path, pattern: str) -> None:
    """Take over SOURCE: a Hugging Face tokenizer.json, a .tiktoken file, or tiktoken's own name."""
    with explained("data"):
        from reference.tokenizer.reuse import reuse as take_over

        found = take_over(source, pattern)
        found.save(out)
    click.echo(f"{found.digest}  {found.vocab_size:,} tokens  {out}")


@tokenizer.command("compare")
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--texts", type=FOLDER, required=True, help="Parquet files to compress, for the comparison."
)
@click.option("--recipe", default="reference", show_default=True, help="Whose model to count for.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="An HTML page.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def compare_command(
    folders: tuple[Path, ...], texts: Path, recipe: str, plot: Path | None, as_json: bool
) -> None:
    """Compare tokenizers: compression, speed, use of the vocabulary, cost, estimated effect."""
    with explained("data"):
        from reference.config.resolve import resolve_recipe
        from reference.tokenizer.bpe import Tokenizer
        from reference.tokenizer.compare import compare, read_domains, write_page

        short = len({folder.name for folder in folders}) == len(folders)
        names = {
            folder.name if short else str(folder): Tokenizer.load(folder) for folder in folders
        }
        found = compare(names, read_domains(texts), resolve_recipe(recipe))
        if plot is not None:
            write_page(found, plot)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    _print(found)
    if plot is not None:
        click.echo(str(plot))


def _print(found: dict[str, Any]) -> None:
    rows = found["tokenizers"]
    shown: list[tuple[str, ...]] = []
    lines = [
        ("vocabulary", "vocab_size", "{:,}"),
        ("bytes a token", "bytes_per_token", "{:.3f}"),
        ("never used", "unused_share", "{:.1%}"),
        ("used fewer than 10 times", "rare_share", "{:.1%}"),
        ("tokens/s a core", "tokens_per_s", "{:,.0f}"),
        ("speed beside tiktoken's batch", "speed_beside_tiktoken", "{:.2f}x"),
        ("embedding parameters", "embedding_parameters", "{:,}"),
        ("head parameters", "head_parameters", "{:,}"),
        ("head's share of FLOPs", "head_flops_share", "{:.1%}"),
        ("planned VRAM, GB", "vram_bytes", "{:.2f}"),
        ("time a token, by FLOPs", "step_time_ratio", "{:.3f}x"),
        ("text for equal compute", "text_ratio", "{:.3f}x"),
        ("bpb, estimate", "bpb_factor_estimate", "{:.4f}x"),
    ]
    for label, field, form in lines:
        scale = 1e-9 if field == "vram_bytes" else 1
        shown.append((label, *(form.format(row[field] * scale) for row in rows)))
    for domain in found["domains"]:
        rates = (f"{row['by_domain'][domain]:.3f}" for row in rows)
        shown.append((f"  bytes a token, {domain}", *rates))
    headings = ("", *(row["name"] for row in rows))
    print_table(f"tokenizers, model of recipe {found['recipe']}", headings, shown)
    for note in found["notes"]:
        print(note, file=sys.stderr)

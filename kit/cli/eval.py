"""`n4090-kit eval`: score any model."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kit.cli.eval_chat import chat
from kit.cli.model_path import ModelPath

if TYPE_CHECKING:
    from kit.core_eval.bpb import BitsPerByte
    from kit.core_eval.model import EvalModel
    from kit.core_eval.report import Document
    from kit.core_eval.statistics import Comparison

FOLDER = click.Path(exists=True, path_type=Path)


@click.group("eval")
def evaluate() -> None:
    """Score any model: CORE, bits per byte, and two models against each other.

    MODEL is a run folder (its base model), a checkpoint folder, a Hugging Face folder
    (safetensors), a GGUF file, or hf:ORG/NAME if the Hub's cache on this machine has it.
    """


evaluate.add_command(chat)


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--loader", help="Entry point that loads MODEL, if config.json names none."),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps or auto."),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="auto: float32 on a CPU, bfloat16 on a GPU.",
        ),
        click.option(
            "--threads",
            default=0,
            type=click.IntRange(min=0),
            help="CPU threads; 0: PyTorch's choice.",
        ),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run code that a Hugging Face folder brings. Only for folders you trust.",
        ),
        click.option("--batch-tokens", default="auto", show_default=True, help="Tokens at once."),
        click.option(
            "--max-seq-len",
            type=click.IntRange(min=1),
            help="Keep only the last N tokens of a prompt.",
        ),
        click.option("--json", "as_json", is_flag=True, help="The whole document on stdout."),
    ):
        command = option(command)
    return command


@evaluate.command("core")
@click.argument("model", type=ModelPath())
@click.option(
    "--core",
    "core_dir",
    type=click.Path(path_type=Path),
    default=Path("core"),
    show_default=True,
    help="Folder of the CORE bundle; `prepare --recipe nano --only core` fetches it.",
)
@click.option("--tasks", default="", help="Labels, separated by commas; empty: all.")
@click.option("--max-per-task", default=-1, help="First N items of each task: a partial score.")
@click.option("--allow-custom", is_flag=True, help="Accept a bundle with tasks of its own.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the document here.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a page with charts.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder for encoded tasks.")
@click.option(
    "--controls",
    is_flag=True,
    help="Score again with swapped questions and passages: what remains is format.",
)
@_model_options
def core(
    model: Path,
    core_dir: Path,
    tasks: str,
    max_per_task: int,
    allow_custom: bool,
    out: Path | None,
    page: Path | None,
    cache: Path | None,
    controls: bool,
    threads: int,
    batch_tokens: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate CORE on MODEL, with the bundle in --core.

    Stopped with Ctrl-C or killed, an evaluation with --out resumes when you run the command again.
    """
    import time

    from kit.core_eval.bundle import open_bundle
    from kit.core_eval.evaluate import (
        Settings,
        Stopped,
        TaskResult,
        Watch,
        evaluate_controls,
        evaluate_core,
    )
    from kit.core_eval.naming import score_name
    from kit.core_eval.report import html_page
    from kit.core_eval.score import threads as use_threads
    from kit.files import write_bytes, write_json

    labels = [label.strip() for label in tasks.split(",") if label.strip()]
    bundle = open_bundle(core_dir, tasks=labels, allow_custom=allow_custom)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    began = time.perf_counter()
    total = len(bundle.selected)
    seen: list[str] = []

    def on_task(result: TaskResult) -> None:
        seen.append(result.task.label)
        click.echo(
            f"{len(seen):>3}/{total}  {result.task.label:<34} {result.accuracy:.4f}  "
            f"n {len(result.outcomes):<6} {time.perf_counter() - began:7.1f} s",
            err=True,
        )

    with use_threads(threads):
        loaded = _load(model, **options)
        settings = Settings(
            max_per_task=max_per_task,
            batch_tokens=_batch_tokens(batch_tokens),
            cache=cache,
            journal=None if out is None else out.with_name(f"{out.name}.journal"),
            identity=_identity(model) if out is not None else "",
        )
        watch = Watch(
            task=on_task,
            note=lambda text: click.echo(f"note: {text}", err=True),
            should_stop=stop.is_set,
        )
        try:
            document = evaluate_core(loaded, bundle, settings, watch)
            if controls:
                total, seen[:] = 0, []
                document["controls"] = evaluate_controls(loaded, bundle, settings, watch)
        except Stopped:
            kept = "" if out is None else "; run the command again to resume"
            click.echo(f"stopped{kept}", err=True)
            sys.exit(3)
    if out is not None:
        write_json(out, document)
    if page is not None:
        write_bytes(page, html_page(document, f"{score_name(document)} of {model.name}").encode())
    if as_json:
        click.echo(json.dumps(document))
    else:
        _print_core(document)


@evaluate.command("bpb")
@click.argument("model", type=ModelPath())
@click.argument("texts", type=FOLDER, nargs=-1, required=True)
@click.option("--column", default="text", show_default=True, help="Column or field of the texts.")
@click.option(
    "--max-texts", default=0, type=click.IntRange(min=0), help="Only the first N texts; 0: all."
)
@click.option(
    "--seq-len",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Length of an evaluation window, in tokens.",
)
@_model_options
def bpb(
    model: Path,
    texts: tuple[Path, ...],
    column: str,
    max_texts: int,
    seq_len: int,
    threads: int,
    batch_tokens: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Bits per byte of MODEL on TEXTS (.parquet, .jsonl, .txt; a folder is its validation shard).

    All tokens of a text are predicted once, in windows of --seq-len after a BOS; the bits are
    divided by the UTF-8 bytes of the texts, so models with other tokenizers compare.
    """
    import itertools

    from kit.core_eval.bpb import evaluate_bpb, read_texts
    from kit.core_eval.score import threads as use_threads

    read = read_texts(texts, column=column)
    with use_threads(threads):
        found = evaluate_bpb(
            _load(model, **options),
            itertools.islice(read, max_texts) if max_texts else read,
            seq_len=seq_len,
            batch_tokens=_batch_tokens(batch_tokens) or 2048,
            note=lambda text: click.echo(f"note: {text}", err=True),
            progress=_bpb_progress(),
        )
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    click.echo(f"bits per byte  {found.bpb:.4f}")
    click.echo(
        f"               {found.texts:,} texts, {found.tokens:,} tokens, {found.bytes:,} bytes"
    )


@evaluate.command("compare")
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def compare_command(a: Path, b: Path, as_json: bool) -> None:
    """Compare two evaluations of the same items, A and B: files of `eval core --out`, or runs."""
    from dataclasses import asdict

    from kit.core_eval.naming import score_key, score_name
    from kit.core_eval.report import compare_answers, compare_documents, read_document

    first, second = read_document(a), read_document(b)
    found, answers = compare_documents(first, second), compare_answers(first, second)
    if as_json:
        document = asdict(found)
        document["interval"] = found.interval._asdict()
        document["answer_bpb"] = answers and answers._asdict()
        for side in "ab":
            document[f"{score_key(first)}_{side}"] = document.pop(f"core_{side}")
        click.echo(json.dumps(document, indent=2))
        return
    _print_comparison(found, score_name(first))
    if answers:
        click.echo(
            f"answer likelihood  A {answers.value_a:.4f}  B {answers.value_b:.4f}  "
            f"B - A {answers.difference:+.4f}\n  95 % interval {answers.low:+.4f} "
            f"{answers.high:+.4f}; bits per byte, less is better"
        )


@evaluate.command("chart")
@click.argument("document", type=FOLDER)
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a page instead.")
@click.option("--title", help="Title of the page [the score's name].")
def chart(document: Path, page: Path | None, title: str | None) -> None:
    """Show an evaluation beside the published GPT-2 family, and what differs."""
    from kit.core_eval.naming import score_name
    from kit.core_eval.report import html_page, read_document
    from kit.files import write_bytes

    read = read_document(document)
    if page is not None:
        write_bytes(page, html_page(read, title or score_name(read)).encode())
        return
    _print_chart(read)
    if read["bundle"]["kind"] == "core":
        _print_differences(read)


def _bpb_progress() -> Callable[[BitsPerByte], None]:
    """A line that moves on a terminal; elsewhere one every ten seconds."""
    import time

    live = sys.stderr.isatty()
    every_s = 1.0 if live else 10.0
    began = said = time.monotonic()

    def show(so_far: BitsPerByte) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < every_s:
            return
        said = now
        line = (
            f"{so_far.texts:,} texts, {so_far.bytes / 1e6:,.1f} MB, "
            f"{so_far.tokens / (now - began):,.0f} tokens/s, {so_far.bpb:.4f} bits per byte so far"
        )
        click.echo(f"\r\x1b[K{line[:78]}" if live else line, err=True, nl=not live)

    return show


def _load(
    model: Path, *, max_seq_len: int | None, loader: str | None, trust_remote_code: bool, **how: Any
) -> EvalModel:
    from kit.core_eval.loaders import load_model

    loaded: Any = load_model(model, loader=loader, trust_remote_code=trust_remote_code, **how)
    if max_seq_len is not None:
        loaded.max_seq_len = max_seq_len
    found: EvalModel = loaded
    return found


def _batch_tokens(value: str) -> int:
    if value == "auto":
        return 0
    if not value.isdecimal() or not value.isascii() or int(value) < 1:
        raise click.BadParameter("a number of tokens, or auto", param_hint="--batch-tokens")
    return int(value)


def _identity(model: Path) -> str:
    from kit.trust.digest import sha256_file, tree_digest

    if model.is_file():
        return sha256_file(model.resolve())
    return tree_digest(model.resolve(), ("*.safetensors", "*.json", "tokenizer*"))


def _print_core(document: Document) -> None:
    from rich.console import Console

    from kit.core_eval.naming import score_name

    _print_chart(document)
    interval = document["interval"]
    console = Console()
    console.print(
        f"[bold]{score_name(document)} {document['core_metric']:.4f}[/bold]  95 % interval "
        f"{interval['low']:.4f} to {interval['high']:.4f}"
    )
    if likelihood := document.get("answer_bpb"):
        console.print(
            f"[bold]answer likelihood {likelihood['value']:.4f} bits per byte[/bold]  "
            f"95 % interval {likelihood['low']:.4f} to {likelihood['high']:.4f}, less is better"
        )
    if "controls" in document:
        _print_controls(document)


def _print_controls(document: Document) -> None:
    """Centered accuracy of each task beside what is left of it under each control."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("centered accuracy", no_wrap=True)
    for heading in ("asked", *(f"other {control}" for control in document["controls"])):
        table.add_column(heading, justify="right")
    for task in document["tasks"]:
        left = [found.get(task["label"]) for found in document["controls"].values()]
        table.add_row(
            task["label"],
            f"{task['centered']:.3f}",
            *("" if value is None else f"{value['centered']:.3f}" for value in left),
        )
    console = Console()
    console.print(table)
    console.print("What stays with another item's question or passage is format, not reading.")


def _print_chart(document: Document) -> None:
    """Bars and figures, within 80 columns."""
    from rich.console import Console
    from rich.table import Table

    from kit.core_eval.report import BAR_WIDTH, bar, chart_rows

    rows = chart_rows(document)
    names = [name for name, _ in rows[-1][1]]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("centered accuracy", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=BAR_WIDTH)
    for name in names:
        heading = "model" if name == "this model" else name.removeprefix("gpt2-")
        table.add_column(heading, justify="right", no_wrap=True)
    for label, bars in rows:
        values = dict(bars)
        table.add_row(
            label,
            bar(values["this model"]),
            *(f"{values[name]:.3f}" if name in values else "" for name in names),
            style="bold" if label == rows[-1][0] else "",
        )
    Console().print(table)


def _print_differences(document: Document) -> None:
    from rich.console import Console
    from rich.table import Table

    from kit.core_eval.report import differences

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("condition", "here", "published", "what it does"):
        table.add_column(heading)
    for row in differences(document):
        table.add_row(*row)
    console = Console()
    console.print()
    console.print(table)


def _print_comparison(found: Comparison, name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for heading in ("task", "n", "A", "B", "B - A, 95 %", "only A/B", "p"):
        table.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    for task in found.tasks:
        table.add_row(
            task.label,
            str(task.n),
            f"{task.accuracy_a:.3f}",
            f"{task.accuracy_b:.3f}",
            f"{task.difference:+.3f} ±{(task.high - task.low) / 2:.3f}",
            f"{task.only_a}/{task.only_b}",
            f"{task.p:.2g}",
        )
    console = Console()
    console.print(table)
    low, high, _ = found.interval
    console.print(
        f"[bold]{name}  A {found.core_a:.4f}  B {found.core_b:.4f}  B - A {found.difference:+.4f}"
        f"[/bold]  95 % interval {low:+.4f} {high:+.4f}"
    )
    if low <= 0.0 <= high:
        console.print("The interval holds zero: these items do not tell the two models apart.")
    console.print(
        "p: exact McNemar test of one task. Of 20 tasks one falls below 0.05 by chance alone."
    )

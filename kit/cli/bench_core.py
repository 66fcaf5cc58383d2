"""`n4090-kit bench core`: the evaluator against one example at a time."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("core")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--core",
    "core_dir",
    type=click.Path(exists=True, path_type=Path),
    default=Path("core"),
    show_default=True,
    help="The CORE bundle.",
)
@click.option(
    "--items",
    default=200,
    show_default=True,
    type=click.IntRange(min=1),
    help="Examples, shared out over tasks.",
)
@click.option("--tasks", default="", help="Labels, separated by commas; empty: all.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--threads", default=0, type=click.IntRange(min=0), help="CPU threads; 0: PyTorch's choice."
)
@click.option(
    "--batch-tokens",
    default=0,
    type=click.IntRange(min=0),
    help="Tokens at once; 0: from free memory.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bench_core(
    model: Path,
    core_dir: Path,
    items: int,
    tasks: str,
    device: str,
    dtype: str,
    threads: int,
    batch_tokens: int,
    as_json: bool,
) -> None:
    """Time the CORE evaluator against one example at a time, on MODEL.

    Same model, machine and examples. Each task gets its share of --items (two at least); the totals
    weigh tasks by their size in the bundle.
    """
    from rich.console import Console
    from rich.table import Table

    from kit.core_eval import bench
    from kit.core_eval.bundle import open_bundle
    from kit.core_eval.loaders import load_model
    from kit.core_eval.score import threads as use_threads

    labels = [label.strip() for label in tasks.split(",") if label.strip()]
    bundle = open_bundle(core_dir, tasks=labels)

    def show(timing: bench.TaskTiming) -> None:
        click.echo(f"{timing.label:<34} {timing.ratio:6.2f}x", err=True)

    with use_threads(threads):
        loaded = load_model(model, device=device, dtype=dtype)
        found = bench.bench_core(loaded, bundle, items=items, batch_tokens=batch_tokens, watch=show)
    document = found.to_json()
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("task", "n", "timed", "ours s/item", "one by one s/item", "ratio"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task in found.tasks:
        table.add_row(
            task.label,
            str(task.n),
            str(task.items),
            f"{task.ours_s / task.items:.4f}",
            f"{task.one_by_one_s / task.items:.4f}",
            f"{task.ratio:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"whole bundle, from these: ours {document['whole_bundle_ours_s']:,.0f} s, one by one "
        f"{document['whole_bundle_one_by_one_s']:,.0f} s, "
        f"[bold]ratio {document['ratio']:.2f}[/bold] "
        f"(in CPU seconds {document['ratio_cpu_seconds']:.2f})"
    )
    if found.ours_peak_bytes is not None and found.one_by_one_peak_bytes is not None:
        console.print(
            f"peak memory: ours {found.ours_peak_bytes / 2**30:.2f} GiB, "
            f"one by one {found.one_by_one_peak_bytes / 2**30:.2f} GiB"
        )
    console.print(
        f"{len(found.disagreements)} of {document['items']} items judged differently"
        + "".join(f"\n  {d.label} {d.index}: gap {d.gap:.2g} nats" for d in found.disagreements)
    )

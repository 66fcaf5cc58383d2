"""`n4090-kit bench board`: publishing on a board with thousands of rows."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kit.board.bench import Pass

EXAMPLE = Path("submissions/2026/example/9ffdb8e5b168ed02")


@click.command("board")
@click.option(
    "--rows",
    default=10_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows on the board beforehand.",
)
@click.option(
    "--new",
    default=20,
    show_default=True,
    type=click.IntRange(min=0),
    help="New submissions to judge.",
)
@click.option(
    "--template",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=EXAMPLE,
    show_default=True,
    help="The submission that the generated ones are varied from.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bench_board(rows: int, new: int, template: Path, as_json: bool) -> None:
    """Time `board publish` on a generated board: with nothing new, and with --new to judge.

    Rows of the generated board count as judged earlier; the new ones are judged for real. Half a
    gigabyte of files for 10,000 rows, in the temporary folder, removed afterwards.
    """
    import tempfile

    from kit.board.bench import bench_board as run
    from kit.errors import SchemaError

    if missing := [n for n in ("result.json", "submission.json") if not (template / n).is_file()]:
        raise SchemaError(
            f"{template} is no submission: it has no {missing[0]}",
            hint="Name a folder of a board, such as submissions/2026/NAME/ID.",
        )
    with tempfile.TemporaryDirectory(prefix="n4090-bench-") as name:
        generated_s, passes = run(template, rows, new, Path(name))
        _show(generated_s, passes, rows, as_json)  # before the removal, which takes its time


def _show(generated_s: float, passes: list[Pass], rows: int, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if as_json:
        told = {"generated_s": generated_s, "passes": [asdict(one) for one in passes]}
        click.echo(json.dumps(told, indent=2))
        return
    table = Table(title=f"board publish, {rows:,} rows (generated in {generated_s:.0f} s)")
    for column in ("pass", "s", "CPU s", "peak MiB", "judged", "events"):
        table.add_column(column, justify="left" if column == "pass" else "right")
    for one in passes:
        table.add_row(
            one.name,
            f"{one.elapsed_s:.1f}",
            f"{one.cpu_s:.1f}",
            f"{one.peak_bytes / 2**20:.0f}",
            str(one.judged),
            f"{one.events:,}",
        )
    Console().print(table)

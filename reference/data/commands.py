"""`n4090-kit data …` and `n4090-kit bench data`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from reference.command_errors import explained
from reference.tables import print_table

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def data() -> None:
    """Build, look at and compare training corpora."""


def parse_bytes(text: str) -> int:
    """ "4GB", "800MB" or plain bytes."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number, factor = text.strip().upper(), 1
    for unit, value in units.items():
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), value
    try:
        return int(float(number) * factor)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not a size; write, for example, 4GB or 800MB"
        ) from error


@data.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, help="Folder of the corpus; default: ./NAME.")
@click.option("--workers", default=0, show_default="all cores", type=click.IntRange(min=0))
@click.option("--memory", default="4GB", show_default=True, help="All processes together.")
@click.option("--ray", default="", metavar="ADDRESS", help="A Ray cluster; `local` starts one.")
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be read, and say so.")
@click.option("--restart", is_flag=True, help="Throw away what an earlier call did here.")
@click.option("--keep-work", is_flag=True, help="Keep OUT/.build.")
def build(
    spec: Path,
    out: Path | None,
    workers: int,
    memory: str,
    ray: str,
    skip_bad: bool,
    restart: bool,
    keep_work: bool,
) -> None:
    """Build a corpus from SPEC, a TOML file, or a folder of parquet, jsonl or text files.

    A stopped build resumes when you run the command again. The corpus does not depend on
    --workers, --memory or --ray.
    """
    import dataclasses

    memory_bytes = parse_bytes(memory)
    with explained("data"):
        from reference.data.build import Options, build_corpus
        from reference.data.spec import load_spec

        wanted = load_spec(spec)
        if skip_bad:
            wanted = dataclasses.replace(wanted, on_error="skip")
        folder = out or Path(f"{wanted.name}-corpus")
        options = Options(workers, memory_bytes, ray, restart, keep_work)
        try:
            with _progress() as progress:
                manifest = build_corpus(wanted, folder, options, progress)
        except KeyboardInterrupt:
            click.echo("stopped; run the same command again to resume", err=True)
            sys.exit(130)
    _print_summary(folder, manifest)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield update


def _print_summary(folder: Path, manifest: dict[str, Any]) -> None:
    rows = []
    for name, entry in manifest["sources"].items():
        placed = entry.get("placed", {})
        counts = [placed.get(split, [0, 0])[0] for split in ("train", "anneal", "validation")]
        rows.append(
            (
                name,
                f"{entry['documents']:,}",
                f"{sum(entry['removed'].values()):,}",
                f"{sum(entry['left_out'].values()) if 'left_out' in entry else 0:,}",
                *(f"{count:,}" for count in counts),
                f"{sum(size for _, size in placed.values()) / 1e6:,.1f}",
            )
        )
    print_table(
        f"{manifest['name']}: documents",
        ("source", "read", "removed", "left out", "training", "anneal", "validation", "text MB"),
        rows,
    )
    for text in _left_out(manifest):
        click.echo(text, err=True)
    for line in manifest["problems"]:
        click.echo(f"passed over: {line}", err=True)
    if not manifest["models"].get("benchmarks"):
        click.echo("not checked against evaluation sets (no [decontaminate] in the spec)", err=True)
    click.echo(f"digest: {manifest['digest']}")
    click.echo(f"next:   n4090-kit data report {folder}")
    click.echo(f"        n4090-kit run --recipe RECIPE --data {folder}")


def _left_out(manifest: dict[str, Any]) -> Iterator[str]:
    """Why documents that no step removed are not in the corpus."""
    reasons = {
        "domain": "mix.shares does not name their domain",
        "rate": "mix.shares and mix.max_mb take a part of their domain",
    }
    for name, entry in manifest["sources"].items():
        for why, count in entry.get("left_out", {}).items():
            yield f"left out: {count:,} documents of {name} ({reasons[why]})"


@data.command()
@click.argument("corpus", type=FOLDER)
@click.option("--out", type=click.Path(path_type=Path), help="Default: CORPUS/report.html.")
@click.option("--tokenizer", type=FOLDER, help="For token counts and compression.")
def report(corpus: Path, out: Path | None, tokenizer: Path | None) -> None:
    """Write an HTML page about CORPUS."""
    with explained("data"):
        from reference.data.report import write_report

        target = out or corpus / "report.html"
        write_report(corpus, target, tokenizer)
    click.echo(str(target))


@data.command("diff")
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def diff_command(first: Path, second: Path, as_json: bool) -> None:
    """Say how corpus SECOND differs from FIRST."""
    with explained("data"):
        from reference.data.diff import diff

        found = diff(first, second)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from rich.markup import escape

    if found["same"]:
        click.echo("the same corpus")
        return
    counts = found["documents"]
    click.echo(
        f"{counts['shared']:,} texts in both, {counts['only_first']:,} only in {first}, "
        f"{counts['only_second']:,} only in {second}"
    )
    for title, rows in (
        ("spec", found["spec"]),
        ("documents in the corpus", found["sources"]),
        ("removed", found["removed"]),
    ):
        cells = [
            [escape(str(cell)) for cell in (name, before, after)]
            for name, (before, after) in rows.items()
        ]
        if rows:
            headings = ("", escape(str(first)), escape(str(second)))
            print_table(title, headings, cells, text=(0, 1, 2))


@data.command()
def spec() -> None:
    """Print every field of a spec with its default."""
    import inspect

    from reference.data import spec as module

    source = inspect.getsource(module)
    begin, end = (
        source.index("@dataclass(frozen=True)\nclass Source"),
        source.index("    def to_json"),
    )
    click.echo("# A spec is TOML. [[source]] is a list; each section is a table of its fields.")
    click.echo(source[begin:end].replace("@dataclass(frozen=True)\n", ""))


@click.command("data")
@click.option("--texts", type=FOLDER, help="Parquet files with a column `source`.")
@click.option("--core", type=FOLDER, help="CORE bundle, to time the overlap check.")
@click.option("--documents", default=400, show_default=True, type=click.IntRange(min=50))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bench_data(texts: Path | None, core: Path | None, documents: int, as_json: bool) -> None:
    """Time each step of `data build` beside datatrove's own blocks; check what it finds.

    Near-duplicates are planted, so recall and precision are known. Without --texts it measures on
    made-up text, which says little about the rules.
    """
    with explained("data"):
        from reference.data.bench import bench, print_tables

        found = bench(texts, core, documents)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_tables(found)

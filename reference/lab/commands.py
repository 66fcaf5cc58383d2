"""Commands of the lab: `plan`, `ablate`, `report`. Heavy modules load when a command runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from reference.lab.plan import Candidate, Forecast, Laws

OTHER_CARDS = ("rtx3090", "rtx4090", "rtx5090", "h100")


def explained(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the trainer's errors, and missing packages, as a message and exit code 2."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        from reference.errors import TrainerError

        try:
            command(*arguments, **options)
        except TrainerError as error:
            click.echo(f"error: {error.message}\n\nhint: {error.hint}", err=True)
            sys.exit(2)
        except ModuleNotFoundError as error:
            click.echo(
                f"error: package {error.name} is missing\n\n"
                "hint: pip install 'n4090-kit[train,lab]'",
                err=True,
            )
            sys.exit(3)

    return run


@click.command()
@click.option("--gpu", default="rtx4090", show_default=True, help="rtx4090, rtx3090, h100, …")
@click.option("--hours", default=24.0, show_default=True, type=click.FloatRange(min=0.01, max=720))
@click.option("--vram", type=click.FloatRange(min=0.1), help="GiB; the card's own by default.")
@click.option("--mfu", type=click.FloatRange(min=0.01, max=2), help="Instead of the card's.")
@click.option(
    "--bench",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `n4090-kit bench train --json` printed here: plan with this machine's speed.",
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A finished run of yours, as one more point. Repeat.",
)
@click.option("--published/--no-published", default=True, help="Fit the published points as well.")
@click.option("--base", default="reference", show_default=True, help="Recipe for all the rest.")
@click.option("--out", type=click.Path(path_type=Path), help="The recipe [plan-CARD-HOURSh.toml].")
@click.option("--no-files", is_flag=True, help="Print only.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@explained
def plan(
    gpu: str,
    hours: float,
    vram: float | None,
    mfu: float | None,
    bench: Path | None,
    runs: tuple[Path, ...],
    published: bool,
    base: str,
    out: Path | None,
    no_files: bool,
    as_json: bool,
) -> None:
    """Choose depth, tokens and batch for a card and a number of hours.

    Fits scaling laws to published runs (and yours), predicts val_bpb and CORE with intervals, and
    writes a recipe and a page with plots.
    """
    from dataclasses import replace

    from reference.lab.cards import find_card
    from reference.lab.plan import candidates, choose, compare_cards, fit_laws, forecast, notes
    from reference.lab.plan_recipe import base_recipe, recipe_document, write_recipe
    from reference.lab.points import OWN_FAMILY, own_points, published_points

    card = find_card(gpu)
    if mfu is not None and card.peak_flops:
        source = f"{mfu:.0%}: as given"
        card = replace(card, flops_per_s=mfu * card.peak_flops, source=source)
    if bench is not None:
        card = measured_card(bench, card)
    sizes = _sizes(base)
    points = (published_points() if published else []) + own_points(list(runs))
    laws = fit_laws(points, OWN_FAMILY if runs else "climbmix")
    room = vram or card.vram_gib
    options = candidates(card, hours, laws, vram_gib=room, **sizes)
    best = choose(options)
    expected = forecast(best, laws)
    cards = compare_cards(hours, laws, OTHER_CARDS, **sizes)
    remarks = notes(best, laws)

    name = f"plan-{card.name}-{hours:g}h".replace(".", "-")
    recipe_path = out or Path(f"{name}.toml")
    page_path = recipe_path.with_suffix(".html")
    if not no_files:
        from reference.lab.plan_page import write_plan_page

        title = f"d{best.config.n_layer} on one {card.name} in {hours:g} h, as planned"
        document = recipe_document(
            base_recipe(base),
            best,
            name=name,
            title=title,
            hours=hours,
            device="cpu" if card.peak_flops is None else "cuda",
        )
        comment = (
            f"Written by `n4090-kit plan --gpu {gpu} --hours {hours:g}`; predicted, not measured:\n"
            f"{best.tokens / 1e9:.3g} B tokens, {best.val_bpb:.4f} bits per byte."
        )
        write_recipe(recipe_path, document, comment)
        write_plan_page(page_path, title, best, expected, options, laws, cards, remarks)
    if as_json:
        click.echo(json.dumps(_plan_json(card, best, expected, laws, cards, remarks), indent=2))
        return
    _print_plan(card, hours, best, expected, options, laws, cards, remarks)
    if not no_files:
        click.echo(
            f"\nrecipe: {recipe_path}\npage:   {page_path}\n"
            f"next:   n4090-kit run --recipe {recipe_path}"
        )


def measured_card(bench: Path, card: Any) -> Any:
    """`card` at the speed that `bench train --json` measured on this machine."""
    from dataclasses import replace

    from reference.config import ModelConfig
    from reference.errors import TrainerError
    from reference.estimate import count_flops
    from reference.resolve import resolve_recipe

    try:
        measured = json.loads(bench.read_text())
        tokens_per_s, name = float(measured["tokens_per_s"]), str(measured["recipe"])
        on_cpu = measured["device"] == "cpu"
    except (ValueError, KeyError, TypeError) as error:
        raise TrainerError(
            "bad_input",
            f"{bench} is not what `n4090-kit bench train --json` prints",
            f"n4090-kit bench train --recipe nano --json > {bench.name}",
        ) from error
    recipe = resolve_recipe(name)
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    return replace(
        card,
        name="cpu" if on_cpu else card.name,
        peak_flops=None if on_cpu else card.peak_flops,
        flops_per_s=count_flops(config).nanochat * tokens_per_s,
        source=f"measured: recipe {name} at {tokens_per_s:,.0f} tokens/s",
    )


def _sizes(base: str) -> dict[str, int]:
    from reference.lab.plan_recipe import base_recipe

    recipe = base_recipe(base)
    return {
        "vocab_size": recipe.get("tokenizer", {}).get("vocab_size", 32768),
        "seq_len": recipe.get("model", {}).get("seq_len", 2048),
    }


def _plan_json(
    card: Any,
    best: Candidate,
    expected: Forecast,
    laws: Laws,
    cards: list[dict[str, Any]],
    remarks: list[str],
) -> dict[str, Any]:
    return {
        "card": {"name": card.name, "flops_per_s": card.flops_per_s, "assumes": card.source},
        "model": best.config.to_json(),
        "parameters": best.parameters,
        "tokens": best.tokens,
        "tokens_per_parameter": best.ratio,
        "flops": best.flops,
        "flops_per_token": best.flops_per_token,
        "device_batch_size": best.device_batch_size,
        "total_batch_size": best.total_batch_size,
        "vram_bytes": best.vram_bytes,
        "hours": best.hours,
        "predicted": {
            "val_bpb": best.val_bpb,
            "val_bpb_95": expected.val_bpb,
            "core": best.core,
            "core_mean_95": expected.core,
            "core_one_run_95": expected.core_run,
            "best_tokens_per_parameter_95": expected.ratio,
            "flops_for_target": laws.core.flops(_target()) if laws.core else None,
        },
        "law": {
            "E": laws.loss.E,
            "A": laws.loss.A,
            "alpha": laws.loss.alpha,
            "B": laws.loss.B,
            "beta": laws.loss.beta,
            "family": laws.family,
            "factors": laws.loss.factors,
        },
        "cards": cards,
        "notes": remarks,
    }


def _target() -> float:
    from reference.lab.plan import TARGET_CORE

    return TARGET_CORE


def _print_plan(
    card: Any,
    hours: float,
    best: Candidate,
    expected: Forecast,
    options: list[Candidate],
    laws: Laws,
    cards: list[dict[str, Any]],
    remarks: list[str],
) -> None:
    from rich.console import Console

    low, high = expected.val_bpb
    near = [o for o in options if o.fits and o.val_bpb < 1.001 * best.val_bpb]
    table = _two_columns(f"plan: {card.name}, {hours:g} h (predicted, not measured)")
    table.add_row(
        "model",
        f"d{best.config.n_layer}, width {best.config.n_embd}, "
        f"{best.parameters / 1e6:,.0f} M parameters in matrices and head",
    )
    table.add_row(
        "tokens",
        f"{best.tokens / 1e9:.3g} B, {best.ratio:.1f} a parameter "
        f"(best at this budget: {expected.ratio.low:.1f} to {expected.ratio.high:.1f})",
    )
    table.add_row("FLOPs", f"{best.flops:.3g} at {card.flops_per_s / 1e12:.3g} TFLOP/s")
    table.add_row(
        "batch",
        f"{best.total_batch_size:,} tokens, micro-batch {best.device_batch_size} x "
        f"{best.config.seq_len}, {best.vram_bytes / 2**30:.1f} GiB planned",
    )
    split = ", ".join(f"{name} {value:.2f}" for name, value in best.hours.items())
    table.add_row("hours", split)
    table.add_row("val_bpb", f"{best.val_bpb:.4f} ({low:.4f} to {high:.4f}, {laws.family})")
    if best.core is not None and expected.core_run is not None and laws.core is not None:
        run = expected.core_run
        table.add_row("CORE", f"{best.core:.3f}; one run {run.low:.3f} to {run.high:.3f}")
        needed = laws.core.flops(_target())
        table.add_row(
            "target", f"{_target()} needs {needed:.3g} FLOPs, {needed / best.flops:.2g} times these"
        )
    others = ", ".join(f"d{o.config.n_layer} {o.val_bpb:.4f}" for o in near)
    table.add_row("within 0.1 %", others)
    table.add_row("speed", card.source)
    for remark in remarks:
        table.add_row("note", remark)
    console = Console()
    console.print(table)
    compared = _table(f"what {hours:g} h buy elsewhere", "card", "depth", "FLOPs", "CORE", "speed")
    for row in cards:
        core = "-" if row["core"] is None else f"{row['core']:.3f}"
        compared.add_row(
            row["card"], f"d{row['depth']}", f"{row['flops']:.3g}", core, row["assumes"]
        )
    console.print(compared)


@click.command()
@click.argument(
    "study_file", metavar="STUDY.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--out", type=click.Path(path_type=Path), help="Its folder [studies/NAME].")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Folder of parquet.")
@click.option("--core", type=click.Path(exists=True, path_type=Path), help="The CORE bundle.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--jobs", type=click.IntRange(min=1), help="Trials at a time [GPUs, else cores].")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--ray", "ray_address", metavar="ADDRESS", help="Run the trials on a Ray cluster.")
@click.option("--keep-weights", is_flag=True, help="Keep each trial's model.")
@click.option("--report-only", is_flag=True, help="Start nothing; report what is there.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@explained
def ablate(
    study_file: Path,
    out: Path | None,
    data: Path | None,
    core: Path | None,
    device: str,
    jobs: int | None,
    threads: int,
    ray_address: str | None,
    keep_weights: bool,
    report_only: bool,
    as_json: bool,
) -> None:
    """Compare changes with a baseline on a ladder of small trainings.

    Says which changes are better, worse or undecided, as compute multipliers with intervals, and
    writes a report. Run the same line again and it goes on where it was.
    """
    from reference.lab.ablate import Place, open_study
    from reference.lab.session import gpu_count, run_session
    from reference.lab.study import load_study

    study = load_study(study_file)
    folder = out or Path("studies") / study.name
    place = Place(folder, data, core, device, threads, keep_weights)
    gpus = 0 if device == "cpu" else gpu_count()
    at_a_time = jobs or gpus or max(1, len(os.sched_getaffinity(0)) // threads)
    run = open_study(study, place)
    session = run_session(
        run, jobs=at_a_time, gpus=gpus, ray_address=ray_address, start=not report_only
    )
    if as_json:
        click.echo(json.dumps(session.findings.to_json(), indent=2))
    else:
        _print_findings(study.name, session.findings)
        click.echo(f"\nreport: {session.page}")
    if session.findings.trials["failed"]:
        click.echo(
            f"{session.findings.trials['failed']} trials failed; their folders say why.", err=True
        )
        sys.exit(1)


def _print_findings(name: str, findings: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from reference.lab.ablate_page import verdict_table

    shown = verdict_table(findings)
    table = Table(title=f"study {name}", title_justify="left", box=None, pad_edge=False)
    for index, heading in enumerate(shown["headings"]):
        justify = "right" if index in shown["numeric"] else "left"
        table.add_column(heading, header_style="dim", justify=justify)
    colours = {"better": "green", "worse": "red"}
    for row in shown["rows"]:
        table.add_row(*row, style=colours.get(row[1]))
    console = Console()
    console.print(table)
    for row in findings.rows:
        for text in row.warnings:
            console.print(f"{row.arm}: {text}", style="yellow")
    reason = findings.proxy_reason
    console.print(f"proxy: {reason}" if findings.recommended else f"no proxy: {reason}")


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.option("--target-bpb", type=click.FloatRange(min=0), help="For FLOPs and time to it.")
@click.option(
    "--study",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of an `ablate` study, for its proxy's accuracy.",
)
@click.option("--html", type=click.Path(path_type=Path), help="Also write a page here.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@explained
def report(
    run: Path, target_bpb: float | None, study: Path | None, html: Path | None, as_json: bool
) -> None:
    """Fill the five containers of metrics from RUN, a run folder or its result.json.

    Required FLOPs, effective FLOPs/s, memory fit, convergence efficiency, end-to-end latency.
    """
    from reference.lab.report import containers
    from reference.lab.report_page import write_report_page
    from reference.lab.run_facts import read_facts

    findings = json.loads((study / "findings.json").read_text()) if study else None
    facts = read_facts(run, _recipe_of(run))
    found = containers(facts, target_bpb=target_bpb, study=findings)
    if html is not None:
        write_report_page(html, facts, found)
    if as_json:
        click.echo(json.dumps([container.to_json() for container in found], indent=2))
        return
    from rich.console import Console

    console = Console()
    for container in found:
        table = _table(f"{container.number}. {container.title}", "", "", "")
        table.show_header = False
        table.columns[1].justify = "right"
        for figure in container.figures:
            table.add_row(figure.label, figure.text, figure.note)
        console.print(table)
        console.print()


def _recipe_of(run: Path) -> dict[str, Any] | None:
    """The run's recipe with today's defaults; None where it is there no more or no longer right."""
    import tempfile

    from reference.errors import TrainerError
    from reference.lab.run_folder import RunFolder
    from reference.resolve import resolve_recipe

    text = RunFolder.open(run).recipe_text
    if text is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.toml"
        file.write_text(text)
        try:
            return resolve_recipe(str(file))
        except TrainerError:
            return None


def _two_columns(title: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    return table


def _table(title: str, *headings: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, header_style="dim")
    return table

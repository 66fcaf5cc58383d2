"""Commands of the lab: `plan`, `ablate`, `report`. Heavy modules load when a command runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from reference.command_errors import explained
from reference.tables import print_table, table_of

OTHER_CARDS = ("rtx3090", "rtx4090", "rtx5090", "h100")


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
@click.option("--recipe", help="Predict this recipe, by name or file, instead of choosing a depth.")
@click.option(
    "--register",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --recipe: write the prediction to this file, to be held against the first run.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The recipe [plan-CARD-HOURSh.toml].",
)
@click.option("--no-files", is_flag=True, help="Print only.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@explained("train,lab")
def plan(
    gpu: str,
    hours: float,
    vram: float | None,
    mfu: float | None,
    bench: Path | None,
    runs: tuple[Path, ...],
    published: bool,
    base: str,
    recipe: str | None,
    register: Path | None,
    out: Path | None,
    no_files: bool,
    as_json: bool,
) -> None:
    """Choose depth, tokens and batch for a card and a number of hours, or predict a recipe.

    Fits scaling laws to published runs (and yours), predicts val_bpb and CORE with intervals, and
    writes a recipe and a page with plots.
    """
    from dataclasses import replace

    from reference.lab.cards import MEASURED_RANGE, find_card
    from reference.lab.odds import known_levers, simulate
    from reference.lab.plan import (
        TARGET_CORE,
        Setting,
        candidate_of,
        candidates,
        choose,
        compare_cards,
        compare_shapes,
        fit_laws,
        forecast,
        notes,
    )
    from reference.lab.plan_recipe import (
        base_recipe,
        planned_card,
        recipe_document,
        write_recipe,
    )
    from reference.lab.plan_text import measured_card, plan_json, print_plan, print_shapes
    from reference.lab.published_runs import OWN_FAMILY, own_points, published_points

    if register is not None and recipe is None:
        raise click.UsageError("--register needs --recipe, the recipe that will run")
    resolved = None
    if recipe is not None:
        from reference.config.resolve import resolve_recipe

        resolved, no_files, base = resolve_recipe(recipe), True, recipe
        hours = resolved["budget_s"] / 3600
    typed = click.get_current_context().get_parameter_source("gpu")
    card = find_card(gpu)
    if resolved is not None and typed is not ParameterSource.COMMANDLINE:
        card = planned_card(resolved)
    if mfu is not None and card.peak_flops:
        source = f"{mfu:.0%}: as given"
        speed = mfu * card.peak_flops
        card = replace(
            card,
            flops_per_s=speed,
            source=source,
            speed_range=MEASURED_RANGE,
            modelled=False,
        )
    if bench is not None:
        card = measured_card(bench, card)
    device = "cpu" if card.peak_flops is None else "cuda"
    written = base_recipe(base, device)
    setting = Setting.of(written)
    points = (published_points() if published else []) + own_points(list(runs))
    laws = fit_laws(points, OWN_FAMILY if runs else "climbmix")
    room = vram or card.vram_gib
    if resolved is not None:
        best = candidate_of(resolved, card, laws, vram_gib=room)
        options = [best]
    else:
        options = candidates(card, hours, laws, setting, vram_gib=room)
        best = choose(options)
    expected = forecast(best, laws)
    cards = compare_cards(hours, laws, setting, OTHER_CARDS)
    shapes = compare_shapes(card, hours, laws, setting, vram_gib=room)
    remarks = notes(best, laws)
    levers = [lever for lever in known_levers() if lever.is_on(written)]
    odds = simulate(best, card, laws, levers, target=TARGET_CORE)

    name = f"plan-{card.name}-{hours:g}h".replace(".", "-")
    recipe_path = out or Path(f"{name}.toml")
    page_path = recipe_path.with_suffix(".html")
    if not no_files:
        from reference.lab.plan_page import write_plan_page

        title = f"d{best.config.n_layer} on one {card.name} in {hours:g} h, as planned"
        document = recipe_document(
            written,
            best,
            name=name,
            title=title,
            hours=hours,
            device=device,
        )
        comment = (
            f"Written by `n4090-kit plan {_typed_options()}`; predicted, not measured:\n"
            f"{best.tokens / 1e9:.3g} B tokens, {best.val_bpb:.4f} bits per byte."
        )
        write_recipe(recipe_path, document, comment)
        write_plan_page(page_path, title, best, expected, options, laws, cards, remarks)
    document = plan_json(card, best, expected, laws, cards, remarks, odds, levers)
    document["shapes"] = shapes
    if register is not None and recipe is not None:
        from reference.lab.registration import registration, write_registration

        write_registration(register, registration(recipe, document))
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    print_plan(card, hours, best, expected, options, laws, cards, remarks, odds, levers)
    print_shapes(shapes)
    if register is not None:
        click.echo(f"\nregistered: {register}")
    if not no_files:
        click.echo(
            f"\nrecipe: {recipe_path}\npage:   {page_path}\n"
            f"next:   n4090-kit run --recipe {recipe_path}"
        )


def _typed_options() -> str:
    """The options of this call, as a shell takes them; card and hours also where not typed."""
    context = click.get_current_context()
    words = []
    for option in context.command.params:
        value = context.params[option.name]
        typed = context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
        if option.name == "gpu" and context.params["bench"]:
            continue  # the bench says what machine it was
        if not typed and option.name not in ("gpu", "hours"):
            continue
        if isinstance(option, click.Option) and option.is_flag:
            words.append(option.opts[0] if value else option.secondary_opts[0])
            continue
        for item in value if option.multiple else (value,):
            words += [option.opts[0], f"{item:g}" if isinstance(item, float) else str(item)]
    return shlex.join(words)


@click.command()
@click.argument(
    "study_file", metavar="STUDY.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Its folder [studies/NAME]."
)
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Folder of parquet.")
@click.option("--core", type=click.Path(exists=True, path_type=Path), help="The CORE bundle.")
@click.option(
    "--sft",
    type=click.Path(exists=True, path_type=Path),
    help="Conversations, for changes of pretrain.sft_share [sft in or beside --data].",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--jobs", type=click.IntRange(min=1), help="Trials at a time [GPUs, else cores].")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Run the trials on a Ray cluster that shares --out and --data.",
)
@click.option("--keep-weights", is_flag=True, help="Keep each trial's model.")
@click.option("--report-only", is_flag=True, help="Start nothing; report what is there.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@explained("train,lab")
def ablate(
    study_file: Path,
    out: Path | None,
    data: Path | None,
    core: Path | None,
    sft: Path | None,
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
    writes a report. Run the same command again to resume.
    """
    from reference.lab.ablate import Place, check_shards, open_study
    from reference.lab.session import gpu_count, run_session
    from reference.lab.study import load_study
    from reference.lab.trial import FAILED

    study = load_study(study_file)
    if device == "cuda" and not ray_address and not report_only:
        from reference.train.device import choose_device

        choose_device(device)  # else each of its trials would fail
    folder = out or Path("studies") / study.name
    place = Place(folder, data, core, device, threads, keep_weights, sft)
    gpus = 0 if device == "cpu" else gpu_count()
    at_a_time = jobs or gpus or max(1, len(os.sched_getaffinity(0)) // threads)
    run = open_study(study, place)
    if not report_only:
        check_shards(run)
    session = run_session(
        run, jobs=at_a_time, gpus=gpus, ray_address=ray_address, start=not report_only
    )
    if as_json:
        click.echo(json.dumps(session.findings.to_json(), indent=2))
    else:
        _print_findings(study.name, session.findings)
        click.echo(f"\nreport: {session.page}")
    reasons = Counter(
        outcome.reason for outcome in run.progress.outcomes.values() if outcome.status == FAILED
    )
    if reasons:
        click.echo(f"{reasons.total()} trials failed; their folders say more:", err=True)
        for reason, count in reasons.most_common(5):
            click.echo(f"  {count} times: {reason}", err=True)
        sys.exit(1)


def _print_findings(name: str, findings: Any) -> None:
    from rich.console import Console

    from reference.lab.ablate_page import verdict_table

    shown = verdict_table(findings)
    text = [i for i in range(len(shown["headings"])) if i not in shown["numeric"]]
    table = table_of(f"study {name}", shown["headings"], text)
    colours = {"better": "green", "worse": "red"}
    for row in shown["rows"]:
        table.add_row(*row, style=colours.get(row[1]))
    console = Console()
    console.print(table)
    for row in findings.rows:
        for warning in row.warnings:
            console.print(f"{row.arm}: {warning}", style="yellow")
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
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write a page here."
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A registration (`plan --recipe NAME --register FILE`): also says whether the run, even "
    "an unfinished one, is where it was predicted to be.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@explained("train,lab")
def report(
    run: Path,
    target_bpb: float | None,
    study: Path | None,
    html: Path | None,
    against: Path | None,
    as_json: bool,
) -> None:
    """Report what a run cost, how fast, how full, how well and how long it was.

    RUN is a run folder or its result.json.

    Required FLOPs, effective FLOPs/s, memory fit, convergence efficiency, end-to-end latency.
    """
    from reference.lab.report import containers
    from reference.lab.report_page import write_report_page
    from reference.lab.run_facts import read_facts

    findings = _findings_of(study) if study else None
    facts = read_facts(run, _recipe_of(run))
    found = containers(facts, target_bpb=target_bpb, study=findings)
    course = _course_of(facts, against) if against is not None else []
    if html is not None:
        write_report_page(html, facts, found)
    if as_json:
        told: list[Any] = [container.to_json() for container in found]
        if against is not None:
            told.append({"against": against.name, "compared": [row.to_json() for row in course]})
        click.echo(json.dumps(told, indent=2))
        return
    if against is not None:
        from reference.lab.on_course import verdict

        print_table(
            "against the registration",
            ("", "run", "predicted", ""),
            [
                (
                    row.figure,
                    f"{row.measured:,.5g}",
                    f"{row.predicted:,.5g}",
                    verdict(row) + (f"; {row.note}" if row.note else ""),
                )
                for row in course
            ],
            text=(0, 3),
        )
        click.echo()
    for container in found:
        rows = [(figure.label, figure.text, figure.note) for figure in container.figures]
        print_table(f"{container.number}. {container.title}", ("", "", ""), rows, text=(0, 2))
        click.echo()


def _course_of(facts: Any, against: Path) -> list[Any]:
    """The run beside its registration.

    Raises:
        TrainerError: The registration is of another recipe.
    """
    import hashlib

    from reference.errors import TrainerError
    from reference.lab.on_course import compare
    from reference.lab.registration import read_registration

    document, text = read_registration(against), facts.run.recipe_text or ""
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    if digest != document["recipe_digest"]:
        raise TrainerError(
            "bad_input",
            f"{against} registers recipe {document['recipe']} ({document['recipe_digest'][:17]}), "
            f"the run's recipe is another ({digest[:17]})",
            "Compare a run with the registration of its own recipe.",
        )
    return compare(facts, document)


def _findings_of(study: Path) -> dict[str, Any]:
    from reference.errors import TrainerError

    try:
        found: dict[str, Any] = json.loads((study / "findings.json").read_text())
    except (OSError, ValueError) as error:
        raise TrainerError(
            "bad_input",
            f"{study} holds no findings.json of a study",
            "Name the folder that `n4090-kit ablate` wrote.",
        ) from error
    return found


def _recipe_of(run: Path) -> dict[str, Any] | None:
    """The run's recipe with today's defaults; None where it is there no more or no longer right."""
    import tempfile

    from reference.config.resolve import resolve_recipe
    from reference.errors import TrainerError
    from reference.lab.run_folder import RunFolder

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

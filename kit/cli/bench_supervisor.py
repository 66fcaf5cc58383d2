"""`n4090-kit bench supervisor`: what it costs to be supervised."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import click

STAGES = ("tokenizer", "pretrain")
# The reference trainer, with moments in its reports.
STAMPED = ["python", "-m", "reference.stamped"]


@click.command("supervisor")
@click.option("--recipe", "-r", default="smoke", show_default=True, help="Name or TOML file.")
@click.option("--runs", default=2, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--steps", type=click.IntRange(min=4), help="Of pretraining; else the recipe's.")
@click.option(
    "--window",
    "window_s",
    default=0.5,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds that the supervisor stands still, or works, at a time.",
)
@click.option(
    "--burden",
    "burden_ms",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Milliseconds of work added to each event: a cost that has to be found.",
)
@click.option("--control", is_flag=True, help="Nothing differs: what is found then.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every couple of windows.")
def bench_supervisor(
    recipe: str,
    runs: int,
    steps: int | None,
    window_s: float,
    burden_ms: float,
    control: bool,
    as_json: bool,
) -> None:
    """Compare the steps of supervised training with those of the bare trainer.

    In each run (tokenizer and pretraining) the supervisor stands still for half of the time, half a
    second at a time, in drawn order, and the time from step to step is compared. Less than 0.5 % is
    the aim. A step's noise is far more: take thousands, and bind it to one core (taskset -c 1),
    where steps are steadier and the supervisor has no core of its own to hide on.
    """
    from rich.console import Console

    from kit.cli.progress import LIVE_EVERY_S, LiveDisplay
    from kit.recipe import load_recipe
    from kit.run.bench import measure_overhead
    from kit.run.plan import RunPlan, plan_run
    from kit.trust.keys import load_or_create_signer

    loaded = load_recipe(recipe)
    if loaded.section("data")["kind"] != "stories":
        raise click.UsageError(
            f"recipe `{loaded.name}` needs data: take one that makes its own, as smoke does"
        )
    if loaded.section("trainer")["command"] != ["python", "-m", "reference"]:
        raise click.UsageError(f"recipe `{loaded.name}` has a trainer of its own")
    if not (steps or loaded.section("pretrain")["num_steps"]):
        raise click.UsageError(f"recipe `{loaded.name}` has no number of steps: give --steps")
    trainer = {**loaded.section("trainer"), "command": STAMPED}
    document = {**loaded.document, "stages": list(STAGES), "trainer": trainer}
    if steps:
        document["pretrain"] = {**loaded.section("pretrain"), "num_steps": steps}
    shortened = replace(loaded, document=document, stages=STAGES)
    with (
        tempfile.TemporaryDirectory(prefix="n4090-bench-") as name,
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
    ):
        work = Path(name)

        def make_plan() -> RunPlan:
            return plan_run(shortened, work, {}, seed=None, probe=False)

        def watch() -> LiveDisplay:  # as on a terminal, its line drawn but seen by nobody
            nobody = Console(file=nowhere, force_terminal=True, width=120)
            return LiveDisplay(shortened, nobody, LIVE_EVERY_S * (1 if control else 2))

        found = measure_overhead(
            make_plan,
            load_or_create_signer(work / "keys"),
            runs=runs,
            watch=watch,
            window_s=window_s,
            burden_s=burden_ms / 1000,
            control=control,
            say=lambda text: click.echo(text, err=True),
        )
    if as_json:
        summary = {
            "control": control,
            "burden_ms": burden_ms,
            "window_s": window_s,
            "ratio": found.ratio,
            "ratio_95": found.interval,
            "between_share": found.between_share,
            "cpu_share": found.cpu_share,
            "rests": [rest._asdict() for rest in found.rests],
            "couples": [couple._asdict() for couple in found.couples],
        }
        click.echo(json.dumps(summary, indent=2))
        return
    told = f"{found.ratio - 1:+.2%}"
    if found.interval:
        low, high = found.interval
        told += f" (95 %: {low - 1:+.2%} to {high - 1:+.2%})"
    name = "steps, two names for the same" if control else "steps under the supervisor"
    click.echo(f"{name}: {told}; couples of windows: {len(found.couples)}")
    click.echo(f"no stage at work: {found.between_share:.2%} of the time")
    click.echo(f"the supervisor itself: {found.cpu_share:.2%} of one core")

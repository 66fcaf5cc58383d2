"""`n4090-kit bench supervisor`: what it costs to be supervised."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import click

STAGES = ("tokenizer", "pretrain")


@click.command("supervisor")
@click.option("--recipe", "-r", default="smoke", show_default=True, help="Name or TOML file.")
@click.option(
    "--rounds",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    help="Runs; each is done both ways.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bench_supervisor(recipe: str, rounds: int, as_json: bool) -> None:
    """Time tokenizer and pretraining of a recipe under the supervisor and without it.

    Minutes a round. Less than 0.5 % is the aim. On a busy machine the shares of CPU tell; wall
    times also hold whatever else runs.
    """
    from kit.recipe import load_recipe
    from kit.run.bench import measure_overhead
    from kit.run.plan import RunPlan, plan_run
    from kit.trust.keys import load_or_create_signer

    loaded = load_recipe(recipe)
    document = {**loaded.document, "stages": list(STAGES)}
    shortened = replace(loaded, document=document, stages=STAGES)
    with tempfile.TemporaryDirectory(prefix="n4090-bench-") as name:
        work = Path(name)

        def make_plan() -> RunPlan:
            return plan_run(shortened, work, {}, probe=False)

        found = measure_overhead(
            make_plan,
            load_or_create_signer(work / "keys"),
            rounds=rounds,
            say=lambda text: click.echo(text, err=True),
        )
    if as_json:
        rows = [row._asdict() for row in found.rounds]
        summary = {
            "cpu_share": found.cpu_share,
            "trainer_cpu_ratio": found.trainer_cpu_ratio,
            "wall_ratio": found.wall_ratio,
        }
        click.echo(json.dumps({"rounds": rows, **summary}, indent=2))
        return
    shares = [row.telemetry_share for row in found.rounds if row.telemetry_share is not None]
    telemetry = f", telemetry {max(shares):.3%} of that core" if shares else ""
    click.echo(
        f"supervisor: {found.cpu_share:.3%} of one core{telemetry}; the trainer's CPU seconds "
        f"{found.trainer_cpu_ratio:.4f} and its wall time {found.wall_ratio:.4f} of the bare "
        f"trainer's (median of {len(found.rounds)})"
    )

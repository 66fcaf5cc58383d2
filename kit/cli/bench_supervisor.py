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
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(min=1), help="Runs.")
@click.option(
    "--window",
    "window_s",
    default=0.5,
    show_default=True,
    type=click.FloatRange(min=0.2),
    help="Seconds for which the supervisor works, and then stands still.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bench_supervisor(recipe: str, rounds: int, window_s: float, as_json: bool) -> None:
    """Compare a recipe's steps under the supervisor with those while it is stopped.

    Each run is tokenizer and pretraining. The supervisor stands still every second window, so that
    both kinds of steps lie next to each other in time. Less than 0.5 % is the aim; twelve runs of
    smoke on two shared cores tell it to 1.2 % either way.
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
            return plan_run(shortened, work, {}, seed=1, probe=False)

        found = measure_overhead(
            make_plan,
            load_or_create_signer(work / "keys"),
            rounds=rounds,
            window_s=window_s,
            say=lambda text: click.echo(text, err=True),
        )
    ratio, low, high = found.step_ratio
    pairs = sum(len(row.pairs) for row in found.rounds)
    if as_json:
        summary = {
            "rounds": [row._asdict() for row in found.rounds],
            "cpu_share": found.cpu_share,
            "telemetry_share": found.telemetry_share,
            "step_ratio": ratio,
            "step_ratio_95": [low, high],
            "pairs": pairs,
        }
        click.echo(json.dumps(summary, indent=2))
        return
    share = found.telemetry_share
    telemetry = "" if share is None else f", telemetry {share:.3%} of that core"
    click.echo(
        f"supervisor: {found.cpu_share:.3%} of one core{telemetry}; a step takes {ratio:.4f} times "
        f"as long with it as without (95 %: {low:.4f} to {high:.4f}, {pairs} pairs of windows)"
    )

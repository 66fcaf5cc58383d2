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
@click.option("--pairs", default=2, show_default=True, type=click.IntRange(min=1), help="Of runs.")
@click.option("--steps", type=click.IntRange(min=4), help="Of pretraining; else the recipe's.")
@click.option(
    "--burden",
    "burden_ms",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Milliseconds of work added to each event, to see how much of its work a run feels.",
)
@click.option("--control", is_flag=True, help="Two bare runs: what is found where nothing differs.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bench_supervisor(
    recipe: str, pairs: int, steps: int | None, burden_ms: float, control: bool, as_json: bool
) -> None:
    """Compare runs under the supervisor with the bare trainer.

    A pair is a supervised and a bare run, tokenizer and pretraining, that take turns of half a
    second on the same cores and must leave the same files. Less than 0.5 % is the aim. Equal runs
    differ by two percent a pair, however long they are: take many pairs of few --steps. Fewer do
    with --burden, which tells how much of its supervisor's work a run feels.
    """
    from kit.recipe import load_recipe
    from kit.run.bench import measure_overhead
    from kit.run.plan import RunPlan, plan_run
    from kit.trust.keys import load_or_create_signer

    if control and burden_ms:
        raise click.UsageError("--burden is the supervisor's, and --control has none: give one")
    loaded = load_recipe(recipe)
    if loaded.section("data")["kind"] != "stories":
        raise click.UsageError(
            f"recipe `{loaded.name}` needs data: take one that makes its own, as smoke does"
        )
    document = {**loaded.document, "stages": list(STAGES)}
    if steps:
        rhythm = {"eval_every": max(1, steps // 2), "checkpoint_every": max(1, steps // 4)}
        document["pretrain"] = {**loaded.section("pretrain"), "num_steps": steps, **rhythm}
    shortened = replace(loaded, document=document, stages=STAGES)
    with tempfile.TemporaryDirectory(prefix="n4090-bench-") as name:
        work = Path(name)

        def make_plan() -> RunPlan:
            return plan_run(shortened, work, {}, seed=1, probe=False)

        found = measure_overhead(
            make_plan,
            load_or_create_signer(work / "keys"),
            pairs=pairs,
            burden_s=burden_ms / 1000,
            control=control,
            say=lambda text: click.echo(text, err=True),
        )
    if as_json:
        summary = {
            "pairs": [pair._asdict() for pair in found.pairs],
            "control": control,
            "burden_ms": burden_ms,
            "cpu_share": found.cpu_share,
            "felt": found.felt if burden_ms else None,
            "ratio": found.ratio,
            "ratio_95": found.interval,
        }
        click.echo(json.dumps(summary, indent=2))
        return
    kind = "a bare run against a bare one" if control else "a supervised run against a bare one"
    told = f"{found.ratio - 1:+.2%}"
    if found.interval:
        low, high = found.interval
        told += f" (95 %: {low - 1:+.2%} to {high - 1:+.2%})"
    click.echo(f"{kind}: {told}; pairs: {len(found.pairs)}")
    if not control:
        click.echo(f"the supervisor itself: {found.cpu_share:.2%} of one core")
    if burden_ms:  # without it the noise of the pairs is all that this would tell
        click.echo(f"for each second of that the runs took {found.felt:.2f} s longer")

"""`n4090-kit run`: a recipe, or an interrupted run, to its signed result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from kit.track.sinks import KINDS

if TYPE_CHECKING:
    from kit.cli.progress import Display

DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def complete_recipe(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of recipes, then files."""
    from kit.recipe import named_recipes

    names = [name for name in named_recipes() if name.startswith(incomplete)]
    return [
        *(CompletionItem(name) for name in names),
        *([] if names else [CompletionItem(incomplete, type="file")]),
    ]


@click.command(context_settings={"allow_extra_args": True})
@click.option(
    "--recipe",
    "-r",
    "recipe_name",
    shell_complete=complete_recipe,
    help="Name or TOML file; `n4090-kit recipes` lists names.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="A.B=V",
    help="Change a field of the recipe, such as pretrain.num_steps=200; repeatable.",
)
@click.option("--resume", type=DIRECTORY, help="Go on with this run folder; downtime counts.")
@click.option(
    "--work", type=DIRECTORY, envvar="N4090_WORK", default=Path(), help="Work folder [.]."
)
@click.option("--data", type=DIRECTORY, help="Folder of parquet shards to train on.")
@click.option("--sft", type=DIRECTORY, help="Folder of conversations (JSON lines).")
@click.option("--chat-eval", type=DIRECTORY, help="Folder of questions for the chat model.")
@click.option("--core", type=DIRECTORY, help="Folder of the CORE bundle.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Instead of the recipe's."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), help="Instead of the recipe's seed policy."
)
@click.option(
    "--key", type=FILE, envvar="N4090_KEY", help="OpenSSH key to sign with; made if absent."
)
@click.option(
    "--group", "group_name", metavar="ID", help="Make this the next run of a registered group."
)
@click.option(
    "--price-kwh",
    type=click.FloatRange(0, 100),
    envvar="N4090_PRICE_KWH",
    help="What a kWh costs here, for the result's cost.",
)
@click.option("--currency", default="EUR", show_default=True, help="Of --price-kwh, three letters.")
@click.option("--no-probe", is_flag=True, help="Do not measure the machine (the result says so).")
@click.option(
    "--track", type=click.Choice(KINDS), help="Also feed a tracker from the log, beside the run."
)
@click.option("--quiet", "-q", is_flag=True, help="Only errors and the final table.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result's summary as JSON at the end."
)
def run(
    recipe_name: str | None,
    settings: tuple[str, ...],
    resume: Path | None,
    work: Path,
    data: Path | None,
    sft: Path | None,
    chat_eval: Path | None,
    core: Path | None,
    device: str | None,
    seed: int | None,
    key: Path | None,
    group_name: str | None,
    price_kwh: float | None,
    currency: str,
    no_probe: bool,
    track: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a recipe to a signed result.

    The clock starts when the first stage does and never pauses. Ctrl-C stops cleanly, with a signed
    partial result; `--resume` continues from it.
    """
    from kit.cli.chance import expected_at_chance
    from kit.cli.prepare import fetch_for_run
    from kit.cli.progress import make_display
    from kit.cli.track import tracking
    from kit.events import Price
    from kit.overrides import override
    from kit.recipe import load_recipe
    from kit.run.finished import refuse_complete
    from kit.run.foreseen import foreseen
    from kit.run.group import open_group
    from kit.run.plan import load_plan, plan_run
    from kit.run.preflight import check
    from kit.run.process import StopFlag
    from kit.run.supervisor import stop_on_signals, supervise
    from kit.trust.keys import load_or_create_signer

    if words := click.get_current_context().args:
        place = Path(words[0])
        option = "--resume" if (place / "events.jsonl").is_file() else "--recipe"
        raise click.UsageError(f"`{words[0]}` needs its option: n4090-kit run {option} {words[0]}")
    if (recipe_name is None) == (resume is None):
        raise click.UsageError("give exactly one of --recipe NAME and --resume RUN")
    if resume is not None and settings:
        raise click.UsageError("a run is resumed with the recipe it began with: leave --set out")
    if not (len(currency) == 3 and currency.isalpha() and currency.isascii()):
        raise click.UsageError(f"{currency!r} is not a currency code of three letters")
    work = work.resolve()
    if resume is not None:
        refuse_complete(resume.resolve())
        plan = load_plan(resume.resolve())
    else:
        assert recipe_name is not None
        recipe = override(load_recipe(recipe_name), settings)
        check(recipe, work, device=device or recipe.document["device"])
        for sentence in foreseen(recipe) if not (quiet or as_json) else ():
            click.echo(f"note: {sentence}", err=True)
        given = {"data": data, "sft": sft, "chat_eval": chat_eval, "core": core}
        fetch = fetch_for_run(quiet=quiet or as_json)
        plan = plan_run(
            recipe,
            work,
            given,
            device=device,
            seed=seed,
            probe=not no_probe,
            fetch=fetch,
            group=open_group(work, group_name) if group_name else None,
            price=None if price_kwh is None else Price(price_kwh, currency.upper()),
        )
    signer = load_or_create_signer(plan.work / "keys", key)
    stop = StopFlag()
    display: Display = make_display(plan.recipe, quiet=quiet or as_json)
    chance = None if quiet or as_json or resume else expected_at_chance(plan.recipe)
    if chance:
        click.echo(f"note: {chance}", err=True)
    with tracking(track, plan.run), display, stop_on_signals(stop):
        display.begin(plan.run.name, signer.created)
        path = supervise(plan, signer, observe=display.observe, stop=stop)
    result = json.loads(path.read_text())
    if as_json:
        click.echo(json.dumps(summary(result, path), indent=2))
    else:
        from kit.cli.progress import print_summary

        print_summary(result, path)
    if result["claims"]["status"] != "complete":
        raise SystemExit(3 if result["claims"]["status"] == "stopped" else 1)


def summary(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """The headline figures of a result, for machines."""
    from kit.core_eval.naming import named_scores
    from kit.speed import stage_speed

    quality, training = result["quality"], result["training"]
    core, chat = quality["core"], quality["chat"]
    return {
        "run": result["runs"]["id"],
        "status": result["claims"]["status"],
        "reason": result["claims"]["reason"],
        "message": result["claims"]["message"],
        "total_s": result["timing"]["total_s"],
        "stages": {part["stage"]: part["elapsed_s"] for part in result["timing"]["stages"]},
        "val_bpb": quality["val_bpb"],
        **named_scores(core),
        "answer_bpb": core and core.get("answer_bpb"),
        "chat": chat and {key: chat[key] for key in ("value", "ended_rate")},
        "tokens_per_s": stage_speed(result),
        "median_step_tokens_per_s": training["tokens_per_s"],
        "energy": {key: result["energy"].get(key) for key in ("kwh", "cost", "currency")},
        "ranked": result["claims"]["ranked"],
        "why_not_ranked": result["claims"]["why_not_ranked"],
        "result": str(path),
    }

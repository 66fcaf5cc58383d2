"""`n4090-kit reproduce`: somebody else's row again, to a signed statement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kit.board.claim import Claim
    from kit.recipe import Recipe
    from kit.trust.keys import Signer

DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
_EXIT = {"confirmed": 0, "worse": 1, "inconclusive": 3}
_STYLE = {"pass": "green", "fail": "bold red", "skip": "dim"}
_SENTENCE = {
    "confirmed": "Confirmed: not worse than the rules allow.",
    "worse": "Worse than the row claims, beyond what the rules allow. That is worth knowing, too.",
    "inconclusive": "Inconclusive: too little could be compared.",
}


@click.command()
@click.argument("row")
@click.option(
    "--board",
    default="n4090/leaderboard",
    envvar="N4090_BOARD",
    show_default=True,
    help="A folder, or a dataset on the Hub (OWNER/NAME).",
)
@click.option("--as", "name", help="Your name on a board in a folder; the account's on the Hub.")
@click.option("--key", type=FILE, envvar="N4090_KEY", help="OpenSSH key to sign with.")
@click.option(
    "--work", type=DIRECTORY, envvar="N4090_WORK", default=Path(), help="Work folder [.]."
)
@click.option("--data", type=DIRECTORY, help="Folder of parquet shards, those of the row.")
@click.option("--sft", type=DIRECTORY, help="Folder of conversations.")
@click.option("--chat-eval", type=DIRECTORY, help="Folder of questions.")
@click.option("--core", type=DIRECTORY, help="Folder of the bundle the row was scored on.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of your run; without it, a random one."
)
@click.option(
    "--trainer-code",
    type=DIRECTORY,
    help="Run a trainer that is not the reference, from your own copy in this folder.",
)
@click.option("--no-probe", is_flag=True, help="Do not measure the machine (the result says so).")
@click.option("--run", "finished", type=DIRECTORY, help="Compare this finished run of the recipe.")
@click.option("--fetch-only", is_flag=True, help="Check the row, write its recipe, and stop.")
@click.option("--check-only", is_flag=True, help="Score the published weights again instead.")
@click.option(
    "--replay",
    type=click.IntRange(1, 100),
    metavar="K",
    help="Do K random stretches of its training again instead (needs --data).",
)
@click.option("--out", type=FILE, help="Where the statement goes, for these two.")
@click.option("--quiet", "-q", is_flag=True, help="Only errors and the outcome.")
@click.option("--json", "as_json", is_flag=True, help="Print the statement.")
def reproduce(
    row: str,
    board: str,
    name: str | None,
    key: Path | None,
    work: Path,
    data: Path | None,
    sft: Path | None,
    chat_eval: Path | None,
    core: Path | None,
    device: str,
    seed: int | None,
    trainer_code: Path | None,
    no_probe: bool,
    finished: Path | None,
    fetch_only: bool,
    check_only: bool,
    replay: int | None,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a row's recipe again with your own seed, and sign how it compares.

    ROW is an id on the board, the path of a submission's folder, or its address on the Hub. The row
    must pass every check of its text first; no code of it is run. With --check-only its published
    weights are scored and probed again instead, which takes minutes; with --replay, random
    stretches of its training are done again. `n4090-kit submit` takes what comes out.
    """
    from kit.board.claim import find_claim, with_weights
    from kit.board.reproduce import (
        check_again,
        compare,
        refuse_same_card,
        refuse_same_person,
        replay_again,
        safe_recipe,
        statement,
    )
    from kit.board.statistics import figures_of
    from kit.files import write_bytes, write_json
    from kit.image import describe_image
    from kit.trust.keys import load_or_create_signer

    work = work.resolve()

    def tell(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    if check_only and replay:
        raise click.UsageError("give either --check-only or --replay K")
    claim = find_claim(row, board, work, tell)
    recipe = safe_recipe(claim, trainer_code)
    image = claim.result["image"]["digest"]
    if image is not None and image != describe_image()["digest"]:
        tell(f"the row ran in image {image}; runs compare best in the same one")
    if fetch_only:
        path = work / "cache" / "rows" / claim.id / "recipe.toml"
        write_bytes(path, recipe.text.encode())
        click.echo(path)
        tell(f"next:   run it, then `n4090-kit reproduce {row} --board {board} --run RUN`")
        return
    signer = load_or_create_signer(work / "keys", key)
    name = name or _account(board)
    refuse_same_person(claim, signer, name)
    own: dict[str, Any] | None = None
    notes: list[str] = []
    evidence: dict[str, Any] | None = None
    path = out or work / f"reproduction-{claim.id}.json"
    if check_only or replay:
        claim = with_weights(claim, work, tell, snapshots=bool(replay))
    if check_only:
        tell(f"scoring the weights of {claim.id} again")
        kind = "check"
        found, checks, verdict = check_again(claim, core=core, data=data, device=device)
    elif replay:
        tell(f"doing {replay} stretches of {claim.id} again")
        kind = "replay"
        found, checks, verdict, evidence = replay_again(
            claim, windows=replay, data=data, sft=sft, device=device
        )
    else:
        if finished is None:
            refuse_same_card(claim)
            given = {"data": data, "sft": sft, "chat_eval": chat_eval, "core": core}
            finished = _run(claim, recipe, work, given, signer, device, seed, no_probe, quiet)
        own = _own(finished, signer)
        checks, verdict, notes = compare(claim, own)
        kind, found, path = "run", figures_of(own), finished / "reproduction.json"
    document = statement(
        claim,
        kind,
        name=name,
        signer=signer,
        own=own,
        found=found,
        checks=checks,
        verdict=verdict,
        notes=notes,
        evidence=evidence,
    )
    write_json(path, document)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        _show(claim, document)
        click.echo(f"\nstatement: {path}", err=True)
        click.echo(
            f"next:      n4090-kit submit {path.parent if own else path} --board {board}", err=True
        )
    raise SystemExit(_EXIT[verdict])


def _run(
    claim: Claim,
    recipe: Recipe,
    work: Path,
    given: Mapping[str, Path | None],
    signer: Signer,
    device: str,
    seed: int | None,
    no_probe: bool,
    quiet: bool,
) -> Path:
    """Runs the recipe to a signed result; returns the run folder."""
    from kit.board.reproduce import own_seed, refuse_other_inputs
    from kit.cli.prepare import fetch_for_run
    from kit.cli.progress import make_display, print_summary
    from kit.errors import KitError
    from kit.prepare.inputs import describe
    from kit.run.plan import plan_run
    from kit.run.preflight import check
    from kit.run.process import StopFlag
    from kit.run.supervisor import stop_on_signals, supervise

    if seed == claim.result["seed"]["value"]:
        raise KitError(
            "that is the row's own seed: the run would repeat it and show nothing about chance"
        )
    wanted = recipe.document["device"] if device == "auto" else device
    check(recipe, work, device=wanted)
    plan = plan_run(
        recipe,
        work,
        given,
        device=wanted,
        seed=seed,
        probe=not no_probe,
        fetch=fetch_for_run(quiet=quiet),
    )
    if seed is None:
        plan = replace(plan, seed=own_seed(claim), seed_source="random")
    # The same files, before a day is spent; the run takes their digests from the same cache.
    refuse_other_inputs(claim, describe(plan.inputs, work / "cache" / "digests.json"))
    stop, display = StopFlag(), make_display(recipe, quiet=quiet)
    with display, stop_on_signals(stop):
        display.begin(plan.run.name, signer.created)
        path = supervise(plan, signer, observe=display.observe, stop=stop)
    result = json.loads(path.read_text())
    if not quiet:
        print_summary(result, path)
    if result["claims"]["status"] != "complete":
        raise KitError(
            f"the run is {result['claims']['status']}, so there is nothing to compare",
            hint=f"`n4090-kit run --resume {path.parent}` resumes it; then run the same command "
            f"with --run {path.parent}",
        )
    return path.parent


def _own(finished: Path, signer: Signer) -> dict[str, Any]:
    """The own run's result, when it holds and this key signed it."""
    from kit.board.package import verified
    from kit.errors import KitError

    _, own = verified(finished)
    if own["submitter"]["public_key"] != signer.public_key:
        raise KitError(
            "that run was signed with another key",
            hint="give the same --key and --work as for the run",
        )
    return own


def _account(board: str) -> str:
    """The account on the Hub, for boards that lie there."""
    from kit.cli.submit import is_folder
    from kit.errors import PrerequisiteError

    if is_folder(board):
        raise PrerequisiteError(
            "a statement names its signer", hint="say who you are on this board: --as NAME"
        )
    from kit.board.hub import Hub, client

    return Hub(client()).who()


def _show(claim: Claim, document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kit.text import plain

    console = Console(highlight=False)
    name = plain(claim.result["recipe"]["name"], 60)
    table = Table(box=None, pad_edge=False, title=f"{name} {claim.id}, {document['kind']}")
    for heading, justify in (("", "left"), ("", "left"), ("claimed", "right"), ("found", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("", overflow="fold")
    for check in document["checks"]:
        figures = (
            "" if check[side] is None else f"{check[side]:.6g}" for side in ("claimed", "found")
        )
        table.add_row(
            check["name"],
            Text(check["status"], style=_STYLE[check["status"]]),
            *figures,
            plain(check["message"], 200),
        )
    console.print(table)
    for note in document["notes"]:
        console.print(plain(note, 300), style="dim", markup=False)
    console.print(_SENTENCE[document["verdict"]])

"""`n4090-kit register`: runs announced before the first of them."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--recipe", "-r", "recipe_name", required=True, help="Name or TOML file.")
@click.option(
    "--runs", type=click.IntRange(1, 100), required=True, help="How many; none can be left out."
)
@click.option(
    "--challenge",
    help="Text you could not know before, such as a public beacon's; left out: drawn here.",
)
@click.option(
    "--board",
    help="Take the challenge from this board (a folder, or OWNER/NAME on the Hub), which can then "
    "tell that the seeds were not chosen.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="N4090_WORK",
    default=Path(),
    help="Work folder [.].",
)
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="N4090_KEY",
    help="OpenSSH key to sign with; made if absent.",
)
def register(
    recipe_name: str,
    runs: int,
    challenge: str | None,
    board: str | None,
    work: Path,
    key: Path | None,
) -> None:
    """Announce a group of runs, with seeds that nobody can choose.

    Publish the registration before the first run. Each `run --group ID` then takes the next number
    and its seed; `verify --group` wants all of them, failed ones too.
    """
    from kit.errors import PrerequisiteError
    from kit.recipe import load_recipe
    from kit.run.group import register as announce
    from kit.trust.keys import load_or_create_signer

    if challenge is not None and not 8 <= len(challenge) <= 200:
        raise PrerequisiteError("a challenge has 8 to 200 characters", given=len(challenge))
    if challenge is not None and board is not None:
        raise click.UsageError("--challenge and --board exclude each other")
    if board is not None:
        from kit.board.head import board_head

        challenge = board_head(board, lambda text: click.echo(text, err=True))
    work = work.resolve()
    recipe = load_recipe(recipe_name)
    signer = load_or_create_signer(work / "keys", key)
    group = announce(work, recipe, runs, signer, challenge)
    click.echo(f"{runs} runs of `{recipe.name}`, signed by {signer.fingerprint}", err=True)
    click.echo(f"publish {group.folder / 'registration.json'} before the first run", err=True)
    click.echo(f"then: n4090-kit run -r {recipe_name} --group {group.id}", err=True)
    click.echo(group.id)

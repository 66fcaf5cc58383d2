"""`n4090-kit board rescore` and `board vouch`: what the board finds out for itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kit.cli.board_publish import BOARD, WORK

if TYPE_CHECKING:
    from kit.board.rescore import WeightsScorer

DIRECTORY = click.Path(file_okay=False, path_type=Path)
ITEMS = click.option(
    "--items",
    type=click.IntRange(100, 100_000),
    default=500,
    show_default=True,
    help="CORE items to draw for each row.",
)


@click.command()
@click.argument("row")
@BOARD
@WORK
@click.option("--core", type=DIRECTORY, required=True, help="Folder of the CORE bundle.")
@ITEMS
@click.option("--device", default="cpu", show_default=True, help="Where to evaluate: cpu or cuda.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask after the cost was shown.")
def rescore(
    row: str, target: str, work: Path, core: Path, items: int, device: str, yes: bool
) -> None:
    """Score a row's published weights on questions drawn now, and note what they answered.

    For a board in a folder. The answers are compared one by one with the submitted ones. A row
    whose weights answer the same has tier T2 and can be ranked; otherwise it is disputed.
    """
    from kit.board.layout import SubmissionPath, board_root
    from kit.board.load import load_board
    from kit.board.publish import publish
    from kit.board.rescore import cost
    from kit.cli.submit import is_folder
    from kit.errors import KitError, PrerequisiteError

    if not is_folder(target):
        raise PrerequisiteError(
            "a row on the Hub is scored by `board publish --core DIR`",
            hint="run that with a larger --items, or name a folder with --board",
        )
    root = board_root(Path(target))
    found = load_board(root).row(row)
    path = SubmissionPath.parse(found["path"] or "")
    if path is None:
        raise PrerequisiteError(f"`{row[:60]}` is a published figure, not a submission")
    parameters = (found["training"] or {}).get("parameters")
    if parameters:
        _tell(cost(parameters, items))
    if not yes:
        click.confirm("Score it?", abort=True, err=True)
    scorer = make_scorer(root, core, work, items, device)
    done = publish(root, scorer=scorer, rescore=path.result_id, tell=_tell)
    again = load_board(root).row(found["id"])
    _tell(f"{again['id']}: {again['tier']}, {again['tier_reason']}")
    if again["state"] == "disputed":
        raise KitError(f"the weights contradict the row: {again['path']}", events=done.events)


@click.command()
@BOARD
@WORK
@click.option("--github", multiple=True, metavar="USER", help="An account on GitHub.")
@click.option("--hf", multiple=True, metavar="USER", help="An account on the Hub.")
def vouch(target: str, work: Path, github: tuple[str, ...], hf: tuple[str, ...]) -> None:
    """Note which keys an account shows and since when it exists.

    Replays and reproductions count for accounts that the board has looked up so, not for keys.
    For a board in a folder; `board publish` looks up the authors of a board on the Hub itself.
    """
    from kit.board.layout import board_root
    from kit.board.publish import publish
    from kit.trust.identities import Account, fetch_account

    accounts = [Account("github", user) for user in github] + [Account("hf", user) for user in hf]
    if not accounts:
        raise click.UsageError("give at least one --github USER or --hf USER")
    shown = [fetch_account(account) for account in accounts]
    publish(board_root(Path(target)), accounts=shown, tell=_tell)
    for one in shown:
        _tell(f"{one['service']} {one['user']}: since {one['created_at']}, {len(one['keys'])} keys")


def make_scorer(root: Path, core: Path, work: Path, items: int, device: str) -> WeightsScorer:
    """A scorer of the rows of the board in `root`."""
    from kit.board.rescore import WeightsScorer

    return WeightsScorer(root, core, work, items, device, _tell)


def _tell(text: str) -> None:
    click.echo(text, err=True)

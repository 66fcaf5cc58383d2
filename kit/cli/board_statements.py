"""`n4090-kit board dispute|withdraw|correct|resolve`: signed sentences about a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kit.cli.board_publish import WORK
from kit.cli.submit import BOARD, NAME, YES, is_folder

KEY = click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Key that signs; default: that of WORK/keys.",
)
REASON = click.option("--reason", required=True, help="Why, for readers of the board.")
EVIDENCE = click.option(
    "--evidence", multiple=True, help="An address, a reproduction's id, a check; can be repeated."
)


def _shared(function: Callable[..., None]) -> Callable[..., None]:
    for option in (YES, WORK, KEY, NAME, BOARD, EVIDENCE, REASON):
        function = option(function)
    return function


@click.command()
@click.argument("row")
@_shared
def dispute(row: str, **options: Any) -> None:
    """Doubt a row in public, under your key.

    It is shown with the row. A maintainer's dispute, or one that a maintainer upholds, marks the
    row as disputed; so do the board's own scoring of its weights, and two reproductions of vouched
    people, with runs that the board has scored, that found it worse.
    """
    _state("dispute", row, **options)


@click.command()
@click.argument("row")
@_shared
def withdraw(row: str, **options: Any) -> None:
    """Take a row back: your own, with the key that signed it; a maintainer, any."""
    _state("withdrawal", row, **options)


@click.command()
@click.argument("row")
@click.option("--core", type=float, help="CORE as it should be.")
@click.option("--val-bpb", type=float, help="Bits per byte as they should be.")
@click.option("--total-s", type=float, help="Seconds as they should be.")
@_shared
def correct(
    row: str, core: float | None, val_bpb: float | None, total_s: float | None, **options: Any
) -> None:
    """Correct a row's figures (maintainers); the signed result stays as it is."""
    given = {"core": core, "val_bpb": val_bpb, "total_s": total_s}
    figures = {name: value for name, value in given.items() if value is not None}
    if not figures:
        raise click.UsageError("give at least one of --core, --val-bpb, --total-s")
    _state("rescore", row, figures=figures, **options)


@click.command()
@click.argument("row")
@click.option("--dispute", "about", required=True, help="Id of the dispute or reproduction.")
@click.option("--uphold/--dismiss", "upheld", required=True, help="Whether it is right.")
@_shared
def resolve(row: str, about: str, upheld: bool, **options: Any) -> None:
    """Answer a dispute (maintainers)."""
    _state("resolution", row, dispute=about, upheld=upheld, **options)


def _state(
    kind: str,
    row: str,
    *,
    reason: str,
    evidence: tuple[str, ...],
    target: str,
    name: str | None,
    key: Path | None,
    work: Path,
    yes: bool,
    **more: Any,
) -> None:
    from kit.board.documents import make_statement, relative_path
    from kit.board.layout import RESULT_ID, board_root
    from kit.board.package import document_items
    from kit.board.submit import place
    from kit.errors import PrerequisiteError
    from kit.trust.keys import load_or_create_signer

    hub: Any = None
    if is_folder(target):
        from kit.board.load import load_board

        if name is None:
            raise PrerequisiteError("who says so?", hint="give your name with --as NAME")
        row = load_board(Path(target)).row(row)["id"]
    else:
        from kit.board.hub import Hub, client

        row = row.strip("/").split("/")[-1]
        hub = Hub(client(), tell=_tell)
        name = hub.who()
    if not RESULT_ID.fullmatch(row):
        raise PrerequisiteError(
            f"`{row[:60]}` is not a submission", hint="give the row's id: 16 hex digits"
        )
    signer = load_or_create_signer(work / "keys", key)
    document = make_statement(
        kind, row, name=name, signer=signer, reason=reason, evidence=evidence, **more
    )
    _tell(f"{kind} of {row} by {name}, signed by {signer.fingerprint}:\n  {reason}")
    if not yes:
        click.confirm("Publish this?", abort=True, err=True)
    if hub is None:
        place(board_root(Path(target)), document_items([document]))
        _tell(f"written: {relative_path(document)}")
    else:
        from kit.board.hub_submit import submit_documents

        done = submit_documents(hub, target, [document], name)
        _tell(f"{done.state}: {done.url}")
    _tell("next: the maintainers' `n4090-kit board publish` judges it")


def _tell(text: str) -> None:
    click.echo(text, err=True)

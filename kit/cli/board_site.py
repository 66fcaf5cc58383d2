"""`n4090-kit board site`: the board as pages that any web server, or none, can show."""

from __future__ import annotations

import sys
from pathlib import Path

import click

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option(
    "--board", "target", default="submissions", show_default=True, help="Folder, or OWNER/NAME."
)
@click.option(
    "--work",
    type=FOLDER,
    envvar="N4090_WORK",
    default=Path(),
    help="Work folder, for the copy of a board on the Hub [.].",
)
@click.option("--out", type=FOLDER, required=True, help="Folder for the pages; made or refreshed.")
@click.option(
    "--kwh-price",
    type=click.FloatRange(0, 999),
    default=0.30,
    show_default=True,
    help="Price of a kWh that cost begins at; readers change it on the page.",
)
@click.option("--currency", default="$", show_default=True, help="Its currency, as shown.")
def site(target: str, work: Path, out: Path, kwh_price: float, currency: str) -> None:
    """Write the static site: table, charts, a page a row.

    OUT/index.html opens from disk as it is; nothing in it is loaded from elsewhere. A static Space
    or any web server shows the folder. Rows whose files have not changed since are not verified
    again.
    """
    from rich.console import Console
    from rich.progress import Progress

    from kit.board.load import load_board
    from kit.board.site.build import build_site
    from kit.cli.submit import is_folder

    if is_folder(target):
        board = load_board(Path(target))
    else:
        from kit.board.hub import Hub, client
        from kit.board.hub_mirror import mirror_board

        hub = Hub(client(), tell=lambda text: click.echo(text, err=True))
        board = load_board(mirror_board(hub, target, work / "boards" / target.replace("/", "--")))
    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("pages", total=len(board.rows))
        built = build_site(
            board,
            out,
            currency=currency,
            kwh_price=kwh_price,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    click.echo(f"{built.rows} rows, {built.pages} pages in {out}", err=True)
    click.echo(f"next:   open {out / 'index.html'}", err=True)

"""`n4090-kit board publish` and `board rebuild`: the maintainers' commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kit.board.publish import Published

BOARD = click.option(
    "--board", "target", default="submissions", show_default=True, help="Folder, or OWNER/NAME."
)
WORK = click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="N4090_WORK",
    default=Path(),
    help="Work folder: keys, and what is remembered of unchanged files [.].",
)


@click.command()
@BOARD
@WORK
@click.option("--recheck", is_flag=True, help="Judge everything again with this kit's checks.")
@click.option("--merge", is_flag=True, help="Merge pull requests that were accepted (Hub).")
@click.option(
    "--core",
    type=click.Path(file_okay=False, path_type=Path),
    help="CORE bundle: score the weights of rows that were not scored yet.",
)
@click.option(
    "--items", type=click.IntRange(100, 100_000), default=500, show_default=True, help="For --core."
)
@click.option("--device", default="cpu", show_default=True, help="For --core: cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="What was done, as JSON.")
def publish(
    target: str,
    work: Path,
    recheck: bool,
    merge: bool,
    core: Path | None,
    items: int,
    device: str,
    as_json: bool,
) -> None:
    """Judge new submissions, reproductions and statements; write the events and the table.

    A row is ranked once the board has scored its published weights on questions drawn afterwards
    (--core DIR); until then it is shown below the ranking as self-reported.

    Submitted files are read, hashed and parsed, never executed. What was judged before and has not
    changed is not judged again.
    """
    from kit.board.layout import BOARD_FOLDER, board_root
    from kit.board.memory import SeenChains
    from kit.board.publish import publish as run_publish
    from kit.board.tree import TreeCache
    from kit.cli.board_rescore import make_scorer
    from kit.cli.submit import is_folder
    from kit.errors import PrerequisiteError

    seen = SeenChains(work / "boards" / "seen-chains.json")
    cache = TreeCache(work / "cache" / "board-trees.json")
    if not is_folder(target):
        from kit.board.hub import Hub, client
        from kit.board.hub_publish import publish_to_hub

        hub = Hub(client(), tell=_tell)
        mirror = work / "boards" / target.replace("/", "--")
        folder = mirror / BOARD_FOLDER
        scorer = make_scorer(folder, core, work, items, device) if core else None
        done = publish_to_hub(
            hub,
            target,
            mirror,
            cache=cache,
            recheck=recheck,
            merge=merge,
            scorer=scorer,
            seen=seen,
            tell=_tell,
        )
        _show(done, mirror, as_json)
        return
    if not Path(target).is_dir():
        raise PrerequisiteError(
            f"there is no folder `{target}`", hint="make it, or give another with --board"
        )
    root = board_root(Path(target))
    scorer = make_scorer(root, core, work, items, device) if core else None
    done = run_publish(root, cache=cache, recheck=recheck, scorer=scorer, seen=seen, tell=_tell)
    _show(done, root, as_json)


@click.command()
@BOARD
@click.option("--check", is_flag=True, help="Write nothing; fail if the rebuilt table differs.")
def rebuild(target: str, check: bool) -> None:
    """Derive leaderboard.jsonl and .parquet again from events and files, bit for bit."""
    import tempfile

    from kit.board.layout import Layout, board_root
    from kit.board.publish import rebuild as run_rebuild
    from kit.errors import KitError

    root = board_root(Path(target))
    if not check:
        click.echo(f"{run_rebuild(root)} rows", err=True)
        return
    with tempfile.TemporaryDirectory(prefix="n4090-rebuild-") as name:
        rows = run_rebuild(root, into=Path(name))
        for there, anew in (
            (Layout(root).leaderboard, Layout(Path(name)).leaderboard),
            (Layout(root).parquet, Layout(Path(name)).parquet),
        ):
            if not there.is_file() or there.read_bytes() != anew.read_bytes():
                raise KitError(
                    f"`{there.name}` is not what the board's events and files give",
                    hint="`board rebuild` writes it again; Parquet files name the version of "
                    "pyarrow, so compare them under the locked one",
                )
    click.echo(f"{rows} rows: the rebuilt table equals the stored one bit for bit", err=True)


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _show(done: Published, root: Path, as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {
                    "rows": done.rows,
                    "events": done.events,
                    "unchanged": done.unchanged,
                    "submissions": [
                        {
                            "id": one.path.result_id,
                            "path": str(one.path),
                            "accepted": one.accepted,
                            "reason": one.reason,
                            "checks": one.checks,
                        }
                        for one in done.new
                    ],
                    "documents": [
                        {
                            "path": one.path,
                            "accepted": one.judged.accepted,
                            "reason": one.judged.reason,
                        }
                        for one in done.documents
                    ],
                    "moved": [
                        {"id": row_id, "what": what, "to": to} for row_id, what, to in done.moved
                    ],
                },
                indent=2,
            )
        )
        return
    for one in done.documents:
        click.echo(
            f"{one.path}: {'accepted' if one.judged.accepted else 'rejected'}, {one.judged.reason}",
            err=True,
        )
    for row_id, what, to in done.moved:
        click.echo(f"{row_id}: {what} {to}", err=True)
    click.echo(
        f"{done.rows} rows, {len(done.new)} submissions judged, {done.unchanged} unchanged, "
        f"{done.events} events, in {root}",
        err=True,
    )

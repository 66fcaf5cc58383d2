"""`n4090-kit submit`: a result to the leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kit.cli.export import card_options

if TYPE_CHECKING:
    from kit.board.package import Package
    from kit.trust.keys import Signer

DEFAULT_BOARD = "n4090/leaderboard"
BOARD = click.option(
    "--board",
    "target",
    default=DEFAULT_BOARD,
    envvar="N4090_BOARD",
    show_default=True,
    help="A folder, or a dataset on the Hub (OWNER/NAME).",
)
NAME = click.option(
    "--as", "name", help="Your name on a board in a folder; the account's on the Hub."
)
YES = click.option("--yes", "-y", is_flag=True, help="Publish without asking; for scripts.")


@click.command()
@click.argument("what", metavar="RESULT", type=click.Path(path_type=Path))
@BOARD
@NAME
@click.option("--repo", help="Model repository, OWNER/NAME; by default one named by the result.")
@click.option("--no-weights", is_flag=True, help="Text only; such a row stays at tier T1.")
@click.option("--dry-run", is_flag=True, help="Show every file, size and request; send nothing.")
@YES
@card_options
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="N4090_KEY",
    help="The key that signed the run; default: that of its work folder.",
)
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON.")
def submit(
    what: Path,
    target: str,
    name: str | None,
    repo: str | None,
    no_weights: bool,
    dry_run: bool,
    yes: bool,
    key: Path | None,
    as_json: bool,
    **stated: Any,
) -> None:
    """Submit a run (folder or result.json), or a signed reproduction, to the leaderboard.

    The result is verified first. Weights, log and a model card go to your own model repository;
    the board gets a pull request of small text files, pinned to that commit. Broken off, it goes
    on where it stopped; done twice, it does nothing.
    """
    from kit.board.model_index import CardFacts
    from kit.board.package import pack, read_input
    from kit.errors import PrerequisiteError

    run, documents = read_input(what)
    folder = is_folder(target)
    if folder:
        submitter = name or (documents[0]["by"]["name"] if documents else None)
        if submitter is None:
            raise PrerequisiteError("whose submission is it?", hint="give your name with --as NAME")
    elif dry_run:
        submitter = name or "YOU"
    else:
        submitter = _account(name)
    for document in documents:
        if not dry_run and document["by"]["name"] != submitter:
            raise PrerequisiteError(
                f"the reproduction is signed as {document['by']['name']}, not {submitter}",
                hint="sign it under the name it is submitted by",
            )
    package = None
    if run is not None:
        package = pack(
            run,
            submitter,
            board=target,
            repository=repo,
            weights=not no_weights,
            documents=documents,
            facts=CardFacts(**stated),
            signer=_signer_of(run, key),
            tell=_tell,
        )
    if dry_run:
        _show_plan(package, documents, target, folder, as_json)
        return
    if folder:
        outcome = _into_folder(Path(target), package, documents)
    else:
        _confirm(package, documents, target, yes)
        outcome = _to_hub(target, package, documents, submitter)
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
    else:
        for label, value in outcome.items():
            if value is not None and label != "written":
                _tell(f"{label}: {value}")
        _tell(f"next: the maintainers' `n4090-kit board publish --board {target}` judges it")


def _signer_of(run: Path, key: Path | None) -> Signer | None:
    """The run's own key, which names the submitter; None, with a warning, where it is not here."""
    from kit.board.layout import TEXT_LIMITS
    from kit.board.load import read_document
    from kit.errors import KitError
    from kit.trust.keys import MADE_NAME, load_signer

    folder = run if run.is_dir() else run.parent
    path = key or folder.resolve().parent.parent / "keys" / MADE_NAME
    try:
        public = read_document(folder / "result.json", TEXT_LIMITS["result.json"])["submitter"]
        signer = load_signer(path)
        if signer.public_key == public["public_key"]:
            return signer
    except (KitError, OSError, KeyError, TypeError):
        if key is not None:
            raise
    _tell(
        "warning: the key that signed the run is not here, so nothing shows that the run is yours: "
        "the row will not be ranked (name the key with --key)"
    )
    return None


def is_folder(target: str) -> bool:
    """Whether a board's name means a folder: it exists, or reads as a path."""
    return Path(target).is_dir() or target.startswith((".", "/", "~")) or target.count("/") != 1


def _account(name: str | None) -> str:
    from kit.board.hub import Hub, client
    from kit.errors import PrerequisiteError

    who = Hub(client(), tell=_tell).who()
    if name is not None and name != who:
        raise PrerequisiteError(
            f"the token belongs to {who}, not {name}", hint="leave --as out, or log in as them"
        )
    return who


def _into_folder(
    path: Path, package: Package | None, documents: list[dict[str, object]]
) -> dict[str, object]:
    from kit.board.layout import board_root
    from kit.board.package import document_items
    from kit.board.submit import place, submit_to_folder
    from kit.errors import PrerequisiteError

    if not path.is_dir():
        raise PrerequisiteError(
            f"there is no folder `{path}`", hint="make it first (mkdir), or check --board"
        )
    root = board_root(path)
    if package is None:
        written = place(root, document_items(documents))
    else:
        written = submit_to_folder(root, package)
    state = f"{len(written)} files written" if written else "on the board already"
    where = str(package.path) if package else None
    return {"state": state, "submission": where, "written": written}


def _to_hub(
    board: str, package: Package | None, documents: list[dict[str, object]], submitter: str
) -> dict[str, object]:
    from kit.board.hub import Hub, client
    from kit.board.hub_submit import submit_documents, submit_to_hub

    hub = Hub(client(), tell=_tell)
    if package is not None:
        done = submit_to_hub(hub, board, package)
    else:
        done = submit_documents(hub, board, documents, submitter)
    return {
        "state": done.state,
        "model": done.model,
        "pull request": done.url or done.pull_request,
    }


def _confirm(
    package: Package | None, documents: list[dict[str, object]], board: str, yes: bool
) -> None:
    if package and package.repository:
        size = sum(item.size_bytes for item in package.model)
        _tell(f"public: {len(package.model)} files, {_size(size)}, to {package.repository}")
    _tell(f"public: a pull request on {board}")
    if not yes:
        click.confirm("Publish this?", abort=True, err=True)


def _show_plan(
    package: Package | None,
    documents: list[dict[str, object]],
    board: str,
    folder: bool,
    as_json: bool,
) -> None:
    """Every file and request, in order."""
    from kit.board.package import document_items
    from kit.core_eval.naming import is_core

    prefix = "" if folder else "submissions/"
    plan: list[dict[str, object]] = []
    if package and package.repository:
        where = f"{board}/models/{package.repository}" if folder else package.repository
        if not folder:
            plan.append({"request": f"create model repository {package.repository}"})
        plan += [
            {"to": where, "file": i.path, "bytes": i.size_bytes, "sha256": i.digest}
            for i in package.model
        ]
        if not folder:
            plan.append({"request": f"one commit to {package.repository}"})
            plan.append({"request": f"tag n4090-{package.id}"})
            if is_core(package.result["quality"]["core"]):
                plan.append({"request": f".eval_results/core.yaml to {package.repository}"})
    items = package.board_items(package.repository, None) if package else document_items(documents)
    plan += [
        {"to": board, "file": f"{prefix}{i.path}", "bytes": i.size_bytes, "sha256": i.digest}
        for i in items
    ]
    if not folder:
        plan.append({"request": f"open a pull request on {board}"})
    if as_json:
        click.echo(json.dumps(plan, indent=2))
        return
    for step in plan:
        if "request" in step:
            click.echo(f"request  {step['request']}")
        else:
            click.echo(f"{_size(int(str(step['bytes']))):>9}  {step['to']}: {step['file']}")
    _tell("dry run: nothing was sent, and the board is unchanged")


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _tell(text: str) -> None:
    click.echo(text, err=True)

"""`n4090-kit verify`, `explain` and `canon`: what can be believed of a result, and why."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from kit.trust.digest import DigestCache
    from kit.verify import Options, Report

FILE = click.Path(path_type=Path)
# What the verifier gives of its own: a slip here is no finding about the result.
THERE = click.Path(exists=True, path_type=Path)
OWN_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SHOW_PROGRESS_BYTES = 2**28
_STYLE = {"pass": "green", "fail": "bold red", "warn": "yellow", "skip": "dim"}
_TONE = {
    "consistent": "green",
    "refused": "bold red",
    "unreadable": "bold red",
    "inconclusive": "yellow",
}


@click.command()
@click.argument("result", type=FILE, required=False)
@click.option("--strict", is_flag=True, help="Reject the result for warnings as well.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the report as one HTML page.",
)
@click.option("--all", "show_all", is_flag=True, help="Also show the checks that do not apply.")
@click.option(
    "--cached",
    is_flag=True,
    help="Reuse the digests of files that have not changed since this machine hashed them.",
)
@click.option(
    "--allowed-signers",
    type=OWN_FILE,
    help="Allowed-signers file of OpenSSH: which key belongs to whom.",
)
@click.option(
    "--identities",
    type=OWN_FILE,
    help="Snapshot of the keys that accounts publish; `keys identify --out` writes one.",
)
@click.option("--revoked", type=OWN_FILE, help="List of revoked keys; `keys revoke` writes one.")
@click.option(
    "--group",
    type=THERE,
    multiple=True,
    help="Another result of the same registered group; may be repeated.",
)
@click.option(
    "--against",
    type=THERE,
    multiple=True,
    help="Compare with other results or folders of results, to find copies; may be repeated.",
)
@click.option(
    "--contamination",
    is_flag=True,
    help="Search the training shards for items of the test (needs --core, --data and pyarrow).",
)
@click.option(
    "--re-evaluate", is_flag=True, help="Score the checkpoint again on this machine (needs torch)."
)
@click.option(
    "--replay",
    type=click.IntRange(0, 100),
    default=0,
    metavar="K",
    help="Repeat K random windows of the training, from the seed and from stored snapshots.",
)
@click.option(
    "--replay-steps",
    type=click.IntRange(1, 10_000),
    default=8,
    show_default=True,
    help="Steps of each window.",
)
@click.option("--core", type=THERE, help="CORE bundle, for --re-evaluate.")
@click.option(
    "--data",
    type=THERE,
    help="Training shards of the run, for --re-evaluate, --replay and --contamination.",
)
@click.option(
    "--sft",
    type=FILE,
    help="Conversations of the run, for the same options, if pretraining read them.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="auto",
    help="Device for --re-evaluate and --replay.",
)
@click.option(
    "--explain",
    metavar="ID",
    help="Print what the check ID looks at and protects against, then exit.",
)
def verify(
    result: Path | None,
    strict: bool,
    as_json: bool,
    html: Path | None,
    show_all: bool,
    cached: bool,
    allowed_signers: Path | None,
    identities: Path | None,
    revoked: Path | None,
    group: tuple[Path, ...],
    against: tuple[Path, ...],
    contamination: bool,
    re_evaluate: bool,
    replay: int,
    replay_steps: int,
    core: Path | None,
    data: Path | None,
    sft: Path | None,
    device: str,
    explain: str | None,
) -> None:
    """Check a result: signature, log, clocks, scores, machine, files.

    RESULT is a result.json or the run folder that holds it. `verify` only reads files. It executes
    nothing from the run folder and needs no network, GPU or torch.
    """
    if explain is not None:
        show_check(explain)
        return
    if result is None:
        raise click.UsageError("name a result.json or a run folder")
    from kit.run.finished import refuse_unfinished
    from kit.verify import Options, verify_result

    refuse_unfinished(result)
    _refuse_no_result(result)
    options = Options(
        strict=strict,
        allowed_signers=allowed_signers,
        identities=identities,
        revoked=revoked,
        re_evaluate=re_evaluate,
        replay=replay,
        replay_steps=replay_steps,
        core=core,
        data=data,
        sft=sft,
        device=device,
        group=group,
        against=against,
        contamination=contamination,
    )
    _read_own_files(options)
    cache = _digest_cache() if cached else None
    with _hashing(result) as progress:
        report = verify_result(result, replace(options, progress=progress, cache=cache))
    if cache is not None:
        cache.save()
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        show(report, show_all)
    if html is not None:
        from kit.files import write_bytes
        from kit.verify.html import page

        write_bytes(html, page(report).encode())
        click.echo(f"wrote {html}", err=True)
    sys.exit(report.exit_code)


def _refuse_no_result(path: Path) -> None:
    """Refuses a path without a result: a wrong path says nothing about any result.

    Raises:
        UsageError: What the path leads to instead.
    """
    if path.is_dir() and not (path / "result.json").exists():
        problem = f"{path} holds no result.json"
    elif not path.exists() and not path.is_symlink():
        problem = f"there is no {path}"
    elif path.name == "events.jsonl":
        problem = f"{path} is the log of a run, not its result"
    else:
        return
    raise click.UsageError(
        f"{problem}; name a run folder, such as runs/RUN, or the result.json in it"
    )


def _read_own_files(options: Options) -> None:
    """Refuses what the verifier gave that cannot be read, before it counts against the result."""
    from kit.errors import KitError, SchemaError
    from kit.text import plain
    from kit.trust.allowed_signers import read_allowed_signers
    from kit.trust.identities import read_snapshot
    from kit.trust.keys import read_revoked
    from kit.verify.evidence import read_result

    if options.identities is not None:
        read_snapshot(options.identities)
    if options.allowed_signers is not None:
        read_allowed_signers(options.allowed_signers)
    if options.revoked is not None:
        revoked = read_revoked(options.revoked)
        if revoked.problems and not revoked.keys:
            raise SchemaError(
                f"{options.revoked} is not a list of revoked keys: {revoked.problems[0]}",
                hint="`n4090-kit keys revoke` writes one.",
            )
        for problem in revoked.problems:
            click.echo(f"warning: {plain(problem, 300)}", err=True)
    for path in (*options.group, *options.against):
        if path.is_file():
            try:
                read_result(path)
            except KitError as error:
                raise SchemaError(
                    f"{path} is not a valid result: {error.message}",
                    hint="Name a result.json or a folder of results.",
                ) from error


@click.command()
@click.argument("check", required=False)
@click.option("--markdown", is_flag=True, help="The list of all as a Markdown table.")
def explain(check: str | None, markdown: bool) -> None:
    """Say what a check protects against; without an ID, list all."""
    if markdown:
        from kit.verify import checks_table

        click.echo(checks_table())
        return
    show_check(check)


@click.command()
@click.argument("result", type=FILE)
def canon(result: Path) -> None:
    """Print the signed bytes of a result, for `ssh-keygen -Y verify`."""
    from kit.errors import SchemaError
    from kit.trust.canonical import parse_strict
    from kit.trust.sign import signed_bytes

    path = result / "result.json" if result.is_dir() else result
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SchemaError(f"`{path.name}` cannot be read: {error.strerror}") from error
    document = parse_strict(data, name=f"`{path.name}`")
    if not isinstance(document, dict):
        raise SchemaError(f"`{path.name}` holds no JSON object")
    sys.stdout.buffer.write(signed_bytes(document))


def _digest_cache() -> DigestCache:
    """This user's own; whoever can write it can fool `--cached`, and nobody else."""
    from kit.trust.digest import DigestCache

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return DigestCache(folder / "n4090-kit" / "digests.json")


@contextmanager
def _hashing(result: Path) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on stderr when there is much to hash and somebody to see it."""
    folder = result if result.is_dir() else result.parent
    files = [*folder.glob("checkpoints/*/*"), *folder.glob("tokenizer/*")]
    total = sum(path.stat().st_size for path in files if path.is_file())
    if total < SHOW_PROGRESS_BYTES or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("hashing", total=total)
        yield lambda count: bar.advance(task, count)


def show_check(name: str | None) -> None:
    """One check in words, or the list of all."""
    from rich.console import Console

    from kit.verify import CHECKS, check_by_id

    console = Console(highlight=False)
    if name is None:
        table = _table("check", "", "stops")
        for check in CHECKS:
            table.add_row(check.id, check.title, check.protects)
        console.print(table)
        return
    found = check_by_id(name)
    if found is None:
        ids = ", ".join(check.id for check in CHECKS)
        raise click.UsageError(f"there is no check `{name}`; there are {ids}")
    console.print(f"[bold]{found.id} {found.title}[/bold]")
    console.print(f"Stops:    {found.protects}", markup=False)
    console.print(f"Looks at: {found.looks_at}", markup=False)
    how = (found.body.__doc__ or "").strip().splitlines()
    if how:
        console.print(f"Holds if: {how[0]}", markup=False)


def show(report: Report, show_all: bool) -> None:
    """The report for people."""
    from rich.console import Console
    from rich.text import Text

    from kit.verify import check_by_id

    console = Console(highlight=False)
    if report.facts:
        facts = report.facts
        score = facts["score"] or {"name": "CORE", "value": facts["core"]}
        core = "" if score["value"] is None else f", {score['name']} {score['value']:.4f}"
        bpb = "" if facts["val_bpb"] is None else f", val_bpb {facts['val_bpb']:.4f}"
        console.print(
            f"{facts['run']}: {facts['status']}, {facts['total_s']:,.1f} s{core}{bpb}, "
            f"track {facts['track']}, id {report.result_id}",
            markup=False,
        )
    table = _table("check", "", "", "")
    hidden = 0
    for name in report.checks():
        findings = report.of(name)
        if not show_all and not report.applies(name):
            hidden += 1
            continue
        check = check_by_id(name)
        for index, finding in enumerate(findings):
            first = index == 0
            text = Text(finding.message)
            if finding.place:
                text.append(f"\nat {finding.place}", style="dim")
            if finding.expected is not None or finding.found is not None:
                text.append(f"\nexpected {finding.expected}\nfound    {finding.found}", style="dim")
            table.add_row(
                name if first else "",
                (check.title if check else "") if first else "",
                Text(
                    "missing" if finding.missing else finding.status, style=_STYLE[finding.status]
                ),
                text,
            )
    console.print(table)
    if hidden:
        console.print(f"{hidden} checks do not apply to this run (--all shows them)", style="dim")
    console.print(Text(f"{report.verdict.upper()}. {report.sentence}", _TONE[report.verdict]))


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table

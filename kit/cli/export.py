"""`n4090-kit export`: a result in other formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

RUN = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def export() -> None:
    """Write a result as DSSE, MLPerf log or model index.

    The result is verified first; one that is refused is not exported.
    """


@export.command("dsse")
@click.argument("run", type=RUN)
@click.option("--key", type=FILE, help="Key to sign with; default: that of WORK/keys.")
@click.option("--work", type=RUN, envvar="N4090_WORK", default=Path(), help="Work folder [.].")
@click.option("--public-key", type=FILE, help="Also write the public key in PEM here.")
def dsse(run: Path, key: Path | None, work: Path, public_key: Path | None) -> None:
    """An in-toto statement in a DSSE envelope, signed anew."""
    from kit.trust.export import dsse as envelope
    from kit.trust.export import public_pem
    from kit.trust.keys import load_or_create_signer

    signer = load_or_create_signer(work / "keys", key)
    click.echo(json.dumps(envelope(_checked(run), signer), indent=2))
    if public_key is not None:
        public_key.write_text(public_pem(signer))


@export.command("mllog")
@click.argument("run", type=RUN)
@click.option("--benchmark", default="n4090", help="MLPerf benchmark name to file it under.")
def mllog(run: Path, benchmark: str) -> None:
    """The event log in MLPerf's vocabulary (:::MLLOG lines)."""
    from kit.trust.export import mllog as lines

    result = _checked(run)
    folder = run if run.is_dir() else run.parent
    for line in lines(folder, result, benchmark):
        click.echo(line)


@export.command("model-index")
@click.argument("run", type=RUN)
def model_index(run: Path) -> None:
    """YAML front matter for a model card."""
    from kit.trust.export import model_index as front_matter

    sys.stdout.write(front_matter(_checked(run)))


def _checked(run: Path) -> dict[str, Any]:
    """The result at `run`, when no check refuses it."""
    from kit.errors import KitError
    from kit.verify import verify_result

    report = verify_result(run)
    if report.verdict in ("refused", "unreadable"):
        first = next(finding for finding in report.findings if finding.status == "fail")
        raise KitError(
            f"the result is {report.verdict} by {', '.join(report.refused_by)}: {first.message}",
            hint="`n4090-kit verify` shows all findings",
        )
    path = run / "result.json" if run.is_dir() else run
    result: dict[str, Any] = json.loads(path.read_text())
    return result

"""`n4090-kit export`: a model or a result for other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

RUN = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def card_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for what a model card states beside the result."""
    for option in (
        click.option("--license", help="The model's licence [that of a known corpus]."),
        click.option("--language", help="Language of the text, ISO 639 [of a known corpus]."),
        click.option(
            "--grid-co2",
            "grid_g_per_kwh",
            type=click.FloatRange(0, 2000),
            envvar="N4090_GRID_CO2",
            help="Grams of CO2 a kWh causes here [the world's mean].",
        ),
    ):
        command = option(command)
    return command


@click.group()
def export() -> None:
    """Write a model for other programs, or a result in other formats.

    A result is verified first; one that is refused is not exported.
    """


@export.command("model")
@click.argument("run", type=RUN)
@click.option(
    "--format",
    "form",
    type=click.Choice(["hf", "gguf"]),
    default="hf",
    show_default=True,
    help="hf: transformers. gguf: llama.cpp and Ollama.",
)
@click.option("--out", type=RUN, help="Folder to write; default: `hf` or `gguf` in RUN.")
@click.option(
    "--part",
    type=click.Choice(["auto", "chat", "base"]),
    default="auto",
    show_default=True,
    help="Which model of the run; auto: the chat model if there is one.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the stored weights; auto: what training computed in.",
)
@click.option("--push", metavar="REPO", help="Upload to this model repository of the Hub.")
def model(run: Path, form: str, out: Path | None, part: str, dtype: str, push: str | None) -> None:
    """The model of RUN as a folder that other programs load.

    hf: safetensors, fast tokenizer, chat template and, where no class of transformers computes the
    same, modelling code that is loaded with trust_remote_code.

    gguf: model.gguf and a Modelfile. Only for recipes whose model llama.cpp can compute; others
    are refused with the recipe lines that would do.
    """
    from kit.board.push_model import check_token, push_folder
    from kit.model_export import export_model, find_source, usage

    source = find_source(run, part)
    if part == "auto" and not source.chat:
        _tell("exporting the base model, which continues text: this run has no chat model")
    name = run.resolve().name
    if push is not None:
        check_token()
    with TemporaryDirectory() as scratch:
        # What is only to be pushed leaves nothing here, so that a failed push can be repeated.
        if out is None:
            out = run / form if push is None else Path(scratch) / form
        files = export_model(source, out, form, name=name, dtype=dtype)
        if push is not None:
            click.echo(push_folder(out, push, chat=source.chat, tell=_tell))
        if not out.is_relative_to(scratch):
            for file in files:
                click.echo(f"{out / file}")
    place = str(out) if push is None else push
    remote = any(file.endswith(".py") for file in files)
    if form == "hf":
        lines = usage(f'"{place}"', chat=source.chat, remote_code=remote)
    elif push is not None:
        lines = f"ollama run hf.co/{push}\n"
    else:
        lines = (
            f"llama-cli -m {out / 'model.gguf'}\n"
            f"ollama create {name.lower()} -f {out / 'Modelfile'}\n"
        )
    click.echo(f"\n{lines}", err=True, nl=False)


def _tell(text: str) -> None:
    click.echo(text, err=True)


@export.command("dsse")
@click.argument("run", type=RUN)
@click.option("--key", type=FILE, help="Key to sign with; default: that of WORK/keys.")
@click.option("--work", type=RUN, envvar="N4090_WORK", default=Path(), help="Work folder [.].")
@click.option("--public-key", type=FILE, help="Also write the public key in PEM here.")
def dsse(run: Path, key: Path | None, work: Path, public_key: Path | None) -> None:
    """An in-toto statement in a DSSE envelope, with a new signature."""
    from kit.export_formats import dsse as envelope
    from kit.export_formats import public_pem
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
    from kit.export_formats import mllog as lines

    result = _checked(run)
    folder = run if run.is_dir() else run.parent
    for line in lines(folder, result, benchmark):
        click.echo(line)


@export.command("model-index")
@click.argument("run", type=RUN)
@card_options
def model_index(run: Path, **stated: Any) -> None:
    """YAML front matter for a model card."""
    from kit.board.model_index import CardFacts
    from kit.board.model_index import model_index as front_matter

    sys.stdout.write(front_matter(_checked(run), CardFacts(**stated)))


@export.command("eee")
@click.argument("run", type=RUN)
@click.option("--by", "developer", required=True, help="Who trained the model: a name on the Hub.")
@click.option("--out", type=RUN, default=Path(), help="Folder for the files [.].")
@click.option("--core", type=RUN, help="The run's questions; adds one line an item.")
def eee(run: Path, developer: str, out: Path, core: Path | None) -> None:
    """An evaluation file of Every Eval Ever 0.3.0."""
    from kit.board.eee import export_eee

    result = _checked(run)
    folder = run if run.is_dir() else run.parent
    for path in export_eee(folder, result, out, developer=developer, core=core):
        click.echo(path)
    if core is None:
        click.echo("note: no line an item; --core DIR adds them", err=True)


def _checked(run: Path) -> dict[str, Any]:
    """The result at `run`, when no check refuses it."""
    from kit.errors import KitError
    from kit.run.finished import refuse_unfinished
    from kit.verify import verify_result

    refuse_unfinished(run)
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

"""`n4090-kit doctor`: what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from kit.cli import doctor_container
from kit.cli.look import Look
from kit.image import in_image
from kit.run import preflight


@click.command()
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="N4090_WORK",
    default=Path(),
    help="Work folder [.].",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(work: Path, as_json: bool) -> None:
    """Say what this machine can run and what is missing."""
    from rich.console import Console
    from rich.markup import escape  # an extra's brackets are no markup
    from rich.table import Table

    gpus = _gpu()
    looks = [*_interpreter(), *_packages(), *_host(work.resolve()), *gpus]
    if in_image():
        looks += doctor_container.inside(work.resolve())
    else:
        looks += doctor_container.outside(gpu_seen=gpus[0].state == "ok")
    verdicts = _verdicts(work.resolve())
    if as_json:
        click.echo(
            json.dumps({"looks": [vars(look) for look in looks], "recipes": verdicts}, indent=2)
        )
        return
    console = Console()
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for look in looks:
        remedy = f"[dim]{escape(look.remedy)}[/]" if look.remedy else ""
        table.add_row(marks[look.state], look.name, escape(look.found), remedy)
    console.print(table)
    console.print()
    for why, names in _by_reason(verdicts).items():
        console.print(f"[red]cannot run[/]  {', '.join(names)}: {escape(why)}", highlight=False)
    for name, verdict in verdicts.items():
        if verdict["can_run"] and verdict["to_fetch"]:
            first = f"after `n4090-kit prepare --recipe {name}`: {', '.join(verdict['to_fetch'])}"
            console.print(f"[yellow]can run[/]     {name} {first}", highlight=False)
        elif verdict["can_run"]:
            console.print(f"[green]can run[/]     {name}", highlight=False)


def _by_reason(verdicts: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The recipes that cannot run, by what stands in their way: each reason is said once."""
    found: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        if not verdict["can_run"]:
            found.setdefault("; ".join(verdict["why"]), []).append(name)
    return found


def _interpreter() -> list[Look]:
    return [Look("Python", "ok", platform.python_version())]


def _packages() -> list[Look]:
    looks = []
    for name, why in (
        ("torch", "training and evaluation"),
        ("rustbpe", "tokenizer"),
        ("pyarrow", "reading shards"),
        ("huggingface-hub", "prepare, submit"),
        ("nvidia-ml-py", "GPU facts"),
        ("docker", "launching containers"),
    ):
        extra = "container" if name == "docker" else "train"
        try:
            looks.append(Look(name, "ok", version(name)))
        except PackageNotFoundError:
            looks.append(
                Look(
                    name,
                    "note",
                    f"not installed ({why})",
                    f"in the checkout: pip install '.[{extra}]'",
                )
            )
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler:
        looks.append(Look("C++ compiler", "ok", Path(compiler).name))
    else:
        looks.append(
            Look(
                "C++ compiler", "note", "none", "install g++: torch.compile speeds up CPU training"
            )
        )
    keygen = shutil.which("ssh-keygen")
    looks.append(
        Look("ssh-keygen", "ok", "found")
        if keygen
        else Look(
            "ssh-keygen", "note", "none", "install openssh-client to sign with an agent's key"
        )
    )
    return looks


def _host(work: Path) -> list[Look]:
    folder = work
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    writable = os.access(folder, os.W_OK)
    looks = [Look("cores", "ok", str(len(os.sched_getaffinity(0))))]
    looks.append(
        Look("work folder", "ok", f"{free:.0f} GiB free")
        if writable
        else Look("work folder", "missing", "cannot be written", "name another with --work")
    )
    return looks


def _gpu() -> list[Look]:
    from kit.hardware import gpu_facts

    facts = gpu_facts()
    if not facts["gpus"]:
        reason = facts["reasons"].get("gpus", "none listed")
        remedy = "recipe `reference` needs one: check `nvidia-smi`; "
        remedy += "start a container with --gpus device=0"
        return [Look("GPU", "note", f"none seen: {reason}", remedy)]
    looks = []
    for gpu in facts["gpus"]:
        memory = gpu.get("memory_bytes")
        size = f", {memory / 2**30:.0f} GiB" if memory else ""
        looks.append(Look("GPU", "ok", f"{gpu.get('name')}{size}"))
    if len(looks) > 1:
        remedy = "CUDA_VISIBLE_DEVICES=0, or --gpus device=0 for a container"
        looks.append(Look("one GPU", "missing", f"{len(looks)} are visible", remedy))
    lacks = preflight.cuda_problems(facts["driver"], facts["cuda_driver"])
    looks += [Look("driver", "missing", lack.what, lack.remedy) for lack in lacks]
    if not lacks:
        looks.append(Look("driver", "ok", f"{facts['driver']}, CUDA {facts['cuda_driver']}"))
    others = sum(gpu.get("foreign_processes") or 0 for gpu in facts["gpus"])
    if others:
        looks.append(Look("GPU alone", "missing", f"{others} other processes use it", "end them"))
    return looks


def _verdicts(work: Path) -> dict[str, dict[str, Any]]:
    """For each named recipe whether it could start here."""
    from kit.errors import KitError
    from kit.prepare.inputs import missing_inputs
    from kit.recipe import load_recipe, named_recipes

    verdicts: dict[str, dict[str, Any]] = {}
    for name in named_recipes():
        try:
            recipe = load_recipe(name)
            lacks = [
                *preflight.missing_packages(recipe),
                *preflight.folder_problems(work, preflight.needed_bytes(recipe)),
                *preflight.volume_problems(recipe, work),
                *preflight.device_problems(recipe, recipe.document["device"]),
            ]
            why = [f"{lack.what} ({lack.remedy})" for lack in lacks]
            made = recipe.section("data")["kind"] == "stories"
            absent = [] if made else missing_inputs(recipe, work, {})
        except KitError as error:
            why, absent = [error.message], []
        verdicts[name] = {"can_run": not why, "why": why, "to_fetch": absent}
    return verdicts

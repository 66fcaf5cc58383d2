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
from kit.cli.doctor_item import DoctorItem
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
    items = [*_interpreter(), *_packages(), *_host(work.resolve()), *gpus]
    if in_image():
        items += doctor_container.inside(work.resolve())
    else:
        items += doctor_container.outside(gpu_seen=gpus[0].state == "ok")
    verdicts = _verdicts(work.resolve())
    if as_json:
        click.echo(
            json.dumps({"looks": [vars(item) for item in items], "recipes": verdicts}, indent=2)
        )
        return
    console = Console()
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for item in items:
        remedy = f"[dim]{escape(item.remedy)}[/]" if item.remedy else ""
        table.add_row(marks[item.state], item.name, escape(item.found), remedy)
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


def _interpreter() -> list[DoctorItem]:
    return [DoctorItem("Python", "ok", platform.python_version())]


def _packages() -> list[DoctorItem]:
    items = []
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
            items.append(DoctorItem(name, "ok", version(name)))
        except PackageNotFoundError:
            items.append(
                DoctorItem(
                    name,
                    "note",
                    f"not installed ({why})",
                    f"in the checkout: pip install '.[{extra}]'",
                )
            )
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler:
        items.append(DoctorItem("C++ compiler", "ok", Path(compiler).name))
    else:
        items.append(
            DoctorItem(
                "C++ compiler", "note", "none", "install g++: torch.compile speeds up CPU training"
            )
        )
    keygen = shutil.which("ssh-keygen")
    items.append(
        DoctorItem("ssh-keygen", "ok", "found")
        if keygen
        else DoctorItem(
            "ssh-keygen", "note", "none", "install openssh-client to sign with an agent's key"
        )
    )
    return items


def _host(work: Path) -> list[DoctorItem]:
    folder = work
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    writable = os.access(folder, os.W_OK)
    items = [DoctorItem("cores", "ok", str(len(os.sched_getaffinity(0))))]
    items.append(
        DoctorItem("work folder", "ok", f"{free:.0f} GiB free")
        if writable
        else DoctorItem("work folder", "missing", "cannot be written", "name another with --work")
    )
    return items


def _gpu() -> list[DoctorItem]:
    from kit.hardware import gpu_facts

    facts = gpu_facts()
    if not facts["gpus"]:
        reason = facts["reasons"].get("gpus", "none listed")
        remedy = "recipe `reference` needs one: check `nvidia-smi`; "
        remedy += "start a container with --gpus device=0"
        return [DoctorItem("GPU", "note", f"none seen: {reason}", remedy)]
    items = []
    for gpu in facts["gpus"]:
        memory = gpu.get("memory_bytes")
        size = f", {memory / 2**30:.0f} GiB" if memory else ""
        items.append(DoctorItem("GPU", "ok", f"{gpu.get('name')}{size}"))
    if len(items) > 1:
        remedy = "CUDA_VISIBLE_DEVICES=0, or --gpus device=0 for a container"
        items.append(DoctorItem("one GPU", "missing", f"{len(items)} are visible", remedy))
    lacks = preflight.cuda_problems(facts["driver"], facts["cuda_driver"])
    items += [DoctorItem("driver", "missing", lack.what, lack.remedy) for lack in lacks]
    if not lacks:
        items.append(DoctorItem("driver", "ok", f"{facts['driver']}, CUDA {facts['cuda_driver']}"))
    others = sum(gpu.get("foreign_processes") or 0 for gpu in facts["gpus"])
    if others:
        items.append(
            DoctorItem("GPU alone", "missing", f"{others} other processes use it", "end them")
        )
    return items


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

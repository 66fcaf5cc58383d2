"""`n4090-kit doctor`: what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from kit.run.image import CODE_TREE_VARIABLE, changed_code, describe_image


@dataclass(frozen=True)
class Look:
    """One thing looked at: fine, worth knowing, or missing."""

    name: str
    state: str  # ok, note, missing
    found: str
    remedy: str = ""


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

    looks = [*_interpreter(), *_packages(), *_host(work.resolve()), *_gpu(), *_container()]
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
    for name, verdict in verdicts.items():
        if verdict["can_run"]:
            console.print(f"[green]can run[/]     {name}", highlight=False)
        else:
            console.print(
                f"[red]cannot run[/]  {name}: {escape('; '.join(verdict['why']))}", highlight=False
            )


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
                Look(name, "note", f"not installed ({why})", f"install n4090-kit[{extra}]")
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
        remedy = "needed for recipe `reference`; in a container start with --gpus all"
        return [
            Look("GPU", "note", f"none seen: {facts['reasons'].get('gpus', 'none listed')}", remedy)
        ]
    looks = []
    for gpu in facts["gpus"]:
        memory = gpu.get("memory_bytes")
        size = f", {memory / 2**30:.0f} GiB" if memory else ""
        looks.append(Look("GPU", "ok", f"{gpu.get('name')}{size}"))
    if len(looks) > 1:
        looks.append(
            Look(
                "one GPU",
                "missing",
                f"{len(looks)} are visible",
                "CUDA_VISIBLE_DEVICES=0 shows one",
            )
        )
    return looks


def _container() -> list[Look]:
    if CODE_TREE_VARIABLE in os.environ:
        return _inside()
    docker = shutil.which("docker")
    if not docker:
        return [Look("docker", "note", "no client", "needed only to run in the pinned container")]
    answers = Path("/var/run/docker.sock").exists() or "DOCKER_HOST" in os.environ
    if answers:
        return [Look("docker", "ok", "client and an engine's socket")]
    return [Look("docker", "note", "client, but no engine answers", "start the Docker engine")]


def _inside() -> list[Look]:
    """What only matters in the kit's image."""
    from kit.run.separation import USER_VARIABLE, missing_capabilities, trainer_user

    changed = changed_code()
    looks = [
        Look("image's code", "missing", f"changed: {changed[0]}", "build the image anew")
        if changed
        else Look("image's code", "ok", "as built")
    ]
    image = describe_image()
    looks.append(
        Look("image's digest", "ok", str(image["digest"]))
        if image["digest"]
        else Look(
            "image's digest",
            "note",
            str(image["reason"]),
            "`n4090-kit launch` passes it in, or -e N4090_IMAGE_DIGEST=sha256:…",
        )
    )
    if trainer_user():
        looks.append(Look("separate trainer", "ok", os.environ[USER_VARIABLE]))
    elif USER_VARIABLE in os.environ:
        lacking = missing_capabilities()
        why = f"without {', '.join(lacking)}" if lacking else "not started as root"
        add = " ".join(f"--cap-add {name}" for name in lacking)
        looks.append(
            Look("separate trainer", "note", f"supervisor and trainer are one user: {why}", add)
        )
    return looks


def _verdicts(work: Path) -> dict[str, dict[str, Any]]:
    """For each named recipe whether it could start here."""
    from kit.errors import KitError
    from kit.recipe import load_recipe, named_recipes
    from kit.run import preflight

    verdicts: dict[str, dict[str, Any]] = {}
    for name in named_recipes():
        try:
            recipe = load_recipe(name)
            lacks = [
                *preflight.missing_packages(recipe),
                *preflight.folder_problems(work, preflight.needed_bytes(recipe)),
                *preflight.device_problems(recipe, recipe.document["device"]),
            ]
            why = [f"{lack.what} ({lack.remedy})" for lack in lacks]
        except KitError as error:
            why = [error.message]
        verdicts[name] = {"can_run": not why, "why": why}
    return verdicts

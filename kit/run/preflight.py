"""What has to be right before a clock is started. All problems are named at once."""

from __future__ import annotations

import os
import shutil
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kit.errors import PrerequisiteError
from kit.image import in_image
from kit.recipe import Recipe
from kit.run.separation import trainer_user
from kit.tracks import is_ranked

# Space for checkpoints, token caches and logs, beside what the recipe's own plan says.
_BASE_BYTES = 256 * 2**20
_TRAINER_PACKAGES = ("torch", "numpy", "pyarrow", "safetensors", "tiktoken", "rustbpe", "psutil")


@dataclass(frozen=True)
class Lack:
    """Something missing, and how to get it."""

    what: str
    remedy: str


def check(recipe: Recipe, work: Path, *, device: str) -> None:
    """Refuses to begin a run that cannot end well.

    Raises:
        PrerequisiteError: Everything that is missing, each with its remedy.
    """
    lacks = [
        *missing_packages(recipe),
        *folder_problems(work, needed_bytes(recipe)),
        *volume_problems(recipe, work),
        *device_problems(recipe, device),
    ]
    if lacks:
        raise PrerequisiteError(
            f"this machine cannot run recipe `{recipe.name}` yet:\n"
            + "\n".join(f"  {lack.what}: {lack.remedy}" for lack in lacks),
            hint="`n4090-kit doctor` shows everything that was looked at.",
        )


def missing_packages(recipe: Recipe) -> list[Lack]:
    """Packages the reference trainer needs and this interpreter lacks."""
    if not _by_reference(recipe):
        return []
    missing = [name for name in _TRAINER_PACKAGES if find_spec(name) is None]
    if not missing:
        return []
    return [Lack(f"packages {', '.join(missing)}", "in the checkout: pip install '.[train]'")]


def folder_problems(work: Path, needed: int) -> list[Lack]:
    """Whether the work folder can be written, also by the trainer, and has `needed` bytes left."""
    folder = work
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        remedy = "name another with --work DIR; in a container, mount one: -v n4090:/work"
        return [Lack("the work folder cannot be written", remedy)]
    user = trainer_user()
    barred = user.barred_from(folder) if user else None
    if user and barred:
        what = f"the trainer, who is user `{user.name}`, may not enter {barred}"
        return [Lack(what, "`chmod o+x` the folder that is mounted there, or mount a volume")]
    free = shutil.disk_usage(folder).free
    if free < needed:
        return [
            Lack(
                f"{free / 2**30:.1f} GiB free in the work folder, {needed / 2**30:.1f} GiB needed",
                "free some space, or name another folder with --work DIR",
            )
        ]
    return []


def volume_problems(recipe: Recipe, work: Path) -> list[Lack]:
    """Whether a day's work in the image's own work folder would outlive its container."""
    if recipe.track == "smoke" or work != Path(os.environ.get("N4090_WORK", "")):
        return []
    if not in_image() or is_mounted(work):
        return []
    remedy = "mount a volume: -v n4090:/work; or name a folder that stays with --work DIR"
    return [Lack(f"nothing is mounted at {work}: a result would go with the container", remedy)]


def is_mounted(folder: Path) -> bool:
    """Whether `folder` lies on another file system than the root."""
    return folder.stat().st_dev != Path("/").stat().st_dev


def device_problems(recipe: Recipe, device: str) -> list[Lack]:
    """Whether the GPU the recipe needs is there, alone and free, and its driver new enough."""
    if device in ("cpu", "mps") or (device == "auto" and not is_ranked(recipe.track)):
        return []
    from kit.hardware import gpu_facts

    facts = gpu_facts()
    gpus = facts["gpus"]
    if not gpus:
        return [
            Lack(
                f"no NVIDIA GPU can be seen ({facts['reasons'].get('gpus', 'none listed')})",
                "check `nvidia-smi`; start a container with --gpus device=0",
            )
        ]
    lacks = []
    if len(gpus) > 1:
        lacks.append(
            Lack(
                f"{len(gpus)} GPUs can be seen",
                "show one: CUDA_VISIBLE_DEVICES=0, or --gpus device=0 for a container",
            )
        )
    lacks += cuda_problems(facts["driver"], facts["cuda_driver"])
    others = sum(gpu.get("foreign_processes") or 0 for gpu in gpus)
    if others:
        lacks.append(Lack(f"{others} other processes use the GPU", "end them first (`nvidia-smi`)"))
    plan = estimate(recipe)
    total = gpus[0].get("memory_bytes")
    # A micro-batch that does not fit is halved by the trainer: only the smallest has to.
    planned = plan["micro_batch"]["smallest_vram_bytes"] if plan else 0
    if total and planned > total:
        lacks.append(
            Lack(
                f"one sequence at a time takes {planned / 2**30:.1f} GiB of GPU memory, "
                f"the card has {total / 2**30:.1f} GiB",
                "choose a smaller model or a shorter model.seq_len",
            )
        )
    return lacks


def cuda_problems(driver: str | None, cuda_driver: str | None) -> list[Lack]:
    """Whether torch as installed can use this driver; torch itself is not imported.

    Args:
        driver: Version of the driver, such as 580.65.06.
        cuda_driver: The newest CUDA it serves, such as 13.0.
    """
    try:
        torch = version("torch")
    except PackageNotFoundError:
        return []  # said elsewhere
    lacks = []
    if torch.endswith("+cpu"):
        remedy = "install it with CUDA: requirements/cuda.lock"
        lacks.append(Lack(f"torch {torch} cannot use a GPU", remedy))
    try:
        # A driver serves every CUDA of its own major version and all before.
        needed = int(version("nvidia-cuda-runtime").split(".")[0])
    except PackageNotFoundError:
        return lacks
    if cuda_driver is not None and int(cuda_driver.split(".")[0]) < needed:
        remedy = "install a newer one (580 or later serves CUDA 13) and restart"
        lacks.append(
            Lack(f"driver {driver} serves CUDA {cuda_driver}, torch needs {needed}", remedy)
        )
    return lacks


def needed_bytes(recipe: Recipe) -> int:
    """Disk a run of this recipe takes at most: two checkpoints with optimizer state, and a base."""
    plan = estimate(recipe)
    parameters = int(plan["parameters"]["total"]) if plan else 0
    return _BASE_BYTES + parameters * 4 * 8


def estimate(recipe: Recipe) -> dict[str, Any] | None:
    """Parameters, FLOPs, memory and hours as the recipe's trainer plans them, if it does.

    A recipe with a command of its own may say nothing of a model. The defaults that are filled in
    then describe a model that its command does not train, so there is no plan.
    """
    if recipe.trainer is None:
        return None
    if not _by_reference(recipe) and not {"model", "pretrain"} & set(tomllib.loads(recipe.text)):
        return None
    return recipe.trainer.estimate(recipe.document)


def _by_reference(recipe: Recipe) -> bool:
    command: list[str] = recipe.section("trainer")["command"]
    return command[:3] == ["python", "-m", "reference"]

"""What `doctor` looks at for containers: outside the engine, inside the kit's image itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from kit.cli.doctor_item import DoctorItem
from kit.errors import LaunchError
from kit.image import changed_code, describe_image
from kit.run.preflight import is_mounted

_CGROUP_LIMITS = (  # of cgroup v2, and v1, which says "none" by a number of its own
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_NO_LIMIT_BYTES = 2**60
_SHM_BYTES = 2**30  # data loaders fill the 64 MB that a container gets by default
_CDI = (Path("/etc/cdi"), Path("/var/run/cdi"))


def outside(gpu_seen: bool) -> list[DoctorItem]:
    """Engine, toolkit and image, as `launch` would find them.

    Args:
        gpu_seen: Whether this machine has a GPU that a container could be given.
    """
    from kit import launcher

    try:
        client = launcher.connect()
    except LaunchError as error:
        return [
            DoctorItem(
                "container engine", "note", f"{error.message} (for `launch` only)", _first(error)
            )
        ]
    version = client.version()
    kind = "Podman" if launcher.is_podman(client) else "Docker"
    items = [DoctorItem("container engine", "ok", f"{kind} {version['Version']}")]
    if gpu_seen:
        items.append(_toolkit(client.info(), podman=kind == "Podman"))
    try:
        image = launcher.find_image(client, launcher.IMAGE)
        items.append(DoctorItem("image", "ok", f"{launcher.IMAGE}, {image.digest[:19]}…"))
    except LaunchError as error:
        items.append(DoctorItem("image", "note", error.message, _first(error)))
    return items


def inside(work: Path) -> list[DoctorItem]:
    """What only matters in the kit's image."""
    changed = changed_code()
    items = [
        DoctorItem("image's code", "missing", f"changed: {changed[0]}", "build the image again")
        if changed
        else DoctorItem("image's code", "ok", "as built")
    ]
    image = describe_image()
    items.append(
        DoctorItem("image's digest", "ok", str(image["digest"]))
        if image["digest"]
        else DoctorItem(
            "image's digest",
            "note",
            str(image["reason"]),
            "`n4090-kit launch` passes it in, or --env N4090_IMAGE_DIGEST=sha256:…",
        )
    )
    items.append(_separation())
    items.append(
        DoctorItem("volume", "ok", f"mounted at {work}")
        if work.exists() and is_mounted(work)
        else DoctorItem("volume", "missing", f"nothing is mounted at {work}", "-v n4090:/work")
    )
    shm = shutil.disk_usage("/dev/shm").total
    items.append(
        DoctorItem("shared memory", "ok", f"{shm / 2**30:.1f} GiB")
        if shm >= _SHM_BYTES
        else DoctorItem("shared memory", "note", f"{shm / 2**20:.0f} MiB", "--shm-size 8g")
    )
    items.append(DoctorItem("memory limit", "ok", _memory_limit()))
    online = any(path.name != "lo" for path in Path("/sys/class/net").iterdir())
    items.append(
        DoctorItem(
            "network", "note", "there is one", "only `prepare` needs it: --network none for a run"
        )
        if online
        else DoctorItem("network", "ok", "none, as a run should have it; `prepare` needs one")
    )
    return items


def _separation() -> DoctorItem:
    from kit.run.separation import USER_VARIABLE, missing_capabilities, trainer_user

    if trainer_user():
        return DoctorItem("separate trainer", "ok", os.environ[USER_VARIABLE])
    lacking = missing_capabilities()
    why = f"without {', '.join(lacking)}" if lacking else "not started as root"
    add = " ".join(f"--cap-add {name}" for name in lacking)
    if USER_VARIABLE not in os.environ:
        why, add = f"{USER_VARIABLE} is not set", "this image only verifies; run in n4090-kit"
    return DoctorItem(
        "separate trainer", "note", f"supervisor and trainer are one user: {why}", add
    )


def _toolkit(info: dict[str, Any], *, podman: bool) -> DoctorItem:
    """Whether the engine could give a container a GPU: Podman by CDI, Docker in three ways."""
    name = "container toolkit"
    if any(found for folder in _CDI for found in folder.glob("*nvidia*")):
        return DoctorItem(name, "ok", "CDI")
    if not podman:
        for runtime in info.get("Runtimes") or {}:
            if "nvidia" in runtime:
                return DoctorItem(name, "ok", f"runtime {runtime}")
        if shutil.which("nvidia-container-runtime-hook"):
            return DoctorItem(name, "ok", "hook nvidia-container-runtime-hook")
    configure = (
        "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"
        if podman
        else "`sudo nvidia-ctk runtime configure --runtime=docker`, restart Docker"
    )
    remedy = f"install nvidia-container-toolkit, {configure}"
    return DoctorItem(name, "missing", "the engine cannot give a container a GPU", remedy)


def _memory_limit() -> str:
    for path in _CGROUP_LIMITS:
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        if limit == "max" or int(limit) >= _NO_LIMIT_BYTES:
            return "none"
        return f"{int(limit) / 2**30:.1f} GiB"
    return "unknown"


def _first(error: LaunchError) -> str:
    """The beginning of an error's hint, for a table."""
    return (error.hint or "").split(";")[0].rstrip(".")

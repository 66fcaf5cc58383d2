"""The documented `docker run`: one description of the container, as a line to type and for the SDK.

Strict by default: no network, a read-only root, no capabilities but the five that keep the trainer
apart from the supervisor (kit/run/separation.py), inputs read-only, one GPU, and the image by its
digest, which the container is told because it cannot see it itself.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kit.errors import LaunchError
from kit.image import DIGEST_VARIABLE
from kit.run.separation import CAPABILITIES

IMAGE = "n4090-kit"
VOLUME = "n4090"
WORK = "/work"
LABEL = "org.n4090-kit.launched"
_SYNTAX = re.compile(r"[:,\"]")  # signs that mean something in --volume and --mount
STOP_TIMEOUT_S = 90  # the trainer saves and ends, the machine is measured again, the result signed
PIDS = 4096
SHM_BYTES = 8 * 2**30
TMP_BYTES = 4 * 2**30
# What the engine answers -> what is wrong, and what to do. First match wins.
_REFUSALS: tuple[tuple[str, str, str], ...] = (
    (
        r"could not select device driver|unresolvable CDI devices|nvidia-container-runtime.* not ",
        "the engine cannot give a container a GPU: the NVIDIA container toolkit is missing",
        "Install nvidia-container-toolkit, then `sudo nvidia-ctk runtime configure "
        "--runtime=docker` and restart Docker; or run a recipe for the CPU with --gpu none.",
    ),
    (
        r"unknown device|no such device|device error",
        "the engine does not know this GPU",
        "`nvidia-smi -L` lists them; name one with --gpu NUMBER.",
    ),
    (
        r"driver/library version mismatch|libnvidia-ml|nvml error|driver not loaded|"
        r"unsatisfied condition: cuda|initialization error",
        "the NVIDIA driver is missing or too old for CUDA 13",
        "Install driver 580 or later and restart; `nvidia-smi` must work first.",
    ),
    (
        r"bind source path does not exist|no such file or directory.*mount",
        "a folder to mount does not exist",
        "Check the folders after --data, --core, --sft and --chat-eval.",
    ),
    (r"no space left on device", "the engine's disk is full", "`docker system df` shows by what."),
)


class Image(NamedTuple):
    """An image by what cannot move: pulled ones by digest, ones built here by id."""

    reference: str
    digest: str


@dataclass(frozen=True)
class Container:
    """What is run, and what it may touch."""

    image: str
    command: tuple[str, ...]
    work: str = VOLUME  # name of a volume, or an absolute folder
    digest: str | None = None
    inputs: tuple[tuple[str, str], ...] = ()  # (folder here, folder there), read-only
    gpu: str | None = None
    network: str = "none"
    memory: str | None = None
    tty: bool = False
    podman: bool = False  # the line is for Podman's command

    @property
    def mounts(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.work, WORK, "rw"), *((here, there, "ro") for here, there in self.inputs))

    @property
    def environment(self) -> dict[str, str]:
        return {DIGEST_VARIABLE: self.digest} if self.digest else {}

    @property
    def tmpfs(self) -> dict[str, str]:
        return {"/tmp": f"rw,nosuid,nodev,exec,size={TMP_BYTES},mode=1777"}


def docker_run(container: Container) -> list[str]:
    """The `docker run` or `podman run` line, one argument an item."""
    line = ["podman" if container.podman else "docker", "run", "--rm", "--interactive"]
    if container.tty:
        line.append("--tty")
    line += ["--network", container.network, "--read-only", "--cap-drop", "ALL"]
    for name in CAPABILITIES:
        line += ["--cap-add", name]
    line += ["--security-opt", "no-new-privileges", "--pids-limit", str(PIDS)]
    line += ["--shm-size", str(SHM_BYTES), "--stop-timeout", str(STOP_TIMEOUT_S)]
    for path, options in container.tmpfs.items():
        line += ["--tmpfs", f"{path}:{options}"]
    if container.memory:
        line += ["--memory", container.memory, "--memory-swap", container.memory]
    if container.gpu is not None:
        cdi = ["--device", f"nvidia.com/gpu={container.gpu}"]
        line += cdi if container.podman else ["--gpus", f"device={container.gpu}"]
    for name, value in container.environment.items():
        line += ["--env", f"{name}={value}"]
    for here, there, mode in container.mounts:
        line += _mount_option(here, there, mode)
    return [*line, container.image, *container.command]


def _mount_option(here: str, there: str, mode: str) -> list[str]:
    """`--volume`, or for a path with signs of its syntax `--mount`, whose fields are CSV."""
    if not _SYNTAX.search(here):
        return ["--volume", f"{here}:{there}:{mode}"]
    fields = ["type=bind", f"source={here}", f"target={there}"]
    fields += ["readonly"] if mode == "ro" else []
    quoted = ['"' + f.replace('"', '""') + '"' if set(f) & set(',"') else f for f in fields]
    return ["--mount", ",".join(quoted)]


def check_paths(container: Container) -> None:
    """Refuses what no option of an engine can carry, before anything is started.

    Raises:
        LaunchError: With the path.
    """
    for here, there, _ in container.mounts:
        for path in (here, there):
            if any(ord(sign) < 32 or ord(sign) == 127 for sign in path):
                raise LaunchError(
                    f"{path!r} holds a line break or another control character",
                    hint="No container engine takes such a path: rename the folder.",
                )
            if path == there and _SYNTAX.search(path):
                raise LaunchError(
                    f"the recipe's name {path!r} holds one of : , \"",
                    hint="Rename the recipe file.",
                )


def shell_line(container: Container) -> str:
    return shlex.join(docker_run(container))


def create(client: Any, container: Container) -> Any:
    """Creates the container that `docker_run` describes, through the SDK."""
    from docker.types import DeviceRequest, Mount

    gpus = []
    if container.gpu is not None:
        gpus = [DeviceRequest(device_ids=[container.gpu], capabilities=[["gpu"]])]
    limits = {}
    if container.memory:
        limits = {"mem_limit": container.memory, "memswap_limit": container.memory}
    host = client.api.create_host_config(
        auto_remove=False,  # its exit code is read after it has ended
        network_mode=container.network,
        read_only=True,
        cap_drop=["ALL"],
        cap_add=list(CAPABILITIES),
        security_opt=["no-new-privileges"],
        pids_limit=PIDS,
        shm_size=SHM_BYTES,
        tmpfs=container.tmpfs,
        device_requests=gpus,
        binds=[f"{h}:{t}:{mode}" for h, t, mode in container.mounts if not _SYNTAX.search(h)],
        mounts=[
            Mount(there, here, type="bind", read_only=mode == "ro")
            for here, there, mode in container.mounts
            if _SYNTAX.search(here)
        ],
        **limits,
    )
    made = client.api.create_container(
        container.image,
        list(container.command),
        environment=container.environment,
        host_config=host,
        labels={LABEL: "1"},
        stop_timeout=STOP_TIMEOUT_S,
        tty=container.tty,
        stdin_open=True,
    )
    return client.containers.get(made["Id"])


def connect() -> Any:
    """A client of the container engine that DOCKER_HOST or the default socket names.

    Raises:
        LaunchError: No SDK, or no engine answers.
    """
    try:
        from docker.client import from_env
        from docker.errors import DockerException
    except ImportError as error:
        raise LaunchError(
            "the Docker SDK is not installed", hint="in the checkout: pip install '.[container]'"
        ) from error
    try:
        client = from_env(timeout=60)
        client.ping()
    except DockerException as error:
        denied = "Permission denied" in str(error)
        host = os.environ.get("DOCKER_HOST", "")
        if host and not denied:
            schemes = "unix://, tcp://, ssh:// or npipe://"
            raise LaunchError(
                f"no container engine answers at {host} (DOCKER_HOST)"
                if "://" in host
                else f"DOCKER_HOST is {host!r}, not the address of a container engine",
                hint="Start that engine (on this machine: `sudo systemctl start docker`), or unset "
                "DOCKER_HOST to use the default one."
                if "://" in host
                else f"An address begins with {schemes}; unset it to use this machine's engine.",
            ) from error
        raise LaunchError(
            "the container engine refuses this user" if denied else "no container engine answers",
            hint="Join the group `docker` (`sudo usermod -aG docker $USER`, then log in again), or "
            "use rootless Docker."
            if denied
            else "Start Docker (`sudo systemctl start docker`), or set DOCKER_HOST; "
            "docker/README.md covers Podman, rootless Docker and WSL2.",
        ) from error
    return client


def is_podman(client: Any) -> bool:
    """Whether the engine is Podman behind Docker's interface."""
    components = client.version().get("Components") or []
    return any("podman" in str(part.get("Name")).lower() for part in components)


def find_image(client: Any, name: str) -> Image:
    """The image `name`, pinned.

    Raises:
        LaunchError: The engine has no such image.
    """
    from docker.errors import ImageNotFound

    try:
        found = client.images.get(name)
    except ImageNotFound as error:
        raise LaunchError(
            f"the engine has no image `{name}`",
            hint=f"Build it in a checkout: docker build -t {IMAGE} .   "
            "or name another with --image.",
        ) from error
    for reference in found.attrs.get("RepoDigests") or []:
        return Image(reference, reference.partition("@")[2])
    return Image(found.id, found.id)


def run(
    client: Any, container: Container, *, forward: Callable[[Callable[[int], None]], Any]
) -> int:
    """Runs the container with its output here, to its end; returns its exit code.

    Args:
        forward: Context manager maker; gets a function that sends a signal to the container, and
            calls it for Ctrl-C and SIGTERM while inside.

    Raises:
        LaunchError: The engine would not start it.
    """
    from docker.errors import APIError

    if container.podman and container.gpu is not None:
        raise LaunchError(
            "Podman gives no GPU through Docker's interface",
            hint="Run the line that `n4090-kit launch --print …` shows; --gpu none needs no GPU.",
        )
    try:
        made = create(client, container)
    except APIError as error:
        raise refusal(error) from error
    try:
        stream = client.api.attach(made.id, stdout=True, stderr=True, stream=True, demux=True)
        printer = threading.Thread(target=_copy, args=(stream,), daemon=True)
        with forward(lambda number: made.kill(signal=number)):
            try:
                made.start()
            except APIError as error:
                raise refusal(error) from error
            printer.start()
            code = int(made.wait(timeout=None)["StatusCode"])
        printer.join(5)
        return code
    finally:
        made.remove(force=True)


def refusal(error: Exception) -> LaunchError:
    """An engine's refusal in one line, with the remedy."""
    text = " ".join(str(getattr(error, "explanation", None) or error).split())
    for pattern, message, hint in _REFUSALS:
        if re.search(pattern, text, re.IGNORECASE):
            return LaunchError(message, hint=hint, engine=text[:300])
    return LaunchError("the engine would not start the container", engine=text[:500])


def one_gpu(value: str) -> str | None:
    """`none`, or the one GPU to show: its number or UUID.

    Raises:
        LaunchError: More than one is named.
    """
    if value == "none":
        return None
    if value == "all" or "," in value:
        raise LaunchError(
            "a run uses exactly one GPU", hint="Name one: --gpu 0 (`nvidia-smi -L` lists them)."
        )
    return value


def _copy(stream: Iterator[tuple[bytes | None, bytes | None]]) -> None:
    for out, err in stream:
        for data, file in ((out, sys.stdout), (err, sys.stderr)):
            if data:
                os.write(file.fileno(), data)


def input_mounts(
    folders: Sequence[tuple[str, Path | None]],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Mounts of the input folders given, and the options that name them inside."""
    mounts, options = [], []
    for name, folder in folders:
        if folder is not None:
            mounts.append((str(folder.resolve()), f"/inputs/{name}"))
            options += [f"--{name}", f"/inputs/{name}"]
    return mounts, options

"""`launch`: the line it prints and the container it starts are one and the same."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit import launcher
from kit.launcher import Container

HOST_FIELDS = (
    "Binds",
    "CapAdd",
    "CapDrop",
    "DeviceRequests",
    "Memory",
    "MemorySwap",
    "NetworkMode",
    "PidsLimit",
    "ReadonlyRootfs",
    "SecurityOpt",
    "ShmSize",
    "Tmpfs",
)
CONFIG_FIELDS = ("Cmd", "Entrypoint", "Env", "Image", "StopTimeout", "Tty", "OpenStdin", "User")


def normal(container: Any) -> dict[str, Any]:
    host, config = container.attrs["HostConfig"], container.attrs["Config"]
    found = {name: host[name] for name in HOST_FIELDS}
    found |= {name: config.get(name) for name in CONFIG_FIELDS}
    found["CapAdd"] = sorted(name.removeprefix("CAP_") for name in found["CapAdd"])
    found["Env"], found["Binds"] = sorted(found["Env"]), sorted(found["Binds"])
    found["DeviceRequests"] = [
        {**request, "Options": request.get("Options") or {}}
        for request in found["DeviceRequests"] or []
    ]
    return found


@pytest.mark.parametrize("gpu", [None, "0"])
def test_the_printed_line_makes_the_same_container(
    engine: Any, verify_image: str, gpu: str | None, tmp_path: Path
) -> None:
    image = launcher.find_image(engine, verify_image)
    container = Container(
        image=image.reference,
        digest=image.digest,
        command=("run", "--recipe", "my recipe.toml"),
        work=str(tmp_path),
        inputs=((str(tmp_path), "/inputs/data"),),
        gpu=gpu,
        memory="2g",
    )
    if launcher.is_podman(engine) and gpu is not None:
        pytest.skip("Podman gives no GPU through Docker's interface")
    through_sdk = launcher.create(engine, container)
    line = shlex.split(launcher.shell_line(container))
    assert line[:3] == ["docker", "run", "--rm"]
    typed = ["docker", "create", "--label", f"{launcher.LABEL}=1", *line[3:]]
    made = subprocess.run(typed, capture_output=True, text=True, check=True)
    by_hand = engine.containers.get(made.stdout.strip())
    assert normal(by_hand) == normal(through_sdk)
    by_hand.remove()
    through_sdk.remove()


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kit.cli.main", "launch", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_output_and_exit_code_come_through(verify_image: str) -> None:
    done = launch("--image", verify_image, "--volume", "n4090-kit-test", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("n4090-kit, version")
    wrong = launch("--image", verify_image, "--volume", "n4090-kit-test", "verify", "--wrong")
    assert wrong.returncode == 2
    assert "No such option" in wrong.stderr


def test_only_prepare_has_a_network(verify_image: str) -> None:
    for command, network in (("prepare", "bridge"), ("run", "none"), ("verify", "none")):
        line = shlex.split(launch("--image", verify_image, "--print", command).stdout)
        assert line[line.index("--network") + 1] == network


def test_a_missing_image_is_one_line(engine: Any) -> None:
    done = launch("--image", "n4090-kit-test:none", "run", "--recipe", "smoke")
    assert done.returncode == 3
    assert "error: the engine has no image `n4090-kit-test:none`" in done.stderr
    assert "docker build -t n4090-kit ." in done.stderr


def test_two_gpus_are_refused(verify_image: str) -> None:
    for value in ("all", "0,1"):
        done = launch("--image", verify_image, "--gpu", value, "run", "--recipe", "reference")
        assert done.returncode == 3
        assert "exactly one GPU" in done.stderr


def test_podman_is_given_a_gpu_in_its_own_words(engine: Any, verify_image: str) -> None:
    if not launcher.is_podman(engine):
        pytest.skip("this engine is Docker")
    printed = launch("--image", verify_image, "--print", "run", "--recipe", "reference").stdout
    assert printed.startswith("podman run ")
    assert "--device nvidia.com/gpu=0" in printed
    done = launch("--image", verify_image, "run", "--recipe", "reference")
    assert done.returncode == 3
    assert "launch --print" in done.stderr


def test_a_missing_toolkit_is_one_line(engine: Any, verify_image: str) -> None:
    if launcher.is_podman(engine):
        pytest.skip("Podman does not look at GPU requests")
    done = launch("--image", verify_image, "run", "--recipe", "reference")
    assert done.returncode == 3
    assert "the NVIDIA container toolkit is missing" in done.stderr
    assert "nvidia-ctk runtime configure" in done.stderr


def test_no_engine_is_one_line() -> None:
    done = launch("run", "--recipe", "smoke", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode == 3
    assert "error: no container engine answers" in done.stderr
    assert "systemctl start docker" in done.stderr

"""The compose file says what `launch` does, and where there is a compose command, it works."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit import launcher
from kit.run.separation import CAPABILITIES

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"


def test_each_service_is_as_sealed_as_launch_makes_it() -> None:
    document = yaml.safe_load(COMPOSE.read_text())
    container = launcher.Container("image", ())
    for name, service in document["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges"], name
        assert service["pids_limit"] == launcher.PIDS, name
        assert service["tmpfs"] == [f"{path}:{how}" for path, how in container.tmpfs.items()], name
        if name in ("run", "prepare"):
            assert service["cap_add"] == list(CAPABILITIES), name
            assert service["stop_grace_period"] == f"{launcher.STOP_TIMEOUT_S}s", name
        else:
            assert "cap_add" not in service, name


def test_only_prepare_and_the_site_have_a_network() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert {name for name, one in services.items() if one.get("network_mode") != "none"} == {
        "prepare",
        "site",
    }


def test_a_run_has_one_gpu() -> None:
    run = yaml.safe_load(COMPOSE.read_text())["services"]["run"]
    [device] = run["deploy"]["resources"]["reservations"]["devices"]
    assert len(device["device_ids"]) == 1
    assert run["shm_size"] == f"{launcher.SHM_BYTES // 2**30}g"


@pytest.fixture
def compose(engine: Any, main_image: str, verify_image: str) -> Iterator[Callable[..., str]]:
    """`docker compose` with this file, in a project that is taken down afterwards."""
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("no docker-compose (v2) on the PATH")
    environment = {
        **os.environ,
        "N4090_IMAGE_DIGEST": launcher.find_image(engine, main_image).digest,
        "IMAGE": main_image,
        "VERIFY_IMAGE": verify_image,
        "RECIPE": "smoke",
        "VOLUME": "n4090-kit-test",  # taken down afterwards: never the one that people use
        "PORT": "40900",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [command, "--file", str(COMPOSE), "--project-name", "n4090-kit-test", *arguments],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    run("--profile", "*", "down", "--volumes", "--remove-orphans")


def test_the_site_is_written_and_served(compose: Callable[..., str]) -> None:
    compose("up", "--detach", "site")
    give_up = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen("http://127.0.0.1:40900/") as page:
                assert b"<html" in page.read()
            return
        except OSError:
            assert time.monotonic() < give_up
            time.sleep(0.5)


def test_prepare_and_verify_run_sealed(compose: Callable[..., str]) -> None:
    assert "made by the trainer" in compose("run", "--rm", "-T", "prepare")
    listed = compose("run", "--rm", "-T", "verify", "verify", "--help")
    assert "Check a result" in listed


@pytest.mark.skipif("N4090_TEST_GPU_HOOK" not in os.environ, reason="this engine has no GPU hook")
def test_run_asks_for_one_gpu_and_is_sealed(compose: Callable[..., str]) -> None:
    looks = json.loads(compose("run", "--rm", "-T", "run", "doctor", "--json"))["looks"]
    asked = Path(os.environ["N4090_TEST_GPU_HOOK"]).with_name("environment").read_text()
    assert "NVIDIA_VISIBLE_DEVICES=0" in json.loads(asked)
    states = {look["name"]: look["state"] for look in looks}
    for name in ("separate trainer", "image's digest", "volume", "shared memory", "network"):
        assert states[name] == "ok", looks

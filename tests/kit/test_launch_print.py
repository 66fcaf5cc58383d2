"""`launch --print` on a machine without a container engine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kit.cli.launch import launch
from kit.errors import LaunchError


def launch_without_engine(
    folder: Path, *arguments: str, host: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kit.cli.main", "launch", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "DOCKER_HOST": host or f"unix://{folder}/no-engine.sock"},
    )


def test_the_line_is_printed_with_the_tag_and_a_note_about_the_digest(tmp_path):
    pytest.importorskip("docker")
    done = launch_without_engine(tmp_path, "--print", "run", "--recipe", "reference")
    assert done.returncode == 0, done.stderr
    line = shlex.split(done.stdout)
    assert line[:2] == ["docker", "run"]
    assert line[-4:] == ["n4090-kit", "run", "--recipe", "reference"]
    assert not any("N4090_IMAGE_DIGEST" in word or "None" in word for word in line)
    assert "no container engine answers" in done.stderr and "digest is not known" in done.stderr


def test_a_missing_sdk_does_not_stop_the_line(monkeypatch):
    def missing():
        raise LaunchError("the Docker SDK is not installed")

    monkeypatch.setattr("kit.launcher.connect", missing)
    done = CliRunner().invoke(launch, ["--print", "--image", "mine:1", "verify", "x"])
    assert done.exit_code == 0 and done.stdout.rstrip().endswith("mine:1 verify x")
    assert "SDK is not installed" in done.stderr


def test_starting_a_container_still_needs_the_engine(tmp_path):
    pytest.importorskip("docker")
    done = launch_without_engine(tmp_path, "run", "--recipe", "smoke")
    assert done.returncode == 3 and not done.stdout


@pytest.mark.parametrize(
    ("host", "remedy"),
    [("localhost", "begins with unix://"), ("tcp://127.0.0.1:9", "Start that engine")],
)
def test_an_engine_that_docker_host_names_wrongly_is_named(tmp_path, host, remedy):
    pytest.importorskip("docker")
    done = launch_without_engine(tmp_path, "run", "--recipe", "smoke", host=host)
    assert done.returncode == 3 and host in done.stderr and "DOCKER_HOST" in done.stderr
    assert remedy in done.stderr

"""What a run's surroundings show of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.run import environment
from kit.run.environment import describe_environment


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths that exist for `describe_environment`, besides the real ones it does not ask for."""
    there: set[str] = set()
    real = Path.exists
    asked = {"/.dockerenv", "/run/.containerenv"}
    monkeypatch.setattr(
        Path, "exists", lambda path: str(path) in there if str(path) in asked else real(path)
    )
    monkeypatch.delenv("container", raising=False)
    return there


def test_outside_there_is_no_container(files: set[str]) -> None:
    assert describe_environment()["container"] is None


def test_engines_are_known_by_their_files(files: set[str]) -> None:
    files.add("/run/.containerenv")
    assert describe_environment()["container"] == "podman"
    files.add("/.dockerenv")
    assert describe_environment()["container"] == "docker"


def test_podman_with_its_file_hidden_is_known_by_its_variable(
    files: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "podman")
    assert describe_environment()["container"] == "podman"


def test_another_value_of_the_variable_is_no_claim(
    files: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "oci")
    assert describe_environment()["container"] is None


def test_a_preloaded_library_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert describe_environment()["ld_preload"] is False
    monkeypatch.setenv("LD_PRELOAD", "libfaketime.so.1")
    assert describe_environment()["ld_preload"] is True


def test_traffic_leaves_out_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        "head\nhead\n  lo: 7 0 0 0 0 0 0 0 7 0\n"
        "eth0: 100 1 0 0 0 0 0 0 20 1\nwg0:5 0 0 0 0 0 0 0 6 0\n"
    )
    real = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, *rest: table if str(path) == "/proc/net/dev" else real(path, *rest),
    )
    assert environment._traffic() == (105, 26)

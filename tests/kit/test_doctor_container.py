"""What `doctor` says of containers outside one; inside, tests/docker asks it for real."""

from types import SimpleNamespace
from typing import Any

import pytest

from kit import launcher
from kit.cli import doctor_container
from kit.cli.doctor_item import DoctorItem


def engine(name: str, **info: Any) -> Any:
    """As much of an engine's client as `doctor` asks."""
    version = {"Version": "5.0", "Components": [{"Name": name}]}
    image = SimpleNamespace(id="sha256:" + "1" * 64, attrs={})
    return SimpleNamespace(
        version=lambda: version,
        info=lambda: info,
        images=SimpleNamespace(get=lambda _: image),
    )


def look(monkeypatch: pytest.MonkeyPatch, client: Any, tmp_path: Any, **files: str) -> DoctorItem:
    """What it says of the toolkit, on a machine with a GPU and these CDI files."""
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(launcher, "connect", lambda: client)
    monkeypatch.setattr(doctor_container, "_CDI", (tmp_path,))
    monkeypatch.setenv("PATH", str(tmp_path))
    looks = {one.name: one for one in doctor_container.outside(gpu_seen=True)}
    return looks["container toolkit"]


def test_docker_without_the_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    said = look(monkeypatch, engine("Engine", Runtimes={"runc": {}}), tmp_path)
    assert said.state == "missing"
    assert "nvidia-ctk runtime configure --runtime=docker" in said.remedy


def test_docker_with_its_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    said = look(monkeypatch, engine("Engine", Runtimes={"nvidia": {}}), tmp_path)
    assert (said.state, said.found) == ("ok", "runtime nvidia")


def test_docker_with_the_hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    hook = tmp_path / "nvidia-container-runtime-hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    assert look(monkeypatch, engine("Engine", Runtimes=None), tmp_path).state == "ok"


def test_podman_needs_cdi_whatever_runtimes_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    podman = engine("Podman Engine", Runtimes={"nvidia": {}})
    said = look(monkeypatch, podman, tmp_path)
    assert said.state == "missing"
    assert "nvidia-ctk cdi generate" in said.remedy
    assert look(monkeypatch, podman, tmp_path, nvidia="cdiVersion: 0.5.0").state == "ok"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("memory.max", "max\n", "none"),
        ("memory.max", "25769803776\n", "24.0 GiB"),
        ("limit_in_bytes", "9223372036854771712\n", "none"),
        ("limit_in_bytes", "1073741824\n", "1.0 GiB"),
        ("other", "", "unknown"),
    ],
)
def test_the_memory_limit_of_both_kinds_of_cgroup(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, file: str, text: str, said: str
) -> None:
    (tmp_path / file).write_text(text)
    paths = (tmp_path / "memory.max", tmp_path / "limit_in_bytes")
    monkeypatch.setattr(doctor_container, "_CGROUP_LIMITS", paths)
    assert doctor_container._memory_limit() == said

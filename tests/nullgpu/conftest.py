"""The null device for tests: an environment and the stand-ins, or the reason to skip."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable

import pytest
from nullgpu_build import null_device
from nullgpu_environment import CHECKOUT, Unavailable, environment
from nullgpu_runs import NullDevice


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips these tests in a run that does not ask for them: they install 5 GB."""
    if "gpuless" in (config.option.markexpr or ""):
        return
    for item in items:
        if item.get_closest_marker("gpuless") or item.get_closest_marker("gpuless_full"):
            item.add_marker(pytest.mark.skip(reason="only with -m gpuless: make test-gpuless"))


@pytest.fixture(scope="session")
def null_gpu_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NullDevice]:
    """Makes the null device for an interpreter and a version of torch."""
    folder = tmp_path_factory.mktemp("wheel")

    def make(python: str | None = None, torch: str | None = None) -> NullDevice:
        try:
            venv = environment(python, torch)
            stand_ins = null_device(venv)
        except Unavailable as error:
            pytest.skip(f"no null device here: {error}")
        if not (folder / "site").exists():
            build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
            subprocess.run(build, check=True, capture_output=True, cwd=CHECKOUT)
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / "site")
        return NullDevice(venv / "bin/python", stand_ins, folder / "site")

    return make


@pytest.fixture(scope="session")
def null_gpu(null_gpu_of: Callable[..., NullDevice]) -> NullDevice:
    """The null device for the interpreter of the tests and the locked torch."""
    return null_gpu_of()

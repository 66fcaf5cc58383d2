"""Images built from this checkout in a real engine, and containers that are removed afterwards.

`tests/docker/run` starts an engine and runs these tests. What they read from the environment:
DOCKER_HOST; N4090_DOCKER_BUILD (a docker command that can build with BuildKit; default `docker`);
N4090_TEST_BASE_IMAGE (default: the Dockerfile's); N4090_TORCH_WHEEL (a CPU build of torch);
N4090_TEST_IMAGE, N4090_TEST_VERIFY_IMAGE (images built before, to save the minutes);
N4090_DOCKER_BUDGET_S (seconds after which what is left skips, with that reason).
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import pytest

from kit import launcher
from kit.launcher import Container

HERE = Path(__file__).parent
END = time.monotonic() + float(os.environ.get("N4090_DOCKER_BUDGET_S", "inf"))
LATE = "the time for tests in an engine is over; tests/docker/run has no limit"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.docker)
    # The small image's tests first: they say the most in little time.
    ours.sort(key=lambda item: "main_image" in getattr(item, "fixturenames", ()))
    items[:] = [*(item for item in items if item not in ours), *ours]


@pytest.fixture(autouse=True)
def _in_time() -> None:
    if time.monotonic() > END:
        pytest.skip(LATE)


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the engine. What was launched is removed at the end: one session at a time."""
    if "DOCKER_HOST" not in os.environ:
        pytest.skip("no container engine: DOCKER_HOST is not set (tests/docker/run sets it)")
    client = launcher.connect()
    yield client
    for left in client.containers.list(all=True, filters={"label": launcher.LABEL}):
        left.remove(force=True)
    client.close()


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.copy_checkout(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="session")
def build(engine: Any, context: Path) -> Callable[..., str]:
    def run(name: str, *options: str, folder: Path = context) -> str:
        """`docker build` of the checkout, or of a copy of it; returns the image's name."""
        left_s = END - time.monotonic() if math.isfinite(END) else None
        try:
            return images.build(engine, folder, name, *options, timeout_s=left_s)
        except subprocess.TimeoutExpired:
            pytest.skip(LATE)

    return run


@pytest.fixture(scope="session")
def verify_image(build: Callable[..., str]) -> str:
    if "N4090_TEST_VERIFY_IMAGE" in os.environ:
        return os.environ["N4090_TEST_VERIFY_IMAGE"]
    return build("n4090-kit-test:verify", "--target", "verify")


@pytest.fixture(scope="session")
def main_image(build: Callable[..., str]) -> str:
    if "N4090_TEST_IMAGE" in os.environ:
        return os.environ["N4090_TEST_IMAGE"]
    if "N4090_TORCH_WHEEL" not in os.environ:
        pytest.skip("no CPU build of torch: N4090_TORCH_WHEEL is not set")
    return build("n4090-kit-test:cpu", "--build-arg", "LOCK=cpu")


class Launched:
    """One container started as `launch` starts it, with its work folder on this side."""

    def __init__(self, client: Any, container: Container) -> None:
        self.work = Path(container.work)
        self.made = launcher.create(client, container)
        self.made.start()

    def wait(self, timeout_s: float = 300) -> int:
        return int(self.made.wait(timeout=timeout_s)["StatusCode"])

    @property
    def output(self) -> str:
        """What it has printed, on one line."""
        return " ".join(self.made.logs().decode().split())

    @property
    def run(self) -> Path:
        [folder] = (self.work / "runs").iterdir()
        return folder

    @property
    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run / "result.json").read_text())
        return document

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Data of the events of one kind, so far."""
        logs = list(self.work.glob("runs/*/events.jsonl"))
        lines = logs[0].read_text().splitlines() if logs else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [event["data"] for event in found if event["ev"] == kind]

    def wait_for_step(self, step: int, within_s: float = 120) -> None:
        give_up = time.monotonic() + within_s
        while not any(data["step"] >= step for data in self.events("step")):
            assert time.monotonic() < give_up, self.output
            time.sleep(0.1)

    def verify(self) -> subprocess.CompletedProcess[str]:
        """`verify` of its result on this side, outside any container."""
        command = [sys.executable, "-m", "kit.cli.main", "verify", "--json"]
        path = str(self.run / "result.json")
        return subprocess.run([*command, path], capture_output=True, text=True)


@pytest.fixture
def launch(engine: Any, main_image: str, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts the kit in the main image under the strict flags, on `tmp_path/work`."""
    launched = []
    work = tmp_path / "work"
    work.mkdir()

    def start(*command: object, **changes: Any) -> Launched:
        image = launcher.find_image(engine, main_image)
        given: dict[str, Any] = {
            "image": image.reference,
            "digest": image.digest,
            "work": str(work),
            "command": tuple(map(str, command)),
        }
        launched.append(Launched(engine, Container(**{**given, **changes})))
        return launched[-1]

    yield start
    for one in launched:
        one.made.remove(force=True)

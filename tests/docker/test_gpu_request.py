"""GPU requests, up to what the engine's runtime hook is asked for and answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    "N4090_TEST_GPU_HOOK" not in os.environ, reason="this engine has no GPU hook"
)


@pytest.fixture
def hook() -> Path:
    return Path(os.environ["N4090_TEST_GPU_HOOK"])


def launch(image: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kit.cli.main", "launch", "--image", image, *options]
    return subprocess.run(
        [*command, "run", "--recipe", "reference"], capture_output=True, text=True
    )


def test_the_hook_is_asked_for_the_one_gpu_that_was_named(verify_image: str, hook: Path) -> None:
    done = launch(verify_image, "--gpu", "3")
    assert "toolkit" not in done.stderr
    asked = json.loads(hook.with_name("environment").read_text())
    assert "NVIDIA_VISIBLE_DEVICES=3" in asked


def test_a_ranked_recipe_asks_without_being_told(verify_image: str, hook: Path) -> None:
    launch(verify_image)
    asked = json.loads(hook.with_name("environment").read_text())
    assert "NVIDIA_VISIBLE_DEVICES=0" in asked


def test_the_line_of_the_readme_asks_for_a_gpu(engine: Any, verify_image: str, hook: Path) -> None:
    """`docker run --gpus all`, as typed, through the command that people type it with."""
    hook.with_name("environment").unlink(missing_ok=True)
    label = ["--label", "org.n4090-kit.launched=1"]
    subprocess.run(
        ["docker", "run", "--rm", *label, "--gpus", "all", verify_image, "--version"], check=True
    )
    asked = json.loads(hook.with_name("environment").read_text())
    assert "NVIDIA_VISIBLE_DEVICES=all" in asked


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1",
            "the NVIDIA driver is missing or too old",
        ),
        (
            "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0",
            "the NVIDIA driver is missing or too old",
        ),
        (
            "nvidia-container-cli: device error: 7: unknown device",
            "the engine does not know this GPU",
        ),
    ],
)
def test_what_the_toolkit_refuses_is_explained(
    verify_image: str, hook: Path, answer: str, message: str
) -> None:
    hook.with_name("answer").write_text(answer)
    done = launch(verify_image)
    hook.with_name("answer").write_text("")
    assert done.returncode == 3
    assert message in done.stderr

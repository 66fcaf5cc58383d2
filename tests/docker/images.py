"""Builds the images from what git sees of this checkout, for the tests and for `measure`."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from kit import launcher

ROOT = Path(__file__).parents[2]
SOURCE_DATE_EPOCH = "1767225600"  # the Dockerfile's
SOURCE = "https://example.org/n4090-kit"


def revision() -> str:
    """The commit that the checkout stands on."""
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()


def copy_checkout(folder: Path) -> Path:
    """The checkout as git sees it, so that a build has nothing else to lean on."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    wheel = os.environ.get("N4090_TORCH_WHEEL")
    if wheel:
        shutil.copy2(wheel, folder / "docker" / "wheels")
    return folder


def build(
    client: Any, context: Path, name: str, *options: str, timeout_s: float | None = None
) -> str:
    """`docker build` of a copied checkout; returns the image's name.

    Raises:
        RuntimeError: It failed; with the end of what it said.
        subprocess.TimeoutExpired: It took longer than `timeout_s`.
    """
    command = [os.environ.get("N4090_DOCKER_BUILD", "docker"), "build", "--tag", name]
    if launcher.is_podman(client):
        # By its own command, which can date what Podman leaves in a layer: /run, mounts' places.
        command = ["podman", "--url", os.environ["DOCKER_HOST"], "build", "--tag", name]
        command += ["--format", "docker", "--timestamp", SOURCE_DATE_EPOCH]
        # Podman 4.3 mounts nothing of a stage that it took from its cache.
        command += ["--no-cache"]
    command += ["--build-arg", f"SOURCE={SOURCE}", "--build-arg", f"REVISION={revision()}"]
    base = os.environ.get("N4090_TEST_BASE_IMAGE")
    if base:
        command += ["--build-arg", f"BASE_IMAGE={base}"]
    done = subprocess.run(
        [*command, *options, str(context)],
        capture_output=True,
        text=True,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        timeout=timeout_s,
    )
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return name

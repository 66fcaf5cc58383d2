"""What is in the images, and that two builds of one commit are the same."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images
import pytest

from kit import launcher
from kit.run.supervisor import code_digest

ROOT = Path(__file__).parents[2]


def inside(engine: Any, image: str, *command: str, **options: Any) -> str:
    """What a program of the image prints."""
    # Not `run`, which asks for the output as it comes: Podman 4.3 does not always end that.
    made = engine.containers.create(
        image,
        entrypoint=command[0],
        command=list(command[1:]),
        network_mode="none",
        labels={launcher.LABEL: "1"},
        **options,
    )
    try:
        made.start()
        code = made.wait(timeout=300)["StatusCode"]
        printed: str = made.logs(stderr=False).decode()
        assert code == 0, made.logs().decode()
    finally:
        made.remove(force=True)
    return printed.strip()


def test_the_verify_image_is_small_and_belongs_to_nobody(engine: Any, verify_image: str) -> None:
    image = engine.images.get(verify_image)
    base = inside(engine, verify_image, "id", "-u")
    assert base == "65534"
    listed = inside(
        engine, verify_image, "sh", "-c", "ls -d /opt/n4090/lib/python3*/site-packages/*"
    )
    assert "torch" not in listed
    ours = sum(layer["Size"] for layer in image.history()) - image.history()[-1]["Size"]
    assert ours < 120e6


def health_check(engine: Any, image: str) -> list[str]:
    if not launcher.is_podman(engine):
        found: list[str] = engine.images.get(image).attrs["Config"]["Healthcheck"]["Test"]
        return found
    # Podman 4.3 leaves it out where it speaks as Docker.
    command = ["podman", "--url", os.environ["DOCKER_HOST"], "image", "inspect", image]
    return list(json.loads(subprocess.check_output(command))[0]["Healthcheck"]["Test"])


def test_the_main_image_says_what_it_is_made_of(engine: Any, main_image: str) -> None:
    config = engine.images.get(main_image).attrs["Config"]
    assert config["Entrypoint"] == ["n4090-kit"]
    assert health_check(engine, main_image) == ["CMD", "n4090-health"]
    labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}
    assert labels["licenses"] == "MIT"
    assert labels["source"] == images.SOURCE
    assert labels["revision"] == images.revision()
    assert not [line for line in config["Env"] if "TOKEN" in line or "KEY" in line]


def test_the_main_image_holds_no_caches_and_no_test_tools(engine: Any, main_image: str) -> None:
    packages = inside(engine, main_image, "sh", "-c", "ls /opt/n4090/lib/python3*/site-packages")
    assert {"torch", "kit", "reference"} <= set(packages.split())
    assert not {"mypy", "pytest", "ruff", "hatchling"} & set(packages.split())
    left = "find / -xdev \\( -path '*/.cache/*' -o -name '*.whl' -o -path '/root/?*' -o "
    left += "-path '/tmp/?*' -o -path '/var/lib/apt/lists/?*' \\) -newer /etc/os-release -type f"
    assert inside(engine, main_image, "sh", "-c", left) == ""


def test_the_code_in_the_images_is_that_of_the_checkout(
    engine: Any, main_image: str, verify_image: str
) -> None:
    for image in (main_image, verify_image):
        listed = inside(
            engine, image, "cat", "/opt/n4090/share/n4090-kit/code-tree.sha256"
        ).splitlines()
        for line in listed:
            digest, _, name = line.partition("  ")
            path = ROOT / (name.replace("kit/schema/", "schema/"))
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, name
    print_digest = "from kit.run.supervisor import code_digest; print(code_digest())"
    assert inside(engine, main_image, "/opt/n4090/bin/python", "-c", print_digest) == code_digest()


def test_changed_code_takes_the_digest_away(engine: Any, main_image: str, tmp_path: Path) -> None:
    (tmp_path / "timing.py").write_text((ROOT / "kit" / "timing.py").read_text() + "\n# faster\n")
    site = inside(engine, main_image, "sh", "-c", "echo /opt/n4090/lib/python3*/site-packages")
    said = inside(
        engine,
        main_image,
        "/opt/n4090/bin/python",
        "-c",
        "from kit.image import describe_image; print(describe_image())",
        volumes=[f"{tmp_path}/timing.py:{site}/kit/timing.py:ro"],
        environment={"N4090_IMAGE_DIGEST": "sha256:" + "0" * 64},
    )
    assert "'digest': None" in said
    assert "kit/timing.py" in said


def test_health_is_a_run_that_measures_itself(engine: Any, main_image: str, tmp_path: Path) -> None:
    def healthy() -> bool:
        made = engine.containers.create(
            main_image,
            entrypoint="n4090-health",
            volumes=[f"{tmp_path}:/work"],
            labels={launcher.LABEL: "1"},
        )
        made.start()
        code: int = made.wait()["StatusCode"]
        made.remove()
        return code == 0

    assert healthy()
    run = tmp_path / "runs" / "smoke-1"
    run.mkdir(parents=True)
    (run / "telemetry.jsonl").write_text("")
    assert healthy()
    os.utime(run / "telemetry.jsonl", (1, 1))
    assert not healthy()
    (run / "result.json").write_text("{}")
    assert healthy()


def another_clone(context: Path, folder: Path) -> Path:
    """The same commit as somebody else's `git clone` leaves it: other times, other permissions."""
    shutil.copytree(context, folder)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | 0o020)  # umask 002
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return folder


def layers(engine: Any, name: str, folder: Path) -> list[list[tuple[Any, ...]]]:
    """What each layer's archive says of each file, in one order.

    Docker 20.10 was seen to write the same files folder by folder, or sorted by whole paths
    (`a.toml` then stands before `a/b`). So the digests of layers may differ where nothing in them
    does.
    """
    archive = folder / "image.tar"
    with archive.open("wb") as file:
        for block in engine.images.get(name).save():
            file.write(block)
    found = []
    with tarfile.open(archive) as image:
        manifest = image.extractfile("manifest.json")
        assert manifest
        for layer in json.load(manifest)[0]["Layers"]:
            with tarfile.open(fileobj=image.extractfile(layer)) as entries:
                found.append(sorted(_entry(entries, entry) for entry in entries))
    archive.unlink()
    return found


def _entry(layer: tarfile.TarFile, entry: tarfile.TarInfo) -> tuple[Any, ...]:
    content = layer.extractfile(entry) if entry.isreg() else None
    digest = hashlib.file_digest(content, "sha256").hexdigest() if content else ""
    facts = entry.mode, entry.uid, entry.gid, entry.mtime, entry.type, entry.linkname
    return entry.name, *facts, sorted(entry.pax_headers.items()), digest


def test_two_builds_of_verify_give_the_same_layers(
    engine: Any, build: Callable[..., str], verify_image: str, context: Path, tmp_path: Path
) -> None:
    clone = another_clone(context, tmp_path / "clone")
    again = build(f"{verify_image}-again", "--target", "verify", "--no-cache", folder=clone)
    assert layers(engine, again, tmp_path) == layers(engine, verify_image, tmp_path)
    engine.images.remove(again)


@pytest.mark.slow
def test_two_builds_of_the_main_image_give_the_same_layers(
    engine: Any, build: Callable[..., str], main_image: str, context: Path, tmp_path: Path
) -> None:
    clone = another_clone(context, tmp_path / "clone")
    options = ("--build-arg", "LOCK=cpu", "--no-cache")
    again = build(f"{main_image}-again", *options, folder=clone)
    assert layers(engine, again, tmp_path) == layers(engine, main_image, tmp_path)
    engine.images.remove(again)


def test_verify_in_the_image_agrees_with_verify_here(engine: Any, verify_image: str) -> None:
    found = sorted((ROOT / "submissions").rglob("result.json"))
    if not found:
        pytest.skip("no submission in this checkout")
    for path in found:
        here = subprocess.run(
            [sys.executable, "-m", "kit.cli.main", "verify", str(path)], capture_output=True
        )
        made = engine.containers.create(
            verify_image,
            ["verify", "/in/result.json"],
            volumes=[f"{path.parent}:/in:ro"],
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            labels={launcher.LABEL: "1"},
        )
        made.start()
        assert made.wait()["StatusCode"] == here.returncode, made.logs().decode()
        made.remove()

"""Runs in the main image under the strict flags: smoke, signals, kills, limits, missing data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import launcher
from kit.run.supervisor import code_digest

ASSETS = Path(__file__).parents[1] / "assets"
Launch = Callable[..., Any]


@pytest.fixture
def recipe(tmp_path: Path) -> tuple[str, str]:
    """The tiny recipe with steps enough to be interrupted, as a mount."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    text = (ASSETS / "tiny.toml").read_text().replace("num_steps = 40", "num_steps = 400")
    (folder / "tiny.toml").write_text(text)
    return (str(folder), "/inputs/recipe")


@pytest.mark.slow
def test_smoke_runs_sealed_off_and_verifies_outside(
    engine: Any, main_image: str, launch: Launch
) -> None:
    container = launch("run", "--recipe", "smoke", "--quiet")
    assert container.wait(900) == 0, container.output
    result = container.result
    assert result["claims"]["status"] == "complete"
    assert result["image"]["digest"] == engine.images.get(main_image).id
    assert result["kit"]["code"] == code_digest()
    assert result["environment"] == {
        "rx_bytes": 0,
        "tx_bytes": 0,
        "ld_preload": False,
        "time_namespace": "none",
        "container": "docker",
        "separate_trainer": True,
    }
    checked = container.verify()
    assert checked.returncode == 0, checked.stdout


def test_a_killed_container_goes_on_and_a_stopped_one_signs(
    launch: Launch, recipe: tuple[str, str]
) -> None:
    first = launch("run", "--recipe", "/inputs/recipe/tiny.toml", "--quiet", inputs=(recipe,))
    first.wait_for_step(20)
    first.made.kill()
    first.wait()
    assert not (first.run / "result.json").exists()

    inside = f"/work/runs/{first.run.name}"
    second = launch("run", "--resume", inside, "--quiet", inputs=(recipe,))
    second.wait_for_step(150)
    second.made.stop()  # with the grace period that `launch` asked for
    assert second.wait() == 3, second.output
    assert second.result["claims"]["status"] == "stopped"
    assert second.result["signatures"]
    assert second.verify().returncode in (0, 3)  # nothing against it; what did not run is missing

    third = launch("run", "--resume", inside, "--quiet", inputs=(recipe,))
    assert third.wait() == 0, third.output
    assert third.result["claims"]["status"] == "complete"
    checked = third.verify()
    assert checked.returncode == 0, checked.stdout


def test_without_data_and_network_prepare_is_named(launch: Launch) -> None:
    container = launch("run", "--recipe", "nano", "--device", "cpu")
    assert container.wait() == 3
    said = container.output
    assert "prepare --recipe nano" in said
    assert "Traceback" not in said


def test_without_a_gpu_reference_says_how_to_get_one(launch: Launch) -> None:
    container = launch("run", "--recipe", "reference")
    assert container.wait() == 3
    said = container.output
    assert "no NVIDIA GPU" in said
    assert "--gpus" in said


def test_a_read_only_volume_is_named(engine: Any, main_image: str, tmp_path: Path) -> None:
    image = launcher.find_image(engine, main_image)
    made = engine.containers.create(
        image.reference,
        ["run", "--recipe", "smoke"],
        volumes=[f"{tmp_path}:/work:ro"],
        read_only=True,
        labels={launcher.LABEL: "1"},
    )
    made.start()
    assert made.wait()["StatusCode"] == 3
    said = made.logs().decode()
    made.remove()
    assert "cannot be written" in said
    assert "-v n4090:/work" in said


def test_a_full_volume_is_named(engine: Any, main_image: str) -> None:
    made = engine.containers.create(
        main_image,
        ["run", "--recipe", "smoke"],
        tmpfs={"/work": "rw,size=8m", "/tmp": "rw"},
        read_only=True,
        labels={launcher.LABEL: "1"},
    )
    made.start()
    assert made.wait()["StatusCode"] == 3
    said = made.logs().decode()
    made.remove()
    assert "GiB needed" in said
    assert "Traceback" not in said


def test_too_little_memory_is_a_signed_failure(launch: Launch, tmp_path: Path) -> None:
    container = launch("run", "--recipe", "smoke", "--quiet", memory="200m")
    assert container.wait() in (1, 3)
    said = container.output
    assert "Traceback" not in said
    assert "memory" in said


def test_doctor_in_the_image_finds_its_code_unchanged(launch: Launch) -> None:
    container = launch("doctor", "--json")
    assert container.wait() == 0, container.output
    looks = {look["name"]: look for look in json.loads(container.output)["looks"]}
    assert looks["image's code"]["state"] == "ok"
    assert looks["separate trainer"]["state"] == "ok"

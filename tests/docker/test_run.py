"""Runs in the main image under the strict flags: smoke, signals, kills, limits, missing data."""

import json
import shutil
import subprocess
import time
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
    assert container.wait(1500) == 0, container.output
    assert container.result["claims"]["status"] == "complete"
    check_what_it_says_of_its_container(engine, main_image, container.result)
    checked = container.verify()
    assert checked.returncode == 0, checked.stdout


def check_what_it_says_of_its_container(
    engine: Any, main_image: str, result: dict[str, Any], traffic: int | None = 0
) -> None:
    """The image by its digest, the code of this checkout, no traffic, a trainer kept apart."""
    digest = launcher.find_image(engine, main_image).digest
    assert result["image"] == {"digest": digest, "reason": None}
    assert result["kit"]["code"] == code_digest()
    assert result["environment"] == {
        "rx_bytes": traffic,
        "tx_bytes": traffic,
        "ld_preload": False,
        "time_namespace": "none",
        "container": "podman" if launcher.is_podman(engine) else "docker",
        "separate_trainer": True,
    }


def test_a_killed_container_goes_on_and_a_stopped_one_signs(
    engine: Any, main_image: str, launch: Launch, recipe: tuple[str, str]
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
    # Each container counts from nought: over three of them the traffic is not known.
    check_what_it_says_of_its_container(engine, main_image, third.result, traffic=None)
    checked = third.verify()
    assert checked.returncode == 0, checked.stdout


def test_without_data_and_network_prepare_is_named(launch: Launch) -> None:
    container = launch("run", "--recipe", "nano", "--device", "cpu")
    assert container.wait() == 3
    said = container.output
    assert "docker run --rm -v n4090:/work n4090-kit prepare --recipe nano --yes" in said
    assert "Traceback" not in said


def test_without_a_gpu_reference_says_how_to_get_one(launch: Launch) -> None:
    container = launch("run", "--recipe", "reference")
    assert container.wait() == 3
    said = container.output
    assert "no NVIDIA GPU" in said
    assert "--gpus" in said


def test_folders_that_the_trainer_may_not_enter_are_named(
    launch: Launch, recipe: tuple[str, str], tmp_path: Path
) -> None:
    command = ("run", "--recipe", "/inputs/recipe/tiny.toml", "--quiet", "--no-probe")
    (tmp_path / "work").chmod(0o700)
    container = launch(*command, inputs=(recipe,))
    assert container.wait() == 3
    assert "user `trainer`, may not enter /work" in container.output
    assert "chmod o+x" in container.output
    assert "Traceback" not in container.output


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


def test_a_volume_that_fills_up_is_a_signed_failure(
    engine: Any, main_image: str, recipe: tuple[str, str]
) -> None:
    made = engine.containers.create(
        main_image,
        ["run", "--recipe", "/inputs/recipe/tiny.toml", "--quiet", "--no-probe"],
        tmpfs={"/work": "rw,size=320m,mode=755", "/tmp": "rw"},
        volumes=[f"{recipe[0]}:{recipe[1]}:ro"],
        read_only=True,
        network_mode="none",
        labels={launcher.LABEL: "1"},
    )
    made.start()

    def inside(script: str) -> str:
        return str(made.exec_run(["sh", "-c", script]).output.decode())

    give_up = time.monotonic() + 120
    while '"step"' not in inside("cat /work/runs/*/events.jsonl"):
        assert time.monotonic() < give_up, made.logs().decode()
        time.sleep(0.2)
    inside("cat /dev/zero > /work/filler")
    code = made.wait(timeout=300)["StatusCode"]
    said = " ".join(made.logs().decode().split())
    made.remove()
    assert code == 1, said
    assert "Traceback" not in said
    assert "disk is full" in said
    assert "result.json" in said


def test_too_little_memory_is_a_signed_failure(launch: Launch) -> None:
    container = launch("run", "--recipe", "smoke", "--quiet", "--no-probe", memory="200m")
    code = container.wait()
    said = container.output
    assert "Traceback" not in said
    assert "memory" in said
    assert code in (1, 3)
    if code == 1:  # the run had begun
        assert container.result["claims"]["reason"] == "out_of_memory"
        assert container.result["signatures"]


def test_docker_stop_as_typed_leaves_a_signed_result(
    engine: Any, main_image: str, recipe: tuple[str, str], tmp_path: Path
) -> None:
    """Without any of `launch`'s flags: ten seconds between SIGTERM and SIGKILL."""
    work = tmp_path / "work"
    work.mkdir()
    made = engine.containers.create(
        main_image,
        ["run", "--recipe", "/inputs/recipe/tiny.toml", "--quiet"],
        volumes=[f"{work}:/work", f"{recipe[0]}:{recipe[1]}:ro"],
        labels={launcher.LABEL: "1"},
    )
    made.start()
    give_up = time.monotonic() + 120
    while not [log for log in work.glob("runs/*/events.jsonl") if '"step"' in log.read_text()]:
        assert time.monotonic() < give_up, made.logs().decode()
        time.sleep(0.2)
    made.stop(timeout=10)  # Podman takes what was made in Docker's way for 0 otherwise
    code, said = made.wait()["StatusCode"], made.logs().decode()
    made.remove()
    assert code == 3, said  # 137 if it had been killed
    [path] = work.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    assert result["claims"]["status"] == "stopped"
    assert result["signatures"]


def driver(folder: Path, *, gpus: int = 1, cuda: int = 13000, processes: int = 0) -> Path:
    """A library that answers like an NVIDIA driver with these."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build a driver library with")
    library = folder / "libnvidia-ml.so.1"
    options = [f"-DCOUNT={gpus}", f"-DCUDA={cuda}", f"-DPROCESSES={processes}"]
    source = Path(__file__).with_name("nvml.c")
    command = ["gcc", "-shared", "-fPIC", *options, "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"gpus": 2}, ["2 GPUs can be seen", "--gpus device=0"]),
        ({"processes": 1}, ["1 other processes use the GPU", "end them first"]),
        ({"cuda": 12040}, ["driver 550.54.14 serves CUDA 12.4, torch needs 13", "580 or later"]),
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_line(
    launch: Launch, tmp_path: Path, machine: dict[str, int], said: list[str]
) -> None:
    library = driver(tmp_path, **machine)
    # The image for tests has a torch without CUDA; this is how one with it tells its version.
    runtime = tmp_path / "METADATA"
    runtime.write_text("Metadata-Version: 2.1\nName: nvidia-cuda-runtime\nVersion: 13.0.96\n")
    site = "/opt/n4090/lib/python3.11/site-packages"
    container = launch(
        "run",
        "--recipe",
        "reference",
        inputs=(
            (str(library), "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"),
            (str(runtime), f"{site}/nvidia_cuda_runtime-13.0.96.dist-info/METADATA"),
        ),
    )
    assert container.wait() == 3
    found = container.output
    assert "Traceback" not in found
    for words in said:
        assert words in found


def test_a_day_without_a_volume_is_refused(engine: Any, main_image: str) -> None:
    made = engine.containers.create(
        main_image, ["run", "--recipe", "reference"], labels={launcher.LABEL: "1"}
    )
    made.start()
    assert made.wait()["StatusCode"] == 3
    said = " ".join(made.logs().decode().split())
    made.remove()
    assert "nothing is mounted at /work" in said
    assert "-v n4090:/work" in said


def test_doctor_in_the_image_finds_its_code_unchanged(launch: Launch) -> None:
    container = launch("doctor", "--json")
    assert container.wait() == 0, container.output
    looks = {look["name"]: look for look in json.loads(container.output)["looks"]}
    assert looks["image's code"]["state"] == "ok"
    for name in ("separate trainer", "image's digest", "volume", "shared memory", "network"):
        assert looks[name]["state"] == "ok", looks[name]


def test_doctor_in_a_bare_container_names_every_flag_that_lacks(
    engine: Any, main_image: str
) -> None:
    made = engine.containers.create(
        main_image, ["doctor", "--json"], user="4090", labels={launcher.LABEL: "1"}
    )
    made.start()
    assert made.wait()["StatusCode"] == 0
    looks = {look["name"]: look for look in json.loads(made.logs())["looks"]}
    made.remove()
    for name, words in {
        "GPU": "--gpus",
        "image's digest": "N4090_IMAGE_DIGEST",
        "separate trainer": "--cap-add",
        "volume": "-v n4090:/work",
        "shared memory": "--shm-size",
        "network": "--network none",
        "work folder": "--work",
    }.items():
        assert looks[name]["state"] != "ok", looks[name]
        assert words in looks[name]["remedy"], looks[name]

"""Measures the images and prints Markdown rows for docker/README.md.

tests/docker/with-engine .venv/bin/python tests/docker/measure.py sizes startup    (seconds)
tests/docker/with-engine .venv/bin/python tests/docker/measure.py build            (minutes)
tests/docker/with-engine .venv/bin/python tests/docker/measure.py smoke --pairs 4  (10 minutes)

On a machine that does nothing else; what is printed carries the load there was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import images

from kit import launcher
from kit.launcher import Container

KIT = [sys.executable, "-m", "kit.cli.main"]
VERIFY, MAIN = "n4090-kit-test:verify", "n4090-kit-test:cpu"
OPTIONS = {VERIFY: ("--target", "verify"), MAIN: ("--build-arg", "LOCK=cpu")}


def row(what: str, value: str, how: str) -> None:
    print(f"| {what} | {value} | {how} |", flush=True)


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def sizes(client: Any) -> None:
    """Every layer above the base's, and the whole."""
    base = len(client.images.get(os.environ["N4090_TEST_BASE_IMAGE"]).attrs["RootFS"]["Layers"])
    for name in (VERIFY, MAIN):
        history = [entry for entry in client.images.get(name).history() if entry["Size"]]
        ours = history[: len(history) - base]
        total = sum(entry["Size"] for entry in history)
        above = sum(entry["Size"] for entry in ours)
        parts = ", ".join(f"{entry['Size'] / 1e6:.1f}" for entry in reversed(ours))
        row(
            f"size of {name}",
            f"{above / 1e6:.0f} MB above its base, {total / 1e6:.0f} in all; layers {parts}",
            "`docker history`",
        )


def startup(client: Any, times: int) -> None:
    """`--help` in a container, against a container that does nothing and the bare command."""
    bare: list[float] = []
    engine: dict[str, list[float]] = {VERIFY: [], MAIN: []}
    helped: dict[str, list[float]] = {VERIFY: [], MAIN: []}
    run = ["docker", "run", "--rm"]
    for _ in range(times):  # by turns, so that a slow moment is everybody's
        bare.append(seconds([*KIT, "--help"]))
        for name in (VERIFY, MAIN):
            engine[name].append(seconds([*run, "--entrypoint", "/bin/true", name]))
            helped[name].append(seconds([*run, name, "--help"]))
    for name in (VERIFY, MAIN):
        medians = [statistics.median(found) for found in (helped[name], engine[name], bare)]
        row(
            f"start-up over the engine's own, {name}",
            f"{medians[0] - medians[1] - medians[2]:+.2f} s ({medians[0]:.2f} s `--help` inside, "
            f"{medians[1]:.2f} s a container that does nothing, {medians[2]:.2f} s `--help` bare)",
            f"medians of {times}",
        )


def cold_build(client: Any) -> None:
    """Both images without any cache but the base image."""
    with tempfile.TemporaryDirectory() as folder:
        context = images.copy_checkout(Path(folder))
        for name, options in OPTIONS.items():
            started = time.perf_counter()
            images.build(client, context, f"{name}-cold", "--no-cache", *options)
            row(f"cold build of {name}", f"{time.perf_counter() - started:.0f} s", "`--no-cache`")
            client.images.remove(f"{name}-cold")


# Notes what its children took.
MEASURED = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
took = resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], "w").write(json.dumps(took.ru_utime + took.ru_stime))
sys.exit(code)
"""


class Took(NamedTuple):
    """One run: by its own clock, and the processor's time of everything it started."""

    wall_s: float
    cpu_s: float


def smoke(client: Any, pairs: int, kept: Path | None) -> None:
    """A shortened smoke recipe in a container and, at the same time, the image's files without one.

    Minutes apart this machine's speed differs by more than a container could cost. So both run at
    once, each on a core of its own; in every second pair the cores are exchanged.
    """
    found: list[tuple[Took, Took]] = []
    first, second, *_ = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        bare = BareImage(client, MAIN, kept or Path(folder))
        for number in range(pairs):
            cores = (first, second) if number % 2 == 0 else (second, first)
            with tempfile.TemporaryDirectory() as works:
                outside, inside = Path(works) / "outside", Path(works) / "inside"
                for work in (outside, inside):
                    work.mkdir(mode=0o755)  # the trainer is somebody else
                    shorten_smoke(work / "short.toml")
                Path(works).chmod(0o755)
                made = sealed_smoke(client, inside, cores[1])
                try:
                    with bare.start(outside, cores[0]) as child:
                        code = made.wait(timeout=3600)["StatusCode"]
                        assert code == 0, made.logs().decode()
                    assert child.returncode == 0
                finally:
                    made.remove(force=True)
                found.append((took(outside), took(inside)))
            row(
                f"shortened smoke, pair {number + 1}",
                f"{found[-1][1].wall_s:.1f} s and {found[-1][1].cpu_s:.1f} CPU s in a container, "
                f"{found[-1][0].wall_s:.1f} s and {found[-1][0].cpu_s:.1f} CPU s bare",
                "",
            )
    for what, field in (("time", 0), ("CPU time", 1)):
        ratios = [inside[field] / outside[field] - 1 for outside, inside in found]
        row(
            f"slowdown in a container, {what}",
            f"{statistics.fmean(ratios):+.1%} ({min(ratios):+.1%} to {max(ratios):+.1%})",
            f"mean of {pairs} pairs",
        )


def took(work: Path) -> Took:
    [path] = work.glob("runs/*/result.json")
    total_s = json.loads(path.read_text())["timing"]["total_s"]
    return Took(total_s, json.loads((work / "cpu_s").read_text()))


def shorten_smoke(path: Path) -> None:
    """One thread, whose work does not hang on what else the machine does, and fewer steps."""
    text = (images.ROOT / "reference" / "recipes" / "smoke.toml").read_text()
    for old, new in (
        ("budget_s = 1200", "budget_s = 1200\nthreads = 1"),
        ("num_steps = 450", "num_steps = 100"),
        ("eval_every = 225", "eval_every = 50"),
        ("num_steps = 120", "num_steps = 40"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


RUN = ("run", "--recipe", "{work}/short.toml", "--quiet", "--no-probe", "--work", "{work}")


class BareImage:
    """The image's interpreter, packages and environment, run without an engine."""

    def __init__(self, client: Any, image: str, folder: Path) -> None:
        if not (folder / "n4090").exists():
            made = client.containers.create(image)
            try:
                subprocess.run(["docker", "cp", f"{made.id}:/opt/n4090", str(folder)], check=True)
            finally:
                made.remove()
        self.python = folder / "n4090" / "bin" / "python"
        image_env = dict(
            one.split("=", 1) for one in client.images.get(image).attrs["Config"]["Env"]
        )
        names = ("PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE")
        path = f"{folder}/n4090/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.environment = {name: image_env[name] for name in names} | {"PATH": path}
        says = [subprocess.run([self.python, "-V"], capture_output=True, check=True).stdout]
        says.append(
            client.containers.run(image, ["-V"], entrypoint="/opt/n4090/bin/python", remove=True)
        )
        if says[0] != says[1]:
            raise SystemExit(f"error: Python here is not the image's: {says}")

    def start(self, work: Path, core: int) -> subprocess.Popen[bytes]:
        command = [self.python, "-m", "kit.cli.main", *(word.format(work=work) for word in RUN)]
        (work / "tmp").mkdir()
        return subprocess.Popen(
            ["taskset", "-c", str(core), self.python, "-c", MEASURED, work / "cpu_s", *command],
            env=self.environment | {"TMPDIR": str(work / "tmp")},
            stdout=subprocess.DEVNULL,
        )


def sealed_smoke(client: Any, work: Path, core: int) -> Any:
    """Started under the flags of `launch`, with a program before the kit that counts."""
    image = launcher.find_image(client, MAIN)
    command = tuple(word.format(work="/work") for word in RUN)
    container = Container(
        image=image.reference, digest=image.digest, command=command, work=str(work)
    )
    line = launcher.docker_run(container)
    place = line.index(image.reference)
    line[place:] = [
        *("--entrypoint", "/opt/n4090/bin/python", image.reference),
        *("-c", MEASURED, "/work/cpu_s", "n4090-kit", *command),
    ]
    line = ["docker", "create", "--cpuset-cpus", str(core), *line[line.index("--rm") + 1 :]]
    made = client.containers.get(subprocess.check_output(line, text=True).strip())
    made.start()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = ("sizes", "startup", "build", "smoke")
    parser.add_argument("what", nargs="+", choices=choices)
    parser.add_argument("--times", type=int, default=15, help="starts to take the median of")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of smoke runs")
    parser.add_argument("--bare", type=Path, help="where the image's files stay for another time")
    asked = parser.parse_args()
    client = launcher.connect()
    with tempfile.TemporaryDirectory() as folder:
        context = images.copy_checkout(Path(folder))
        for name, options in OPTIONS.items():
            images.build(client, context, name, *options)
    engine = "Podman" if launcher.is_podman(client) else "Docker"
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"{engine} {client.version()['Version']}\n"
    )
    for what in asked.what:
        match what:
            case "sizes":
                sizes(client)
            case "startup":
                startup(client, asked.times)
            case "build":
                cold_build(client)
            case "smoke":
                smoke(client, asked.pairs, asked.bare)


if __name__ == "__main__":
    main()

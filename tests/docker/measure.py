"""Measures the images and prints Markdown rows for docker/README.md.

tests/docker/with-engine .venv/bin/python tests/docker/measure.py sizes startup    (seconds)
tests/docker/with-engine .venv/bin/python tests/docker/measure.py build            (minutes)
tests/docker/with-engine .venv/bin/python tests/docker/measure.py smoke --pairs 3  (half an hour)

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
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


def smoke(client: Any, pairs: int) -> None:
    """Total seconds of the smoke recipe, by its own clock, in a container and bare, by turns."""
    ratios = []
    for number in range(pairs):
        turns: list[Callable[[Path], None]] = [bare_smoke, lambda work: sealed_smoke(client, work)]
        found = {}
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            with tempfile.TemporaryDirectory() as folder:
                turns[place](Path(folder))
                [path] = Path(folder).glob("runs/*/result.json")
                found[place] = json.loads(path.read_text())["timing"]["total_s"]
        ratios.append(found[1] / found[0])
        row(
            f"smoke, pair {number + 1}",
            f"{found[1]:.1f} s in a container, {found[0]:.1f} s bare",
            "",
        )
    value = statistics.median(ratios) - 1
    row("slowdown in a container", f"{value:+.1%}", f"median of {pairs} pairs, recipe smoke")


def bare_smoke(work: Path) -> None:
    seconds([*KIT, "run", "--recipe", "smoke", "--quiet", "--no-probe", "--work", str(work)])


def sealed_smoke(client: Any, work: Path) -> None:
    image = launcher.find_image(client, MAIN)
    command = ("run", "--recipe", "smoke", "--quiet", "--no-probe")
    container = Container(
        image=image.reference, digest=image.digest, command=command, work=str(work)
    )
    made = launcher.create(client, container)
    try:
        made.start()
        code = made.wait(timeout=3600)["StatusCode"]
        assert code == 0, made.logs().decode()
    finally:
        made.remove(force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = ("sizes", "startup", "build", "smoke")
    parser.add_argument("what", nargs="+", choices=choices)
    parser.add_argument("--times", type=int, default=15, help="starts to take the median of")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of smoke runs")
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
                smoke(client, asked.pairs)


if __name__ == "__main__":
    main()

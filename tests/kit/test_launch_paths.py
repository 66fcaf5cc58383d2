"""Folders with signs that volume options use: carried by --mount, or refused before the start."""

import csv
import shlex

import pytest

from kit.errors import LaunchError
from kit.launcher import Container, check_paths, docker_run, shell_line

ODD = ["/d 2026-11-30T12:00", "/d,x", '/say "hi"', "/a:b,c\"d'e f", "/üñ:x"]


@pytest.mark.parametrize("path", ODD)
@pytest.mark.parametrize("podman", [False, True])
def test_an_odd_folder_is_one_field_of_a_mount(path: str, podman: bool) -> None:
    container = Container(
        "image", ("run",), work=path, inputs=((path, "/inputs/data"),), podman=podman
    )
    check_paths(container)
    line = docker_run(container)
    assert "--volume" not in line
    mounts = [line[i + 1] for i, word in enumerate(line) if word == "--mount"]
    read = [next(csv.reader([text])) for text in mounts]  # as the engine's command reads it
    assert read == [
        ["type=bind", f"source={path}", "target=/work"],
        ["type=bind", f"source={path}", "target=/inputs/data", "readonly"],
    ]
    assert shlex.split(shell_line(container)) == line


def test_plain_folders_and_volumes_stay_volumes() -> None:
    line = docker_run(Container("image", ("run",), inputs=(("/it's here", "/inputs/data"),)))
    assert "--mount" not in line
    assert "n4090:/work:rw" in line and "/it's here:/inputs/data:ro" in line


@pytest.mark.parametrize("path", ["/a\nb", "/a\tb", "/a\x7fb"])
def test_a_path_that_no_option_carries_is_refused(path: str) -> None:
    with pytest.raises(LaunchError, match="control character"):
        check_paths(Container("image", ("run",), work=path))
    with pytest.raises(LaunchError, match="control character"):
        check_paths(Container("image", ("run",), inputs=((path, "/inputs/data"),)))

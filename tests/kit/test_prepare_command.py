"""`n4090-kit prepare` as it is typed, and killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from hub_server import Answer
from prepare_place import SMALL, Place, archive, recipe_of, recipe_text
from prepare_place import hub as hub
from prepare_place import place as place
from prepare_place import small_core as small_core

from kit.cli.prepare import prepare as command
from kit.errors import PrerequisiteError
from kit.prepare.inputs import Inputs, describe, locate


def run_command(place: Place, *options: str) -> Any:
    path = place.root / "tiny.toml"
    path.write_text(place.recipe.text)
    arguments = ["--recipe", str(path), "--work", str(place.work), *options]
    return CliRunner().invoke(command, arguments, catch_exceptions=True)


def test_the_command_says_what_it_takes_and_where_things_lie(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "")  # restored afterwards: the command sets it
    first = run_command(place, "--mirror", place.hub.url, "--yes")
    assert first.exit_code == 0, first.output
    assert "To fetch: 3 files, 1" in first.stderr
    assert place.hub.url in first.stderr
    assert "Time: unknown yet" in first.stderr
    assert str(place.folder / "pretrain") in first.stdout
    assert "odc-by" in first.stdout
    second = run_command(place)
    assert "nothing was fetched" in second.stderr
    checked = run_command(place, "--check")
    assert checked.exit_code == 0
    shards = describe(Inputs(data=place.folder / "pretrain"), place.root / "digests.json")
    assert f'data.digest = "{shards["data"]["digest"]}"' in checked.stdout
    (place.folder / "pretrain" / "shard_00000.parquet").unlink()
    refused = run_command(place, "--check")
    assert isinstance(refused.exception, PrerequisiteError)
    assert refused.exception.exit_code == 3


def test_a_recipe_for_a_folder_says_that_data_is_needed(place: Place) -> None:
    text = recipe_text().replace('kind = "hub"', 'kind = "folder"')
    place.recipe = recipe_of(text, place.root)
    ended = run_command(place)
    assert isinstance(ended.exception, PrerequisiteError)
    assert "--data DIR" in (ended.exception.hint or "")


def environment(place: Place) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": place.hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(place.root / "hf"),
        "PYTHONWARNINGS": "error",
    }


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 90  # a machine that does other things starts Python slowly
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.01)


def test_killed_in_the_middle_of_a_file_it_goes_on_there(place: Place) -> None:
    path = place.root / "tiny.toml"
    path.write_text(place.recipe.text)
    line = [
        sys.executable,
        "-c",
        "from kit.cli.main import main; main()",
        "prepare",
        *("--recipe", str(path), "--work", str(place.work)),
    ]
    place.hub.faults["shard_00001.parquet"] = [Answer(hold=10_000)]

    def arrived() -> bool:
        parts = list(place.work.rglob("shard_00001.parquet.part"))
        return bool(parts) and parts[0].stat().st_size > 0

    with subprocess.Popen(line, env=environment(place), stderr=subprocess.PIPE) as process:
        wait_for(arrived, "the first bytes")
        process.send_signal(signal.SIGKILL)
        process.wait()
    place.hub.release.set()
    with pytest.raises(PrerequisiteError):
        locate(place.recipe, place.work, {})
    assert not list(place.work.rglob("shard_00001.parquet"))
    again = subprocess.run(
        line, env=environment(place), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    first, second = place.hub.fetched("shard_00001")
    # What was on the disk when the kill came: all that had arrived, but for a buffer's content.
    begin = re.fullmatch(r"bytes=(\d+)-", second or "")
    assert first is None
    assert begin is not None
    assert 0 < int(begin[1]) <= 10_000
    assert len(place.shards()) == 3
    assert "Warning" not in again.stderr


def test_one_part_alone_is_fetched_whatever_else_the_recipe_needs(
    place: Place, small_core: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "")
    text = recipe_text(core=True).replace('kind = "hub"', 'kind = "folder"')
    place.recipe = recipe_of(text, place.root)
    place.hub.plain["/eval_bundle.zip"] = archive(SMALL)
    done = run_command(place, "--mirror", place.hub.url, "--yes", "--only", "core")
    assert done.exit_code == 0, done.output
    assert (place.work / "core" / "core.yaml").is_file()
    assert not (place.folder / "pretrain").exists()
    ended = run_command(place, "--only", "sft")
    assert isinstance(ended.exception, PrerequisiteError)
    assert "reads no sft" in ended.exception.message

"""The main commands where people really run them: odd users, terminals, limits and folders.

In each place one process does what a person does: run, verify, evaluate, build a corpus, prepare,
submit. Each of them ends well there, with no traceback and no fault.
"""

import codecs
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

NOBODY = 54321  # a user without a name
PREPARED = """schema_version = 1
name = "made"
track = "smoke"
budget_s = 60
stages = ["tokenizer", "pretrain"]
[data]
kind = "stories"
stories = 100
[pretrain]
num_steps = 1
total_batch_size = 16384
"""
SPEC = 'name = "c"\n[[source]]\nname = "a"\npath = "texts"\nfilters = false\n'
# Each line is the arguments of a command; several commands share the price of one start.
DRIVER = """
import json, sys
from kit.cli.main import main
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["n4090-kit", *arguments]
    print("+", ascii(arguments), file=sys.stderr, flush=True)
    try:
        main()
        codes.append(0)
    except SystemExit as stopped:
        codes.append(stopped.code)
open("codes.json", "w").write(json.dumps(codes))
"""
ODD_FOLDER = "a day 2026-11-30T12:00, \u5b57 'q' \"d\" $x\nand a line"


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


PLACES: dict[str, dict[str, Any]] = {
    "umask 077": {"before": lambda: os.umask(0o077) and None},
    "no HOME": {"without": ("HOME",)},
    "HOME that takes no file": {"variables": {"HOME": "/proc"}},
    "no user name": {"before": become_nobody, "without": ("HOME", "USER", "LOGNAME")},
    "ASCII": {"variables": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}},
    "an odd locale": {"variables": {"LC_ALL": "tr_TR.ISO-8859-9", "PYTHONIOENCODING": "iso8859-9"}},
    "64 open files": {"before": limit_files},
    "64 MB of shared memory": {"shell": "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec"},
    "an odd folder": {"folder": ODD_FOLDER},
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Outside pytest's own folder, which no other user may enter."""
    made = Path(tempfile.mkdtemp(prefix="n4090-place-"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def unable(place: dict[str, Any]) -> str | None:
    """Why this machine cannot make the place."""
    if place.get("before") is become_nobody:
        if os.geteuid() != 0:
            return "only root can become a user without a name"
        try:
            subprocess.run([sys.executable, "-c", ""], preexec_fn=become_nobody, check=True)
        except PermissionError:
            return "another user may not start this interpreter"
    if "shell" in place:
        probe = ["unshare", "-m", "sh", "-c", f"{place['shell']} true"]
        if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
            return "no mount namespace here"
    return None


def commands_in(work: Path) -> list[list[str]]:
    """What is done in a place, once its files lie in `work`."""
    run = ["run", "-r", "recipe/bigram.toml", "--work", ".", "--no-probe", "-q"]
    return [
        run,
        ["verify", "runs/RUN"],
        ["eval", "compare", "runs/RUN", "runs/RUN"],
        ["data", "build", "spec.toml", "--out", "corpus", "--workers", "1"],
        ["prepare", "-r", "made.toml", "--work", "."],
        ["submit", "runs/RUN", "--board", "board", "--as", "me"],
        ["board", "publish", "--board", "board", "--work", "."],
    ]


def drive(work: Path, arguments: list[list[str]], place: dict[str, Any]) -> tuple[list[Any], str]:
    """Exit codes of the commands, done by one process in `place`, and what they said."""
    codes = work / "codes.json"
    codes.unlink(missing_ok=True)
    line = [sys.executable, "-c", DRIVER, json.dumps(arguments)]
    if "shell" in place:
        line = ["unshare", "-m", "sh", "-c", f'{place["shell"]} "$@"', "sh", *line]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **place.get("variables", {})}
    for name in place.get("without", ()):
        variables.pop(name, None)
    before: Callable[[], None] | None = place.get("before")
    done = subprocess.run(
        line, cwd=work, env=variables, capture_output=True, preexec_fn=before, timeout=300
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    return json.loads(codes.read_text()) if codes.exists() else [], said


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_the_main_commands_work_where_people_run_them(name: str, folder: Path, bigram: Any) -> None:
    place = PLACES[name]
    if reason := unable(place):
        pytest.skip(reason)
    given = bigram(core=True)
    work = folder / place.get("folder", "work")
    shutil.copytree(given.work, work)
    shutil.copytree(given.recipe.parent, work / "recipe")
    # As some editors save them: with a byte-order mark.
    for file in (work / "recipe").iterdir():
        if file.is_file():
            file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    (work / "made.toml").write_text(PREPARED)
    (work / "spec.toml").write_text(SPEC)
    (work / "texts").mkdir()
    texts = [
        f"Text {i} of a corpus that is long enough to be kept by all rules." for i in range(40)
    ]
    pq.write_table(pa.table({"text": texts}), work / "texts" / "a.PARQUET")
    (work / "board").mkdir()
    for path in [work, *work.rglob("*")]:  # whoever the commands run as
        path.chmod(0o777 if path.is_dir() else 0o666)

    run, *others = commands_in(work)
    codes, said = drive(work, [run], place)
    assert codes == [0], said
    [made] = (work / "runs").iterdir()
    named = [[word.replace("RUN", made.name) for word in line] for line in others]
    codes, more = drive(work, named, place)
    said += more
    assert "Traceback" not in said and "has a fault" not in said, said
    assert codes == [0] * len(named), said

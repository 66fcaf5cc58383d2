"""Programs that a model wrote: what they may do, and how they are taken from an answer."""

import json
import os
import sys
from pathlib import Path

import pytest

from reference.chat.programs import pass_all, passes, program_of, why_not_here

SHARED = Path(os.environ.get("N4090_SHARED", Path(__file__).parents[3] / "shared"))
pytestmark = pytest.mark.skipif(
    why_not_here() is not None, reason=f"programs cannot be run here: {why_not_here()}"
)
ROW = {
    "prompt": "import math\nfrom typing import List\n\ndef area(r: float) -> float:\n",
    "entry_point": "area",
    "test": "def check(candidate):\n    assert round(candidate(1), 2) == 3.14\n",
}
RIGHT = "def area(r: float) -> float:\n    return math.pi * r * r"


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (RIGHT, True),
        (f"Here it is:\n```python\n{RIGHT}\n```\nDone.", True),
        (f"```\n{RIGHT}\n```", True),
        (RIGHT.replace("math.pi", "3"), False),
        ("I do not know.", False),
        ("", False),
        ("def area(r):\n    raise SystemExit(0)", False),
        ("import os\nos._exit(0)", False),
        ("print('x' * 10_000_000)\n" + RIGHT, True),
        ("\ud800", False),
    ],
)
def test_an_answer_passes_when_its_tests_run_to_the_end(said: str, right: bool) -> None:
    assert passes(program_of(ROW, said)) is right


HARMFUL = {
    "network": "import socket\nsocket.socket()",
    "a pair of sockets": "import socket\nsocket.socketpair()",
    "a file written": "open('x', 'w')",
    "a file appended to": "open(r'{file}', 'a')",
    "a file truncated": "import os\nos.truncate(r'{file}', 0)",
    "a file removed": "import os\nos.remove(r'{file}')",
    "a file renamed": "import os\nos.rename(r'{file}', r'{file}2')",
    "a folder made": "import os\nos.mkdir('x')",
    "rights changed": "import os\nos.chmod(r'{file}', 0)",
    "a link": "import os\nos.symlink('a', 'b')",
    "a process": "import os\nos.fork()",
    "a program": "import os\nos.execv('/bin/true', ['true'])",
    "a shell": "import subprocess\nsubprocess.run('true', shell=True, check=True)",
    "a signal": "import os\nos.kill({pid}, 0)",
    "a limit raised": "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))",
    "memory": "x = bytearray(2**30)",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_could_do_harm_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    mode = file.stat().st_mode
    text = HARMFUL[name].replace("{file}", str(file)).replace("{pid}", str(os.getpid()))
    # Refused, not ended: the program itself sees an error that it can catch.
    caught = "try:\n" + "".join(f"    {line}\n" for line in text.splitlines())
    refused = f"{caught}except (OSError, MemoryError, ValueError):\n    pass\nelse:\n    1 / 0\n"
    assert passes(refused)
    assert not passes(text)
    assert file.read_text() == "kept" and file.stat().st_mode == mode


def test_the_environment_is_empty_and_the_folder_is_not_ours() -> None:
    assert passes(
        f"import os\nassert not os.environ.get('HOME')\nassert os.getcwd() != {str(Path.cwd())!r}"
    )


@pytest.mark.slow
def test_a_program_without_end_is_ended() -> None:
    assert pass_all(["while True:\n    pass", "import time\ntime.sleep(60)", "x = 1"], 3) == [
        False, False, True,
    ]  # fmt: skip


def test_the_published_solutions_pass() -> None:
    file = SHARED / "data" / "chat_eval" / "humaneval.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()][:20]
    programs = [program_of(row, row["prompt"] + row["canonical_solution"]) for row in rows]
    assert pass_all(programs, 2) == [True] * len(rows)
    assert not any(pass_all([program_of(row, row["prompt"] + "    pass") for row in rows[:4]], 2))


def test_python_is_the_one_that_evaluates() -> None:
    assert passes(f"import sys\nassert sys.version == {sys.version!r}")

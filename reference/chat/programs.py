"""Programs that a model wrote (HumanEval): taken from its answer, run with their tests, apart.

Each runs in a process of its own that has no network, cannot write or start anything, and ends
after seconds (`reference.chat.locked_child`). Off by default (`chat_eval.run_programs`): a limit
that a kernel enforces is still no reason to run foreign code unasked.

The program is put together by nanochat's rule (tasks/humaneval.py): the imports of the prompt, the
answer's code, the tests, and the call of `check`.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WALL_S = 10.0  # the child has 5 s of processor time; a sleeping one ends here
_CHILD = Path(__file__).with_name("locked_child.py")
_BLOCK = re.compile(r"```(?:python)?[ \t]*\n(.*?)\n?```", re.DOTALL)
_IMPORT = re.compile(r"^(?:import|from)\s.*$", re.MULTILINE)
# One that must be refused on each count; what it reaches is named.
_PROBE = """
import os, socket
reached = []
for name, act in (
    ("network", lambda: socket.socket()),
    ("files", lambda: open("probe", "w")),
    ("processes", lambda: os.fork() or os._exit(0)),
):
    try:
        act()
    except OSError:
        continue
    reached.append(name)
assert not reached, reached
"""


def program_of(row: Mapping[str, Any], said: str) -> str:
    """The program to run for an answer to a HumanEval row."""
    block = _BLOCK.search(said)
    code = block[1] if block else said
    imports = "\n".join(_IMPORT.findall(row["prompt"]))
    return f"{imports}\n\n{code}\n\n{row['test']}\ncheck({row['entry_point']})\n"


def passes(program: str) -> bool:
    """Whether `program` runs to its end."""
    word = secrets.token_hex(16).encode() + b"\n"
    with tempfile.TemporaryDirectory(prefix="n4090-program-") as empty:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=empty,
            env={},
            start_new_session=True,
        )
        try:
            said, _ = child.communicate(word + program.encode("utf-8", "replace"), timeout=WALL_S)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            child.kill()
            child.communicate()
    return said == word


def pass_all(programs: Sequence[str], threads: int) -> list[bool]:
    """`passes` of each, `threads` at a time."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(passes, programs))


def why_not_here() -> str | None:
    """Why programs cannot be run on this machine; None where they can."""
    if not sys.platform.startswith("linux"):
        return "programs are run on Linux only"
    if not passes(_PROBE):
        return "this kernel or container does not let a process be locked down (seccomp)"
    return None

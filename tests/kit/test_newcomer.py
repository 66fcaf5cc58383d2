"""What stands between a newcomer and the run: skips with reasons, no noise, one screen at most."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS, COLUMNS = 24, 80


def test_make_test_says_why_tests_were_skipped() -> None:
    done = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in done.stdout.splitlines() if "-m pytest" in line]
    assert "-rs" in line.split()


def test_the_installer_prints_no_warnings_of_pip() -> None:
    """`--quiet` given twice leaves pip its errors alone."""
    text = (ROOT / "requirements" / "install").read_text()
    (call,) = re.findall(r"^pip=\((.*)\)$", text, re.MULTILINE)
    assert call.split().count("--quiet") == 2
    assert text.count("-m pip") == 1, "every other call goes through the same words"


@pytest.mark.slow
def test_a_run_shows_less_than_a_screen_before_its_live_display(tmp_path: Path) -> None:
    """Counts the rows that a terminal of 80 by 24 shows until the first stage has started."""
    pytest.importorskip("pyarrow")
    main, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = [sys.executable, "-c", "from kit.cli.main import main; main()", "run", "-r", "smoke"]
    process = subprocess.Popen(
        [*command, "--no-probe", "--work", str(tmp_path)],
        stdin=end, stdout=end, stderr=end, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    seen, until = b"", time.monotonic() + 300
    try:
        while b"tokenizer: started" not in seen and time.monotonic() < until:
            if select.select([main], [], [], 1)[0]:
                try:
                    seen += os.read(main, 65536)
                except OSError:  # the program has ended and closed the terminal
                    break
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(main)
    before, started, _ = seen.decode(errors="replace").partition("tokenizer: started")
    assert started, before
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in before.split("\n")]
    rows = sum(max(1, -(-len(line.rsplit("\r", 1)[-1]) // COLUMNS)) for line in lines)
    assert rows <= ROWS, before

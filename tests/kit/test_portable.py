"""`verify` needs nothing that only Linux has: it runs on macOS and Windows too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = sorted(path.parent for path in (ROOT / "submissions").rglob("result.json"))

# Takes away what other systems lack, and makes every text file need a named encoding.
ELSEWHERE = """
import ctypes, os, signal, sys, time

class Missing:
    names = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty"}
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in Missing.names:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for owner, names in (
    (os, ("uname", "fork", "getuid", "geteuid", "getpgid", "killpg", "setsid", "sched_getaffinity",
          "getloadavg", "pread", "pwrite", "posix_fallocate", "posix_fadvise", "pidfd_open",
          "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "statvfs", "sysconf", "mkfifo",
          "chown", "wait4", "register_at_fork")),
    (signal, ("SIGKILL", "SIGHUP", "pthread_sigmask")),
    (time, ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW", "clock_gettime_ns", "clock_gettime")),
):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
load = ctypes.CDLL.__init__
def no_libc(self, name, *arguments, **options):
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return load(self, name, *arguments, **options)
ctypes.CDLL.__init__ = no_libc
"""
USES = {
    "from Python": "from kit import verify\nprint(verify({path!r}).verdict)\n",
    "a path object": (
        "from pathlib import Path\nfrom kit import verify\nprint(verify(Path({path!r})).verdict)\n"
    ),
    "as a command": (
        "from kit.cli.main import cli\n"
        "try: cli(['verify', {path!r}], prog_name='n4090-kit')\n"
        "except SystemExit as end: print('consistent' if not end.code else end.code)\n"
    ),
}


@pytest.mark.parametrize("use", USES)
def test_verify_runs_without_anything_that_only_linux_has(use: str) -> None:
    code = ELSEWHERE + USES[use].format(path=str(ROWS[0]))
    options = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "consistent"


def test_verify_takes_options_and_says_why() -> None:
    from kit import verify

    report = verify(str(ROWS[0]), strict=True)
    assert report.verdict in ("consistent", "refused") and report.findings
    assert verify(ROOT / "README.md").verdict == "unreadable"
    with pytest.raises(TypeError, match="strickt"):
        verify(ROWS[0], strickt=True)

"""Writing for a person without ever waiting for one.

A terminal can be paused (Ctrl-S), a pager or a pipe not read on. Who writes there by ordinary means
then stands still: here that would be the process that keeps the clock and the log.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
from typing import TextIO


class Screen(io.TextIOBase):
    """Writes to the terminal or pipe below `file` what it takes at once; the rest is not shown.

    Opened anew, so that not waiting is a matter of this process alone: the shell shares the other.
    Where that is forbidden (the terminal is another user's), and for all that is neither, it
    writes to `file` itself when that says that it takes something. Lines are written whole, so
    that a pipe takes all of one or nothing.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._descriptor = _opened_anew(file)
        self._waits = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._file.encoding or "utf-8"

    def isatty(self) -> bool:
        return self._file.isatty()

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, text: str) -> int:
        """Raises OSError where nobody can read any more."""
        if self._descriptor is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._descriptor, text.encode(self.encoding, "replace"))
        elif self._waits or _takes(self._file):
            self._file.write(text)
            self._file.flush()
        return len(text)

    def wait(self) -> None:
        """From here on it waits like any other: nothing depends on it any more."""
        self._waits = True
        self._let_go()

    def close(self) -> None:
        self._let_go()
        super().close()

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _opened_anew(file: TextIO) -> int | None:
    try:
        kind = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISFIFO(kind) or (stat.S_ISCHR(kind) and file.isatty())):
            return None
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{file.fileno()}", flags)
    except (OSError, ValueError):  # forbidden, or no file of the system at all
        return None


def _takes(file: TextIO) -> bool:
    try:
        descriptor = file.fileno()
    except (OSError, ValueError):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))

"""What a stage prints: its beginning and its end in a file of bounded size."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kit.limits import MAX_PRINTED_BYTES_PER_STAGE, PRINTED_TAIL_BYTES


class PrintedOutput:
    """Appends what a stage prints to `path` until the file is full; then keeps the newest bytes.

    A disk that is full loses text, never the run.
    """

    def __init__(self, path: Path, limit: int = MAX_PRINTED_BYTES_PER_STAGE) -> None:
        self._file = path.open("ab", buffering=0)
        self._room = max(0, limit - self._file.tell())
        self._tail = b""
        self.left_out_bytes = 0  # not in the file's beginning

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes that the stage printed."""
        head, rest = chunk[: self._room], chunk[self._room :]
        if head:
            self._room -= len(head)
            self._write(head)
        if rest:
            self.left_out_bytes += len(rest)
            self._tail = (self._tail + rest)[-PRINTED_TAIL_BYTES:]

    def close(self) -> None:
        """Writes the end of the text after what was left out, and closes the file."""
        if self._file.closed:
            return
        if self._tail:
            missing = self.left_out_bytes - len(self._tail)
            self._write(f"\n[{missing} bytes left out]\n".encode() + self._tail)
        self._file.close()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._file.write(data)

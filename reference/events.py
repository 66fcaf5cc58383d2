"""Reports to the supervisor: JSON lines on the inherited descriptor that N4090_EVENTS_FD names."""

from __future__ import annotations

import json
import os
from typing import Any, TextIO

FD_VARIABLE = "N4090_EVENTS_FD"


class Events:
    """Writes one JSON line an event; without a supervisor (`stream=None`) it stays silent."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    @classmethod
    def from_env(cls) -> Events:
        fd = os.environ.get(FD_VARIABLE)
        return cls(None if fd is None else os.fdopen(int(fd), "w", buffering=1))

    def emit(self, ev: str, **data: Any) -> None:
        """Reports event `ev`. A supervisor that is gone is no reason to stop training."""
        if self._stream is None:
            return
        try:
            self._stream.write(json.dumps({"ev": ev, "data": data}) + "\n")
        except BrokenPipeError:
            self._stream = None

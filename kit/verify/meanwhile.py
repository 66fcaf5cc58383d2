"""Work that a second process does while this one goes on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Meanwhile(Generic[Value]):
    """`work(argument)` in a forked process, begun at once."""

    def __init__(self, work: Callable[..., Value], argument: object) -> None:
        context = get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_do, args=(work, argument, sender), daemon=True)
        self._process.start()
        sender.close()

    def result(self) -> Value | None:
        """What the work gave, once it is there; None where its process ended without a word."""
        found: Value | None = None
        with contextlib.suppress(EOFError):
            found = self._receiver.recv()
        self._process.join()
        return found

    def end(self) -> None:
        """Ends the process, whether it is done or not."""
        self._receiver.close()
        self._process.kill()
        self._process.join()


def _do(work: Callable[..., object], argument: object, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is told, and ends this one
    # What fails here is done again there, and told there.
    with contextlib.suppress(Exception):
        sender.send(work(argument))

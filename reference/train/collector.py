"""Garbage collection between steps instead of in the middle of one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


class QuietCollector:
    """Runs the garbage collector only when asked, once the first step is done.

    What is alive then (the model, torch itself) is set aside: no later collection looks at it.
    """

    def __init__(self) -> None:
        self._quiet = False

    def set_aside(self) -> None:
        """Called after a step; only the first call does something."""
        if self._quiet:
            return
        gc.collect()
        gc.freeze()
        gc.disable()
        self._quiet = True

    def forget_what_was_set_aside(self) -> None:
        """Lets a model that has been replaced go, and sets aside what is alive now."""
        if self._quiet:
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def collect(self) -> None:
        if self._quiet:
            gc.collect()


@contextmanager
def quiet_collector() -> Iterator[QuietCollector]:
    """A `QuietCollector` whose effects end with the block."""
    try:
        yield QuietCollector()
    finally:
        gc.enable()
        gc.unfreeze()

"""`python -m reference.stamped REQUEST.json`: a stage whose every report holds its own moment.

For `n4090-kit bench supervisor`, which times steps while nobody reads what the trainer reports.
"""

import sys
import time
from typing import Any

from reference.events import Events
from reference.stage import main


class StampedEvents(Events):
    """Reports with `at_us`, microseconds of CLOCK_MONOTONIC at the moment of the report."""

    def emit(self, ev: str, **data: Any) -> None:
        super().emit(ev, **data, at_us=time.monotonic_ns() // 1000)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], StampedEvents))

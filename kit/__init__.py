"""n4090-kit, the judge: runs trainers under a clock, signs what happened, verifies results.

`from kit import verify` gives the package `kit.verify`, which can be called with a run folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time `verify` is the package itself, imported on demand
    from kit.verify.run import verify as verify

__version__ = "0.1.0"

"""Checks of a result: one small function each, reading only. See `kit.verify.run.CHECKS`.

The package can be called:

    >>> from kit import verify
    >>> verify("submissions/2026/example/9ffdb8e5b168ed02").verdict
    'consistent'
"""

from __future__ import annotations

import sys
from types import ModuleType

from kit.verify.evidence import Options
from kit.verify.finding import Check, Finding, Report
from kit.verify.run import CHECKS, check_by_id, checks_table, verify, verify_result

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Options",
    "Report",
    "check_by_id",
    "checks_table",
    "verify_result",
]


class _Callable(ModuleType):
    __call__ = staticmethod(verify)


sys.modules[__name__].__class__ = _Callable

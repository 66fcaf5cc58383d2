"""Checks of a result: one small function each, reading only. See `kit.verify.checks.CHECKS`."""

from kit.verify.evidence import Options
from kit.verify.finding import Check, Finding, Report
from kit.verify.run import CHECKS, check_by_id, checks_table, verify_result

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

"""One line of what `doctor` found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DoctorItem:
    """One thing looked at: fine, worth knowing, or missing."""

    name: str
    state: str  # ok, note, missing
    found: str
    remedy: str = ""

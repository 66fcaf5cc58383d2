"""Honest days are not refused, however they vary; see rates.py for the whole table."""

from __future__ import annotations

from pathlib import Path

import pytest
import rates


@pytest.mark.slow
def test_no_random_honest_day_is_refused(tmp_path: Path) -> None:
    refused, _ = rates.false_refusals(40, tmp_path)
    assert not refused

"""Honest days are not refused, however they vary; see rates.py for the whole table."""

from __future__ import annotations

from pathlib import Path

import pytest
import rates


@pytest.mark.slow
def test_no_random_honest_day_is_refused(tmp_path: Path) -> None:
    refused, _ = rates.false_refusals(40, tmp_path)
    assert not refused


def test_security_names_the_kinds_of_forgeries_that_are_tried() -> None:
    page = rates.PAGE.read_text().split(rates.KINDS_BEGIN)[1].split(rates.KINDS_END)[0]
    assert page.strip() == rates.kinds().strip(), (
        "PYTHONPATH=tests python tests/kit/rates.py --kinds"
    )

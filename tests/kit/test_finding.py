"""A check's conclusion stands only where no finding of the same check contradicts it."""

from __future__ import annotations

import pytest

from kit.verify.finding import Finding, conclude, concluded, fail, missing, ok, skip, warn


@pytest.mark.parametrize(
    ("finding", "unless", "kept"),
    [
        (fail("a"), "fail", False),
        (warn("a"), "fail", True),
        (warn("a"), "warn", False),
        (missing("a"), "warn", True),
        (missing("a"), "skip", False),
        (skip("a"), "skip", False),
        (ok("a"), "skip", True),
    ],
)
def test_a_conclusion_is_left_out_for_a_finding_as_bad_as_it_says(
    finding: Finding, unless: str, kept: bool
) -> None:
    last = conclude("all is well", unless=unless)  # type: ignore[arg-type]
    assert concluded([finding, last]) == ([finding, last] if kept else [finding])


def test_a_conclusion_alone_passes() -> None:
    [alone] = concluded([conclude("all is well")])
    assert alone.status == "pass" and alone.message == "all is well"
    assert "unless" not in alone.to_json()

"""What of a log counts for the result."""

from __future__ import annotations

import pytest

from kit.result import Story
from kit.trust.chain import Chain
from reference.lab import run_folder


def story_of(*steps: int) -> Story:
    header = {"ev": "header", "data": {}}
    start = {"ev": "stage_start", "data": {"stage": "pretrain"}}
    rows = [{"ev": "step", "data": {"step": step, "of": n}} for n, step in enumerate(steps)]
    return Story.from_chain(Chain("", records=[header, start, *rows]))


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ((0, 1, 2), [0, 1, 2]),
        ((0, 1, 2, 1, 2, 3), [0, 3, 4, 5]),
        # By time a resumed run may end before the step that the one before had come to.
        ((0, 1, 2, 3, 4, 1, 2), [0, 5, 6]),
        ((0, 1, 2, 0), [3]),
        ((), []),
    ],
)
def test_steps_that_a_resumed_run_gave_up_do_not_count(steps: tuple[int, ...], kept) -> None:
    assert [event["data"]["of"] for event in story_of(*steps).steps("pretrain")] == kept
    rows = [event["data"] for event in story_of(*steps).of("pretrain", "step")]
    assert [row["of"] for row in run_folder._without_given_up(rows)] == kept

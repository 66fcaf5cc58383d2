"""What of a log counts for the result."""

from __future__ import annotations

import pytest

from kit.result import Story
from kit.trust.chain import Chain
from reference.lab.run_folder import RunFolder

# The order in which steps were reported, and which of the reports count.
REPORTED = [
    ((0, 1, 2), [0, 1, 2]),
    ((0, 1, 2, 1, 2, 3), [0, 3, 4, 5]),
    # By time a resumed run may end before the step that the one before had come to.
    ((0, 1, 2, 3, 4, 1, 2), [0, 5, 6]),
    ((0, 1, 2, 0), [3]),
    ((), []),
]


@pytest.mark.parametrize(("steps", "counted"), REPORTED)
def test_steps_that_a_resumed_run_gave_up_do_not_count(
    tmp_path, steps: tuple[int, ...], counted: list[int]
) -> None:
    reports = [
        {"ev": ev, "data": {"step": step, "report": number, "name": "val_bpb"}}
        for number, step in enumerate(steps)
        for ev in ("step", "eval")
    ]
    start = {"ev": "stage_start", "data": {"stage": "pretrain"}}
    records = [{"ev": "header", "data": {}}, start, *reports]
    story = Story.from_chain(Chain("", records=records))
    assert [event["data"]["report"] for event in story.steps("pretrain")] == counted
    run = RunFolder(tmp_path, tuple(records), {})  # `report` and `plan` read the log by themselves
    assert [row["report"] for row in run.steps()] == counted
    assert [row["report"] for row in run.evals("val_bpb")] == counted

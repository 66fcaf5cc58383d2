"""What of a log counts for the result."""

from __future__ import annotations

import pytest

from kit.events import EVENTS
from kit.run_log import RunLog
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


HEADER = {
    "run": "x",
    "kit": {"version": "0", "code": "x"},
    "image": {"digest": None, "reason": "none"},
    "recipe": {"name": "x", "track": "open", "digest": "x"},
    "seed": {"value": 1, "source": "recipe"},
    "signer": {"public_key": "x", "created": True},
    "software": {},
    "environment": {
        "rx_bytes": None,
        "tx_bytes": None,
        "ld_preload": False,
        "time_namespace": None,
        "container": None,
    },
    "boot": "x",
}


def full(record: dict) -> dict:
    """`record` as a whole line of a log."""
    by = EVENTS[record["ev"]].by
    least = {"header": HEADER, "stage_start": {"attempt": 0}, "step": {"tokens": 1, "loss": 1.0}}
    return {
        **{"seq": 0, "prev": "sha256:" + "0" * 64, "t_ns": 0, "wall_ms": 0},
        "clocks": {"raw_ns": 0, "syscall_ns": None, "uptime_ms": None},
        "src": "sup" if by == "supervisor" else "trainer",
        "ev": record["ev"],
        "data": {**least.get(record["ev"], {}), **record["data"]},
    }


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
    log = RunLog.from_chain(Chain("", records=[full(record) for record in records]))
    assert [event.data.more["report"] for event in log.steps()] == counted
    assert [event.data.more["report"] for event in log.evaluations("val_bpb")] == counted
    run = RunFolder(tmp_path, tuple(records), {})  # `report` and `plan` read the log by themselves
    assert [row["report"] for row in run.steps()] == counted
    assert [row["report"] for row in run.evals("val_bpb")] == counted

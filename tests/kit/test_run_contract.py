"""The contract: what a trainer says is stored, cut down or dropped, and never does harm."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.contract import Redactor, parse_report, stage_seed
from kit.events import Step
from kit.limits import MAX_LINE_BYTES, MAX_TEXT
from kit.run.process import LineBuffer
from kit.timing import ClockSample
from kit.trust.canonical import canonical_bytes
from kit.typed import to_json

NOTHING = Redactor({})
NOW = ClockSample.now()


def line(ev: str, **data: object) -> bytes:
    return json.dumps({"ev": ev, "data": data}).encode()


def test_a_step_is_stored_as_reported() -> None:
    report = parse_report(line("step", step=3, tokens=10, loss=2.5), NOTHING, NOW)
    assert report is not None
    assert report.data == Step(3, 10, 2.5)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"not json",
        b"[]",
        b'{"ev": "step"}',
        b'{"ev": "step", "data": {}}',
        b'{"ev": "run_stop", "data": {"status": "complete"}}',  # the supervisor's own word
        b'{"ev": "note", "data": {"text": NaN}}',
        b'{"ev": "step", "data": {"step": 1, "tokens": 1, "loss": NaN}}',
        line("step", step=-1, tokens=1, loss=1.0),
        line("step", step=True, tokens=1, loss=1.0),
        line("step", step=1, tokens=1, loss="low"),
        line("step", step=1, tokens=2**53, loss=1.0),
        line("step", step=1, tokens=1, loss=1.0, dt_s="fast"),
        line("note", text="\ud800"),
        line("note", text="x", deep=[[[[[[[[[[[1]]]]]]]]]]]),
        b'{"ev": "note", "data": {"text": "' + b"x" * MAX_LINE_BYTES + b'"}}',
        b"[" * 50_000,
    ],
)
def test_what_breaks_the_contract_is_dropped(bad: bytes) -> None:
    assert parse_report(bad, NOTHING, NOW) is None


@given(st.binary(max_size=300) | st.text().map(str.encode))
def test_no_line_raises_and_what_is_kept_can_be_chained(data: bytes) -> None:
    report = parse_report(data, NOTHING, NOW)
    assert report is None or canonical_bytes(to_json(report.data))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_any_extra_data_is_chainable_or_dropped(extra: dict) -> None:
    data = {**extra, "text": "x"}
    report = parse_report(json.dumps({"ev": "note", "data": data}).encode(), NOTHING, NOW)
    assert report is None or canonical_bytes(to_json(report.data))


def test_places_of_the_machine_and_long_texts_do_not_pass() -> None:
    redact = Redactor(
        {"work": Path("/home/ann/w"), "run": Path("/home/ann/w/runs/1"), "none": None}
    )
    report = parse_report(
        line("note", text="lost /home/ann/w/runs/1/a and /home/ann/w/b"), redact, NOW
    )
    assert report is not None
    assert report.data.text == "lost <run>/a and <work>/b"
    relative = Redactor({"recipe_dir": Path("mine"), "work": Path("/home/ann/w")})
    assert relative(["mine", "x"]) == ["<recipe_dir>", "x"]
    long = parse_report(line("note", text="x" * 5000), redact, NOW)
    assert long is not None
    assert len(long.data.text) == MAX_TEXT


def test_stages_have_seeds_of_their_own_that_fit_31_bits() -> None:
    seeds = {stage_seed(seed, stage) for seed in (0, 1) for stage in ("pretrain", "sft")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


@given(st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b)), st.integers(1, 50))
def test_lines_come_out_whole_however_they_are_cut(lines: list[bytes], size: int) -> None:
    stream = b"".join(item + b"\n" for item in lines)
    buffer = LineBuffer()
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert [item for piece in pieces for item in buffer.feed(piece)] == lines


def test_a_line_without_end_is_dropped_once_and_the_next_one_is_read() -> None:
    buffer = LineBuffer()
    for _ in range(5):
        assert buffer.feed(b"x" * MAX_LINE_BYTES) == []
    assert buffer.feed(b"tail\nnext\n") == [b"next"]
    assert buffer.dropped == 1

"""Events as dataclasses: read from logs, checked when reported, and the schema made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.dataclass_schema import event_schema

from kit.errors import SchemaError
from kit.events import EVENTS, Event, Step, parse_report
from kit.run_log import LOG_KIND, RunLog
from kit.schemas import load_schema
from kit.trust.chain import Chain, read_chain
from kit.typed import to_json

ROOT = Path(__file__).parents[2]
LOGS = sorted((ROOT / "submissions").rglob("events.jsonl"))


def record(ev: str, src: str, data: dict[str, Any], seq: int = 0) -> dict[str, Any]:
    clocks = {"raw_ns": 0, "syscall_ns": None, "uptime_ms": None}
    envelope = {"seq": seq, "prev": "sha256:" + "0" * 64, "t_ns": seq, "wall_ms": 0}
    return {**envelope, "clocks": clocks, "src": src, "ev": ev, "data": data}


def test_the_shipped_schema_is_made_from_the_classes() -> None:
    assert load_schema("event") == event_schema()  # `make schemas` writes it


def kept(value: Any) -> Any:
    """`value` without None and empty objects: a default that is left out means the same."""
    if isinstance(value, dict):
        return {key: kept(item) for key, item in value.items() if item not in (None, {})}
    return [kept(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.parent.name)
def test_logs_of_earlier_kits_stay_readable_and_fit_the_schema(path: Path) -> None:
    chain = read_chain(path, LOG_KIND)
    log = RunLog.from_chain(chain)
    assert log.run_stop is not None and log.steps()
    validator = jsonschema.Draft202012Validator(event_schema())
    for event, stored in zip(log.events, chain.records, strict=True):
        assert not list(validator.iter_errors(stored))
        assert kept(to_json(event.data)) == kept(stored["data"])


GOOD = {"step": 3, "tokens": 10, "loss": 2.5}
BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("step", "sup", GOOD),  # only a stage reports steps
    ("run_start", "trainer", {"compile_caches": "x"}),  # only the supervisor starts a run
    ("surprise", "trainer", {}),
    ("step", "somebody", GOOD),
    ("step", "trainer", {**GOOD, "step": -1}),
    ("step", "trainer", {**GOOD, "step": True}),
    ("step", "trainer", {**GOOD, "step": 2**53}),
    ("step", "trainer", {**GOOD, "loss": "2.5"}),
    ("step", "trainer", {**GOOD, "cuda_s": "fast"}),
    ("step", "trainer", {"step": 3, "tokens": 10}),
    ("stage_start", "sup", {"stage": "lunch", "attempt": 0}),
    ("artifacts", "sup", {"stage": "core", "folder": "eval", "digest": "x", "files": []}),
    ("artifacts", "sup", {"stage": "core", "folder": "eval", "digest": "x", "files": [{"a": 1}]}),
    ("resume", "sup", {"rebooted": 1, "downtime_s": 1.0, "boot": "x"}),
    ("eval", "eval", {"name": 7}),
]


@pytest.mark.parametrize(("ev", "src", "data"), BAD)
def test_reader_and_schema_reject_the_same_events(ev: str, src: str, data: dict[str, Any]) -> None:
    wrong = record(ev, src, data)
    with pytest.raises(SchemaError):
        Event.from_json(wrong)
    # Who may report what is the one rule that the schema leaves to the reader.
    if (ev, src) not in {("step", "sup"), ("run_start", "trainer")}:
        assert list(jsonschema.Draft202012Validator(event_schema()).iter_errors(wrong))


def test_every_optional_field_may_be_left_out_and_unknown_fields_are_kept() -> None:
    event = Event.from_json(record("step", "trainer", {**GOOD, "lr": 0.1, "dt_s": None}))
    assert isinstance(event.data, Step)
    assert (event.data.dt_s, event.data.more) == (None, {"lr": 0.1})
    assert to_json(event.data) == {**GOOD, "lr": 0.1}


def test_a_stage_can_report_no_word_of_the_supervisor() -> None:
    for name, kind in EVENTS.items():
        if kind.by == "supervisor":
            with pytest.raises(SchemaError, match="cannot report"):
                parse_report(name, {})
    assert parse_report("note", {"text": "x"}).ev == "note"


def test_a_log_without_a_header_or_with_a_foreign_line_names_the_line() -> None:
    with pytest.raises(SchemaError, match="does not begin with a header"):
        RunLog.from_chain(Chain("", records=[record("note", "trainer", {"text": "x"})]))
    with pytest.raises(SchemaError, match="line 2"):
        RunLog.from_chain(
            Chain("", records=[record("note", "trainer", {"text": "x"}), record("x", "sup", {})])
        )

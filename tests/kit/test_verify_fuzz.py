"""Whatever lies in a run folder, `verify` ends in a report: no traceback, soon, in little space."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import tamper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tamper import chain_lines

from kit.run.log import LOG_KIND
from kit.run.telemetry import TELEMETRY_KIND
from kit.trust.digest import sha256_bytes
from kit.verify import verify_result
from kit.verify.evidence import safe_path
from kit.verify.manifest import safetensors_problem

quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    tamper.gpu_run(steps=24, resume_at=10).write(folder)
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(item, (*path, key))
    return found


def put(value: Any, path: tuple[Any, ...], junk: Any) -> None:
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = junk


@given(data=st.data())
@quick
def test_any_value_in_a_result_is_read_or_refused(run: Path, data: st.DataObject) -> None:
    result = json.loads((run / "result.json").read_text())
    kept = json.dumps(result)
    put(result, data.draw(st.sampled_from(places(result))), data.draw(JUNK))
    try:
        tamper.write_signed(run, {**result, "signatures": []})
        verify_result(run)
    finally:
        (run / "result.json").write_text(kept)


@given(data=st.data())
@quick
def test_any_value_in_a_chained_and_signed_log_is_read_or_refused(
    run: Path, data: st.DataObject
) -> None:
    """A forger may write any log; its digests and signature are right."""
    kept = {name: (run / name).read_bytes() for name in ("result.json", "events.jsonl")}
    events = [json.loads(line) for line in kept["events.jsonl"].splitlines()]
    for _ in range(data.draw(st.integers(1, 4))):
        event = events[data.draw(st.integers(0, len(events) - 1))]
        put(event, data.draw(st.sampled_from(places(event))), data.draw(JUNK))
    log = chain_lines(events, LOG_KIND)
    result = json.loads(kept["result.json"])
    lines = log.splitlines()
    result["log"] = {"head": sha256_bytes(lines[-1]), "count": len(lines), "bytes": len(log)}
    try:
        (run / "events.jsonl").write_bytes(log)
        tamper.write_signed(run, result)
        verify_result(run)
    finally:
        for name, content in kept.items():
            (run / name).write_bytes(content)


@given(data=st.data())
@quick
def test_any_telemetry_is_read_or_refused(run: Path, data: st.DataObject) -> None:
    kept = (run / "telemetry.jsonl").read_bytes()
    records = [json.loads(line) for line in kept.splitlines()]
    record = records[data.draw(st.integers(0, len(records) - 1))]
    put(record, data.draw(st.sampled_from(places(record))), data.draw(JUNK))
    try:
        changed = chain_lines(records, TELEMETRY_KIND)
        (run / "telemetry.jsonl").write_bytes(changed)
        assert (verify_result(run).exit_code == 0) == (changed == kept)
    finally:
        (run / "telemetry.jsonl").write_bytes(kept)


@given(name=st.sampled_from(["core.json", "chat.json"]), data=st.binary(max_size=200) | JUNK)
@quick
def test_any_evaluation_file_is_read_or_refused(run: Path, name: str, data: Any) -> None:
    path = run / "eval" / name
    kept = path.read_bytes()
    try:
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        assert verify_result(run).exit_code == 1
    finally:
        path.write_bytes(kept)


@given(data=st.binary(max_size=300), size=st.integers(0, 64))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_whole_safetensors_or_not(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + data)
    assert isinstance(safetensors_problem(path), str)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_safe_path_stays_inside(name: str) -> None:
    if safe_path(name):
        inside = (Path("/root/folder") / name).resolve()
        assert inside.is_relative_to("/root/folder") and inside != Path("/root/folder")


def test_a_megabyte_of_malice_in_any_file_ends_soon_and_small(run: Path, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("result.json", "events.jsonl", "telemetry.jsonl", "eval/core.json"):
        for malice in (
            b"[" * 2**20,
            b'{"a":' * 200_000,
            b"\0" * 2**20,
            b"9" * 2**20,
            b"\n" * 2**20,
        ):
            copy = tmp_path / "copy"
            shutil.copytree(run, copy)
            (copy / name).write_bytes(malice)
            began = time.process_time()
            assert verify_result(copy).exit_code in (1, 2)
            assert time.process_time() - began < 2
            shutil.rmtree(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024

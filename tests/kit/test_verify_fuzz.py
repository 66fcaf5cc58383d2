"""Whatever lies in a run folder, `verify` ends in a report: no traceback, soon, in little space."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tamper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tamper import chain_lines

from kit.errors import SchemaError
from kit.recipe import parse_recipe
from kit.run_log import LOG_KIND
from kit.telemetry_summary import TELEMETRY_KIND
from kit.trust.digest import sha256_bytes
from kit.verify import verify_result
from kit.verify.evidence import safe_path
from kit.verify.weights import BrokenWeights, read_weights

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
    assert verify_result(folder).verdict == "consistent"
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
    with contextlib.suppress(BrokenWeights):
        assert read_weights(path).parameters >= 0


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_safe_path_stays_inside(name: str) -> None:
    if safe_path(name):
        inside = (Path("/root/folder") / name).resolve()
        assert inside.is_relative_to("/root/folder") and inside != Path("/root/folder")


MALICE: dict[str, Any] = {
    "unknown keys": lambda d: d.update({f"k{i}": 1 for i in range(80_000)}),
    "files": lambda d: d["checkpoint"]["base"].update(files=[{}] * 250_000),
    "gpus": lambda d: d["hardware"]["before"].update(gpus=[{}] * 250_000),
    "notes": lambda d: d.update(notes=[""] * 250_000),
    "signatures": lambda d: d.update(signatures=d["signatures"] * 1500),
    "summary": lambda d: d["telemetry"]["summary"].update({str(i): [[[]]] for i in range(60_000)}),
    "a signature": lambda d: d["signatures"][0].update(
        signature="-----BEGIN SSH SIGNATURE-----\n" + "A" * 10**6
    ),
    "a recipe": lambda d: d["recipe"].update(text="x=" + "[" * 65_000),
    "a dotted key": lambda d: d["recipe"].update(text="a." * 32_000 + "a=1"),
}


@pytest.mark.parametrize("name", MALICE)
def test_a_megabyte_of_values_where_few_belong_is_refused_soon(
    run: Path, tmp_path: Path, name: str
) -> None:
    """In a process of its own, so that its memory is its own."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    result = json.loads((copy / "result.json").read_text())
    MALICE[name](result)
    if name in ("a recipe", "a dotted key"):
        tamper.write_signed(copy, {**result, "signatures": []})
    else:
        (copy / "result.json").write_text(json.dumps(result))
    code, cpu_s, peak_bytes = in_a_process(f"""
from pathlib import Path
from kit.verify import verify_result
raise SystemExit(verify_result(Path({str(copy)!r})).exit_code)
""")
    assert code in (1, 2)
    assert cpu_s < 2 + START_S and peak_bytes < 512 * 2**20


START_S = 1.0  # of an interpreter on a busy machine


def in_a_process(code: str) -> tuple[int, float, int]:
    """Exit code, CPU seconds and peak memory of Python code; a traceback is a failure."""
    # Its own high-water mark: what `wait4` tells begins at that of the process it was forked from.
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: sys.stderr.write(open('/proc/self/status').read()))\n" + code
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    said = child.stderr.read()
    child.stderr.close()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert "Traceback" not in said, said
    [peak_kib] = re.findall(r"VmHWM:\s+(\d+) kB", said)
    return child.returncode, usage.ru_utime + usage.ru_stime, int(peak_kib) * 1024


RECIPES = {
    "deep arrays": "a = " + "[" * 60_000,
    "deep tables": "a = " + "{a=" * 20_000,
    "a dotted key": ".".join(["a"] * 30_000) + " = 1",
    "a dotted table": "[" + ".".join(["a"] * 20_000) + "]",
    "many tables": "".join(f"[a{i}]\n" for i in range(7000)),
    "many keys": "".join(f"k{i}=1\n" for i in range(6500)),
    "many of one table": "[[x]]\n" * 10_000,
    "an integer of 60,000 digits": "budget_s = " + "9" * 60_000,
    "a float past all bounds": "budget_s = 1e" + "9" * 1000,
    "spaces": "name" + " " * 60_000 + "=1",
    "a word": "x" * 60_000,
    "two megabytes": "#" * 2**21,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_one_clear_error(name: str) -> None:
    began = time.process_time()
    with pytest.raises(SchemaError):
        parse_recipe(RECIPES[name], folder=Path())
    assert time.process_time() - began < 2


@given(st.text(alphabet=st.sampled_from("[]{}=.\"'\n, abk1e-+#\\u0_"), max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_recipe_or_one_clear_error(text: str) -> None:
    with pytest.raises(SchemaError):
        parse_recipe(text, folder=Path())


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_in_a_recipe_is_read_or_refused(data: st.DataObject) -> None:
    lines = tamper.RECIPE.splitlines()
    index = data.draw(st.sampled_from([i for i, line in enumerate(lines) if "=" in line]))
    key = lines[index].partition("=")[0]
    value = data.draw(st.sampled_from(TOML_VALUES) | st.integers().map(str) | st.floats().map(str))
    lines[index] = f"{key}= {value}"
    with contextlib.suppress(SchemaError):
        parse_recipe("\n".join(lines), folder=Path())


TOML_VALUES = ["[]", "[[]]", "{}", "{a=1}", '""', "true", "1979-05-27", "inf", "-nan", '["core"]']


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

"""The chained log: what breaks it, and what a crash may not break."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import PrerequisiteError, SchemaError
from kit.trust.canonical import canonical_bytes, parse_canonical, parse_strict
from kit.trust.chain import chain_seed, read_chain, scan_chain
from kit.trust.chain_writer import ChainWriter
from kit.trust.digest import sha256_bytes


def write(path: Path, count: int = 5, start: int = 0) -> None:
    with ChainWriter(path, "test") as writer:
        for i in range(start, start + count):
            writer.append({"ev": "step", "data": {"step": i, "loss": 1.5}})


def test_chain_is_what_its_definition_says(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    expected = chain_seed("test")
    for seq, line in enumerate(lines):
        record = json.loads(line)
        assert (record["seq"], record["prev"]) == (seq, expected)
        expected = sha256_bytes(line)
    chain = read_chain(path, "test")
    assert (chain.head, chain.count, chain.bytes) == (expected, 5, path.stat().st_size)
    assert chain.problems == [] and chain.torn == 0
    assert [record["data"]["step"] for record in chain.records] == list(range(5))


def test_writer_continues_where_it_stopped(tmp_path: Path) -> None:
    write(tmp_path / "log", 3)
    write(tmp_path / "log", 3, start=3)
    chain = read_chain(tmp_path / "log", "test")
    assert chain.problems == [] and chain.count == 6


def test_another_kind_of_chain_is_no_replacement(tmp_path: Path) -> None:
    write(tmp_path / "log")
    assert read_chain(tmp_path / "log", "telemetry").problems[0].line == 1


@pytest.mark.parametrize("change", ["edit", "drop", "swap", "insert", "first", "append"])
def test_every_change_breaks_the_chain(tmp_path: Path, change: str) -> None:
    path = tmp_path / "log"
    write(path, 8)
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "edit":
        lines[3] = lines[3].replace(b"1.5", b"1.4")
    elif change == "drop":
        del lines[4]
    elif change == "swap":
        lines[2], lines[3] = lines[3], lines[2]
    elif change == "insert":
        lines.insert(4, lines[4])
    elif change == "first":
        del lines[0]
    else:
        lines.append(b'{"ev":"step","prev":"sha256:00","seq":8}\n')
    path.write_bytes(b"".join(lines))
    assert read_chain(path, "test").problems


def test_editing_the_last_line_moves_the_head(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path)
    head = read_chain(path, "test").head
    path.write_bytes(path.read_bytes().replace(b'"step":4', b'"step":9'))
    assert read_chain(path, "test").head != head


def test_torn_at_every_byte_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, 3)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        log = tmp_path / f"cut{cut}"
        log.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        with ChainWriter(log, "test") as writer:
            assert writer.count == kept
            writer.append({"ev": "resume"})
        chain = read_chain(log, "test")
        assert chain.problems == [] and chain.count == kept + 1 and chain.torn == 0
        rest = whole[ends[kept - 1] if kept else 0 : cut]
        torn = log.with_name(log.name + ".torn")
        assert (torn.read_bytes() if torn.exists() else b"") == (rest + b"\n" if rest else b"")


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\0" * 100 + b"\n" + b"\0" * 9, b"\xff\n{\n"])
def test_blocks_of_garbage_after_a_power_cut_are_set_aside(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "log"
    write(path, 3)
    with path.open("ab") as file:
        file.write(tail)
    with ChainWriter(path, "test") as writer:
        assert (writer.count, writer.torn_bytes) == (3, len(tail))
        writer.append({"ev": "resume"})
    assert read_chain(path, "test").problems == []


def test_a_log_edited_in_the_middle_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, 5)
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step":7'))
    with pytest.raises(SchemaError, match="damaged"):
        ChainWriter(path, "test")
    assert b'"step":4' in path.read_bytes()


WRITER = """
import sys
from pathlib import Path
from kit.trust.chain_writer import ChainWriter
with ChainWriter(Path(sys.argv[1]), "test") as writer:
    print("ready", flush=True)
    while True:
        writer.append({"ev": "step", "data": {"text": "x" * (writer.count % 5000)}})
"""


def test_kill_9_leaves_a_chain_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for pause in (0.02, 0.05, 0.11):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    write(path, 1)
    chain = read_chain(path, "test")
    assert chain.problems == [] and chain.count > 3


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with (
        ChainWriter(tmp_path / "log", "test"),
        pytest.raises(PrerequisiteError, match="another process"),
    ):
        ChainWriter(tmp_path / "log", "test")


def test_what_others_append_is_cut_off_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ChainWriter(path, "test") as writer:
        writer.append({"ev": "a"})
        with path.open("ab") as file:
            file.write(b'{"ev":"forged"}\n')
        writer.append({"ev": "b"})
        assert writer.foreign_bytes == 16
    chain = read_chain(path, "test")
    assert chain.problems == [] and [record["ev"] for record in chain.records] == ["a", "b"]


def test_a_log_replaced_or_removed_during_the_run_is_put_back(tmp_path: Path) -> None:
    for change in ("replace", "remove"):
        path = tmp_path / change
        with ChainWriter(path, "test") as writer:
            writer.append({"ev": "a"})
            path.unlink()
            if change == "replace":
                path.write_bytes(b"forged\n")
            writer.append({"ev": "b"})
        chain = read_chain(path, "test")
        assert chain.problems == [] and [record["ev"] for record in chain.records] == ["a", "b"]
        assert writer.foreign_bytes > 0


def test_a_full_disk_leaves_the_chain_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    real = os.pwrite
    with ChainWriter(path, "test") as writer:
        writer.append({"ev": "a"})
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:10], at))
        with pytest.raises(OSError) as caught:
            writer.append({"ev": "b"})
        assert caught.value.errno == errno.ENOSPC
        monkeypatch.undo()
        assert writer.foreign_bytes == 0
        writer.append({"ev": "c"})
    assert [record["ev"] for record in read_chain(path, "test").records] == ["a", "c"]


FILL = """
import errno, os, sys
from pathlib import Path

from kit.trust.chain_writer import ChainWriter

folder, room = Path(sys.argv[1]), int(sys.argv[2])
with ChainWriter(folder / "log", "test", room=room) as writer:
    writer.append({"ev": "a"})
    filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(filler, bytes(4096)):
            pass
    except OSError as error:
        assert error.errno == errno.ENOSPC
    writer.append({"text": "x" * 100_000})
"""


def can_mount() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no mount namespaces here")
@pytest.mark.parametrize("room", [0, 2**18])
def test_room_is_kept_where_others_fill_the_disk(tmp_path: Path, room: int) -> None:
    script = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}" && exec "$0" -c "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, FILL, str(tmp_path)]
    done = subprocess.run([*command, str(room)], capture_output=True, text=True)
    assert ("No space left" in done.stderr) == (room == 0), done.stderr
    assert (done.returncode == 0) == (room > 0), done.stderr


def test_room_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ChainWriter(path, "test", room=2**20) as writer:
        writer.append({"ev": "a"})
        size = path.stat().st_size
        if path.stat().st_blocks * 512 < 2**20:
            pytest.skip("this file system keeps no room")
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 < 2**20


def test_a_record_longer_than_a_line_may_be_is_refused(tmp_path: Path) -> None:
    with (
        ChainWriter(tmp_path / "log", "test") as writer,
        pytest.raises(SchemaError, match="too long"),
    ):
        writer.append({"text": "x" * 2**20})


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "log")
    with pytest.raises(SchemaError, match="too large"):
        read_chain(tmp_path / "log", "test", max_bytes=100)


@given(data=st.binary(max_size=300), at=st.integers(0, 500), keep=st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_any_damage_is_reported_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, keep: int
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    path = folder / "log"
    write(path, 4)
    whole = path.read_bytes()
    at = min(at, len(whole))
    damaged = whole[:at] + data + whole[at + keep :]
    path.write_bytes(damaged)
    chain = scan_chain(path, "test", lambda record: None)
    if damaged != whole:
        assert chain.problems or chain.torn or chain.head != sha256_bytes(whole.split(b"\n")[3])


@pytest.mark.parametrize("blank", ['"a" :2', '"a"  :2', '"a"\t:2', '"\\u0061":2'])
def test_a_key_given_twice_is_seen_whatever_stands_behind_it(tmp_path: Path, blank: str) -> None:
    line = f'{{"a":1,{blank},"prev":"{chain_seed("k")}","reason":"in words","seq":0}}\n'
    path = tmp_path / "chain"
    path.write_text(line)
    (problem,) = read_chain(path, "k").problems
    assert "twice" in problem.message


LONG = 2**53 + 1  # a double does not hold it


@pytest.mark.parametrize(
    "line",
    [
        f'{{"a":{LONG}}}',
        f'{{"a":-{LONG}}}',
        f'{{"a": {LONG}}}',
        f'{{"a":[1,{LONG}]}}',
        f'{{"a":[1, -{LONG}]}}',
        f'{{"a":[{LONG}]}}',
        f"{LONG}",
        '{"a":1e400}',
        '{"a":NaN}',
        '{"a":1,"a":2}',
        '{"a":{"b":1,"b":2}}',
        '{"a":1}{"b":2}',
        '{"a":',
        '{"a":"\x01"}',
        "",
    ],
)
def test_a_line_that_two_readers_could_read_differently_is_rejected(line: str) -> None:
    with pytest.raises(SchemaError):
        parse_canonical(line.encode())


NOT_CANONICAL = [
    '{"a": 1}',
    '{"a":1} ',
    '{"b":1,"a":2}',
    '{"a":1.0}',
    '{"a":-0}',
    '{"a":-0.0}',
    '{"a":1e2}',
    '{"a":1E-9}',
    '{"a":0.10}',
    '{"a":"\\u0041"}',
    '{"a":"\\/"}',
    '{"a":"\x7f\\u000A"}',
    "\ufeff{}",
    '{"\ufb33":2,"\U0001f600":1}',  # RFC 8785 orders keys by UTF-16 code units
]


@pytest.mark.parametrize("line", NOT_CANONICAL)
def test_a_line_in_any_other_form_is_rejected(line: str) -> None:
    with pytest.raises(SchemaError):
        parse_canonical(line.encode())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16", "utf-32", "utf-8-sig"])
def test_a_line_in_another_encoding_is_rejected(encoding: str) -> None:
    with pytest.raises(SchemaError):
        parse_canonical('{"a":1}'.encode(encoding))


def test_a_surrogate_smuggled_in_as_utf_8_is_rejected() -> None:
    with pytest.raises(SchemaError):
        parse_canonical(b'{"a":"\xed\xa0\x80"}')


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(value=VALUE, compact=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_line_is_valid_if_and_only_if_it_is_the_canonical_form(value: Any, compact: bool) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    line = json.dumps(value, separators=separators).encode()
    try:
        expected = rfc8785.dumps(json.loads(line))
    except rfc8785.CanonicalizationError:
        expected = None
    try:
        found = parse_canonical(line)
    except SchemaError:
        assert expected != line
    else:
        assert canonical_bytes(found) == line


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_is_read_alike_by_the_strict_reader(data: bytes) -> None:
    try:
        value = parse_canonical(data)
    except SchemaError:
        return
    assert parse_strict(data) == value and canonical_bytes(value) == data


@pytest.mark.parametrize("size", [2**15 - 1, 2**15, 2**15 + 1, 2**17])
def test_long_and_short_lines_are_read_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "log"
    with ChainWriter(path, "test") as writer:
        writer.append({"ev": "long", "data": "x" * (size - 100)})
        for step in range(700):
            writer.append({"ev": "step", "data": {"step": step, "note": "ü" * (step % 7 == 0)}})
    chain = read_chain(path, "test")
    assert chain.problems == [] and chain.count == 701 and chain.torn == 0
    assert chain.bytes == path.stat().st_size
    assert [record["data"]["step"] for record in chain.records[1:]] == list(range(700))
    with path.open("ab") as file:
        file.write(b'{"ev":"torn"')
    assert read_chain(path, "test").torn == 12

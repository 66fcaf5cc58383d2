"""Files that fight back: pipes, devices, sparse and growing files, and checkpoints that lie."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tamper

from kit.errors import SchemaError
from kit.files import read_regular
from kit.trust.digest import sha256_file
from kit.verify import Options, verify_result
from kit.verify.checks.manifest import foreign_content
from kit.verify.evaluate import _check_config
from kit.verify.weights import BrokenWeights, read_weights

HUGE = 40 * 2**30
WEIGHTS = "checkpoints/pretrain/model.safetensors"


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(HUGE)


def unix_socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": pipe,
    "sparse": sparse,
    "socket": unix_socket,
    "folder": folder,
    "device": device,
}
FILES = (
    "result.json",
    "events.jsonl",
    "telemetry.jsonl",
    "eval/core.json",
    "eval/chat.json",
    WEIGHTS,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_one_ends_in_a_finding_at_once(
    tmp_path: Path, name: str, kind: str
) -> None:
    run = tmp_path / "run"
    tamper.gpu_run(steps=24).write(run)
    KINDS[kind](run / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    report = verify_result(run)
    assert report.verdict in ("refused", "unreadable"), report.verdict
    # 40 GB are neither read nor hashed: that alone would take half a minute.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 10


def test_a_file_that_grows_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"x" * 2**20)
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 2**30:
                file.write(b"x" * 2**16)
                time.sleep(0.0002)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        while path.stat().st_size < 2**21:
            time.sleep(0.001)
        with pytest.raises(SchemaError, match="changed"):
            while True:  # until it grows between the first look and the last
                sha256_file(path)
        with pytest.raises(SchemaError, match="too large"):
            read_regular(path, 2**20)
    finally:
        stop.set()
        writer.join()


def tensors(entries: dict[str, Any] | str, data: bytes) -> bytes:
    header = entries if isinstance(entries, str) else json.dumps(entries)
    return struct.pack("<Q", len(header)) + header.encode() + data


def entry(shape: Any = (4,), offsets: Any = (0, 4), dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ONE = '"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}'
BROKEN = {
    "a name twice": tensors("{" + ONE + ", " + ONE + "}", b"1234"),
    "a field twice": tensors('{"w": {"dtype": "U8", "dtype": "F32", "shape": [4]}}', b"1234"),
    "a shape larger than its bytes": tensors({"w": entry((4, 4))}, b"1234"),
    "a shape smaller than its bytes": tensors({"w": entry((2,))}, b"1234"),
    "a negative size": tensors({"w": entry((-2, -2))}, b"1234"),
    "a size that is not whole": tensors({"w": entry((4.0,))}, b"1234"),
    "an unknown dtype": tensors({"w": entry(dtype="PICKLE")}, b"1234"),
    "a dtype that is a list": tensors({"w": entry(dtype=["U8"])}, b"1234"),
    "no dtype": tensors({"w": {"shape": [4], "data_offsets": [0, 4]}}, b"1234"),
    "a field of its own": tensors({"w": {**entry(), "code": "x"}}, b"1234"),
    "offsets backwards": tensors({"w": entry(offsets=(4, 0))}, b"1234"),
    "an overlap": tensors({"w": entry(), "v": entry(offsets=(2, 6))}, b"123456"),
    "a hole": tensors({"w": entry(), "v": entry(offsets=(6, 10))}, b"1234567890"),
    "bytes behind": tensors({"w": entry()}, b"12345"),
    "metadata that are no text": tensors({"__metadata__": {"a": 1}, "w": entry()}, b"1234"),
    "a header of blanks": tensors("    ", b""),
    "a list": tensors("[1]", b""),
    "deep nesting": tensors("{" + '"a":[' * 10**4, b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_two_readers_read_differently_are_broken(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors({"w": entry()}, b"1234"))
    assert read_weights(path).parameters == 4
    path.write_bytes(BROKEN[name])
    with pytest.raises(BrokenWeights):
        read_weights(path)


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("data.pkl", pickle.dumps(print))
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_passes_for_text(tmp_path: Path, protocol: int) -> None:
    for value in (os.system, [1, 2], {"a": print}):
        path = tmp_path / "tokenizer.json"
        path.write_bytes(pickle.dumps(value, protocol))
        assert foreign_content(path)


@pytest.mark.parametrize(
    "content", [b"MZ\x90\0", b"\x7fELF", b"BZh9", b"\x28\xb5\x2f\xfd", b"a\0b", b"\xff\xfe" * 40]
)
def test_other_content_does_not_pass_for_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert foreign_content(path)
    path.write_text('{"text": "in any language: é 語"}')
    assert not foreign_content(path)


@pytest.mark.parametrize(
    "name",
    ["x.bin", "x", "x.pkl", "x.pickle", "x.py", "x.gguf", "x.onnx", "x.PT", "state.pt", "x.so.1"],
)
def test_only_listed_kinds_of_file_are_taken(tmp_path: Path, name: str) -> None:
    """Both in the manifest and beside it; `state/` alone may hold what it likes."""
    draft = tamper.gpu_run(steps=24)
    draft.files[f"checkpoints/pretrain/{name}"] = b"plain text"
    report = verify_result(draft.write(tmp_path / "listed"))
    assert report.refused_by == ["V21"]
    run = tmp_path / "beside"
    tamper.gpu_run(steps=24).write(run)
    (run / f"checkpoints/pretrain/{name}").write_bytes(b"plain text")
    assert verify_result(run).refused_by == ["V21"]


def test_the_state_folder_may_hold_anything_and_what_is_named_like_it_may_not(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    tamper.gpu_run(steps=24).write(run)
    (run / "checkpoints/pretrain/state").mkdir()
    (run / "checkpoints/pretrain/state/step-1.pt").write_bytes(archive())
    assert verify_result(run).status("V21") == "pass"
    (run / "checkpoints/pretrain/state-1.json").write_bytes(archive())
    assert verify_result(run).refused_by == ["V21"]


def test_an_archive_behind_whole_weights_is_refused(tmp_path: Path) -> None:
    data = archive()
    draft = tamper.gpu_run(steps=24)
    draft.files["checkpoints/sft/notes.md"] = b"# notes\n" + data.replace(b"\0", b"\0")
    assert verify_result(draft.write(tmp_path / "run")).refused_by == ["V21"]


@pytest.mark.parametrize(
    "config",
    [
        {"n_layer": 10**6},
        {"num_hidden_layers": 2**62},
        {"n_embd": 10**15},
        {"vocab_size": 1e300},
        {"nested": [{"hidden_size": -(10**12)}]},
        [],
        "text",
    ],
)
def test_a_config_that_asks_for_more_than_the_weights_hold_is_not_built(
    tmp_path: Path, config: Any
) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensors({"w": entry()}, b"1234"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SchemaError):
        _check_config(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        b'{"loader": "reference", "n_layer": 99999999, "n_embd": 64}',
        b'{"loader": "reference", "n_layer": "many"}',
        b'{"loader": ["reference"]}',
        b'{"loader": "../../evil"}',
        b'{"loader": "reference", "n_head": 0, "vocab_size": 1}',
        b'{"loader": "reference", "loader": "huggingface"}',
        b"[" * 10**5,
        b'"text"',
        b"{}",
    ],
)
def test_re_evaluating_a_hostile_config_ends_in_a_finding(tmp_path: Path, config: bytes) -> None:
    pytest.importorskip("torch")
    draft = tamper.gpu_run(steps=24)
    draft.files["checkpoints/pretrain/config.json"] = config
    path = draft.write(tmp_path / "run")
    report = verify_result(path, Options(re_evaluate=True, core=tmp_path))
    found = [finding for check in ("V22", "V23") for finding in report.of(check)]
    assert report.exit_code in (1, 3)
    assert any(finding.status == "fail" or finding.missing for finding in found)

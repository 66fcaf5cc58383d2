"""V21: the checkpoint is the files that are listed, and nothing that could run."""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.run.contract import stage_outputs
from kit.trust.digest import FileDigest, manifest_digest
from kit.verify.checks.numbers import differences
from kit.verify.evidence import Document, Evidence, Irrelevant, safe_path
from kit.verify.finding import Check, Finding, fail, missing, ok, skip, warn

_STAGES = {"tokenizer": "tokenizer", "base": "pretrain", "chat": "sft"}
# Nothing here is executed when a model is loaded.
_PLAIN = {
    ".safetensors",
    ".json",
    ".jsonl",
    ".txt",
    ".model",
    ".md",
    ".toml",
    ".bin.json",
    ".tiktoken",
}
_RUNNABLE = {
    ".pkl",
    ".pickle",
    ".pt",
    ".pth",
    ".ckpt",
    ".bin",
    ".npy",
    ".npz",
    ".py",
    ".pyc",
    ".so",
    ".sh",
    ".zip",
    ".gz",
    ".tar",
    ".h5",
    ".joblib",
    ".dill",
}
_MAGIC = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "a zip archive (torch.save)",
    b"\x7fELF": "a program",
    b"\x1f\x8b": "a gzip archive",
    b"#!": "a script",
}
_MAX_HEADER_BYTES = 100 * 2**20


def checkpoint(evidence: Evidence) -> Iterator[Finding]:
    """Manifests are the log's, name only plain files inside, and the files are those."""
    document, story = evidence.document, evidence.story
    findings: list[Finding] = []
    for part, stage in _STAGES.items():
        logged = story.artifacts.get(stage)
        expected = logged and {key: logged[key] for key in ("folder", "digest", "files")}
        for place, want, found in differences(
            expected, document["checkpoint"][part], f"checkpoint.{part}"
        ):
            findings.append(fail("differs from the log", place, expected=want, found=found))
    if not story.artifacts:
        yield from findings
        if not findings:
            raise Irrelevant("the run left no outputs")
        return
    counted = absent = elsewhere = 0
    for stage, artifact in story.artifacts.items():
        found, files, gone = _one(evidence, stage, artifact)
        findings += found
        counted += files
        if files == 0 and stage in _STAGES.values():
            elsewhere += gone  # a submission holds text; its weights lie in a model repository
        else:
            absent += gone
    yield from findings
    if any(finding.status == "fail" for finding in findings):
        return
    if absent:
        yield missing(f"{absent} of {counted + absent} listed files are not beside the result")
    elif elsewhere:
        yield skip(
            f"{elsewhere} files are not beside the result: their names and sizes were checked, "
            f"their content was not ({counted} others were)"
        )
    else:
        yield ok(f"{counted} files by digest, safetensors and plain text only")


def _one(evidence: Evidence, stage: str, artifact: Document) -> tuple[list[Finding], int, int]:
    """Findings, files counted, and files absent, of one stage's outputs."""
    folder, files = artifact["folder"], artifact["files"]
    place = f"artifacts of {stage}"
    if folder != stage_outputs(stage):
        return [fail("outputs in a folder that is not the stage's", place, found=folder)], 0, 0
    findings: list[Finding] = []
    names: set[str] = set()
    for file in files:
        path = file["path"]
        if not safe_path(path):
            findings.append(
                fail("a name that leads elsewhere or reads two ways", place, found=path)
            )
        elif path.casefold() in names:
            findings.append(fail("a name twice, or twice but for its case", place, found=path))
        elif _suffix(path) in _RUNNABLE:
            findings.append(
                fail("a kind of file that can run when it is loaded", place, found=path)
            )
        elif _suffix(path) not in _PLAIN:
            findings.append(warn("a kind of file that no loader needs", place, found=path))
        names.add(path.casefold())
    if any(finding.status == "fail" for finding in findings):
        return findings, 0, 0
    digest = manifest_digest([FileDigest(f["path"], f["bytes"], f["sha256"]) for f in files])
    if digest != artifact["digest"]:
        findings.append(
            fail(
                "the digest of the manifest is not that of its files",
                place,
                expected=digest,
                found=artifact["digest"],
            )
        )
    if evidence.folder.joinpath(folder).is_symlink() or not evidence.inside(folder):
        return [*findings, fail("a folder of the run is a symbolic link", folder)], 0, 0
    if not evidence.folder.joinpath(folder).is_dir():
        return findings, 0, len(files)
    counted = absent = 0
    for file in files:
        relative = f"{folder}/{file['path']}"
        path = evidence.folder / relative
        if not evidence.inside(relative):
            findings.append(fail("a symbolic link", relative))
            continue
        if not path.exists():
            absent += 1
            continue
        counted += 1
        if not path.is_file():
            findings.append(fail("no regular file", relative))
            continue
        size = path.stat().st_size
        if size != file["bytes"]:
            findings.append(
                fail("another size than listed", relative, expected=file["bytes"], found=size)
            )
            continue
        found = evidence.digest(relative)
        if found != file["sha256"]:
            findings.append(
                fail("another content than listed", relative, expected=file["sha256"], found=found)
            )
            continue
        findings += _content(path, relative)
    if stage not in ("core", "chat_eval"):
        findings += _strangers(evidence, folder, names)
    return findings, counted, absent


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _content(path: Path, relative: str) -> Iterator[Finding]:
    with path.open("rb") as file:
        start = file.read(8)
    if _suffix(relative) == ".safetensors":
        problem = safetensors_problem(path)
        if problem:
            yield fail(f"no whole safetensors file: {problem}", relative)
        return
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            yield fail(f"holds {what}", relative)


def safetensors_problem(path: Path) -> str:
    """What is wrong with a safetensors file's layout; empty when its tensors tile it exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            return "shorter than its header"
        length = struct.unpack("<Q", prefix)[0]
        if length > min(size - 8, _MAX_HEADER_BYTES):
            return "header longer than the file"
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return "header is not JSON"
    if not isinstance(header, dict):
        return "header is no object"
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        span = _offsets(entry.get("data_offsets") if isinstance(entry, dict) else None)
        if span is None:
            return f"tensor {name[:60]!r} has no offsets"
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end or stop < begin:
            return "tensors overlap or leave holes"
        end = stop
    return "" if end == size - 8 - length else "bytes that belong to no tensor"


def _offsets(value: Any) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value):
        return value[0], value[1]
    return None


def _strangers(evidence: Evidence, folder: str, names: set[str]) -> Iterator[Finding]:
    """Files beside the listed ones; a trainer's own state for resuming is none of a loader's."""
    root = evidence.folder / folder
    for entry in evidence.listing(folder):
        relative = Path(entry.path).relative_to(root).as_posix()
        if relative.startswith("state"):
            continue
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            yield fail("a symbolic link among the outputs", f"{folder}/{relative}")
        elif stat.S_ISREG(mode) and relative.casefold() not in names:
            say = fail if _suffix(relative) in _RUNNABLE else warn
            yield say("a file that the manifest does not list", f"{folder}/{relative}")


CHECKS = (
    Check(
        "V21",
        "Checkpoint",
        "Swapped weights; code, links and archives in a checkpoint; names that lead elsewhere.",
        "checkpoint, artifacts events, the files themselves",
        checkpoint,
    ),
)

"""V21: the checkpoint is the files that are listed, and nothing that could run."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from kit.contract import stage_outputs
from kit.events import Artifacts, Model
from kit.files import open_regular
from kit.trust.digest import FileDigest, manifest_digest
from kit.typed import to_json
from kit.verify.checks.numbers import unequal
from kit.verify.evidence import Evidence, Irrelevant, safe_path
from kit.verify.finding import Check, Finding, fail, missing, ok, skip, warn
from kit.verify.weights import BrokenWeights, read_weights

_STAGES = {"tokenizer": "tokenizer", "base": "pretrain", "chat": "sft"}
# The only kinds of file that a checkpoint may hold: none of them is executed when it is loaded.
_PLAIN = {
    ".safetensors",
    ".json",
    ".jsonl",
    ".txt",
    ".model",
    ".md",
    ".toml",
    ".tiktoken",
}
# A trainer's own state for resuming; no loader reads it, and no manifest lists it.
_STATE = "state"
_MAGIC = {
    b"PK\x03\x04": "a zip archive (torch.save)",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x93NUMPY": "a NumPy array, which may hold a pickle",
    b"\x89HDF": "an HDF5 file",
    b"#!": "a script",
}
_LEAST_BYTES = 0.5  # of a parameter: four bits
_PICKLE_PROTOCOLS = range(6)
_TEXT_BYTES = 2**20  # of a text file, that are looked at


def checkpoint(evidence: Evidence) -> Iterator[Finding]:
    """Manifests are the log's, name only plain files inside, and the files are those."""
    document, log = evidence.document, evidence.log
    findings: list[Finding] = []
    for part, stage in _STAGES.items():
        logged = log.artifacts.get(stage)
        expected = logged and {
            "folder": logged.folder,
            "digest": logged.digest,
            "files": to_json(logged.files),
        }
        stated = document["checkpoint"][part]
        findings += unequal(expected, stated, f"checkpoint.{part}", "the log")
    if not log.artifacts:
        yield from findings
        if not findings:
            raise Irrelevant("the run left no outputs")
        return
    counted = absent = elsewhere = 0
    for stage, artifact in log.artifacts.items():
        found, files, gone = _one(evidence, stage, artifact)
        findings += found
        counted += files
        if not found and stage in ("pretrain", "sft"):
            findings += _parameters(evidence, artifact)
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


def _one(evidence: Evidence, stage: str, artifact: Artifacts) -> tuple[list[Finding], int, int]:
    """Findings, files counted, and files absent, of one stage's outputs."""
    folder, files = artifact.folder, artifact.files
    place = f"artifacts of {stage}"
    if folder != stage_outputs(stage):
        return [fail("outputs in a folder that is not the stage's", place, found=folder)], 0, 0
    findings: list[Finding] = []
    names: set[str] = set()
    for file in files:
        path = file.path
        if not safe_path(path):
            findings.append(
                fail("a name that leads elsewhere or reads two ways", place, found=path)
            )
        elif path.casefold() in names:
            findings.append(fail("a name twice, or twice but for its case", place, found=path))
        elif _suffix(path) not in _PLAIN:
            findings.append(
                fail(
                    "a kind of file that a checkpoint may not hold",
                    place,
                    expected=", ".join(sorted(_PLAIN)),
                    found=path,
                )
            )
        names.add(path.casefold())
    if any(finding.status == "fail" for finding in findings):
        return findings, 0, 0
    digest = manifest_digest([FileDigest(f.path, f.bytes, f.sha256) for f in files])
    if digest != artifact.digest:
        findings.append(
            fail(
                "the digest of the manifest is not that of its files",
                place,
                expected=digest,
                found=artifact.digest,
            )
        )
    if evidence.folder.joinpath(folder).is_symlink() or not evidence.inside(folder):
        return [*findings, fail("a folder of the run is a symbolic link", folder)], 0, 0
    if not evidence.folder.joinpath(folder).is_dir():
        return findings, 0, len(files)
    counted = absent = 0
    for file in files:
        relative = f"{folder}/{file.path}"
        target = evidence.folder / relative
        if not evidence.inside(relative):
            findings.append(fail("a symbolic link", relative))
            continue
        if not target.exists():
            absent += 1
            continue
        counted += 1
        if not target.is_file():
            findings.append(fail("not a regular file", relative))
            continue
        size = target.stat().st_size
        if size != file.bytes:
            findings.append(
                fail("another size than listed", relative, expected=file.bytes, found=size)
            )
            continue
        found = evidence.digest(relative)
        if found != file.sha256:
            findings.append(
                fail("another content than listed", relative, expected=file.sha256, found=found)
            )
            continue
        findings += _content(target, relative)
    if stage not in ("core", "chat_eval"):
        findings += _strangers(evidence, folder, names)
    return findings, counted, absent


def _parameters(evidence: Evidence, artifact: Artifacts) -> Iterator[Finding]:
    """The weights are the model of the log; judged by their sizes where they lie elsewhere."""
    models = evidence.log.of("pretrain", Model)
    names = [f for f in artifact.files if _suffix(f.path) == ".safetensors"]
    names = [file for file in names if not file.path.startswith("snapshots/")]
    if not models or not names:
        return
    stated, folder = models[-1].data.parameters, artifact.folder
    listed = sum(file.bytes for file in names)
    if listed < stated * _LEAST_BYTES:
        yield fail(
            "the weights are too small for the model",
            f"artifacts of {artifact.stage}",
            expected=f"at least {stated * _LEAST_BYTES:,.0f} bytes for {stated:,} parameters",
            found=f"{listed:,}",
        )
        return
    paths = [evidence.folder / folder / file.path for file in names]
    if not all(path.is_file() for path in paths):
        return
    held = sum(read_weights(path).parameters for path in paths)
    # Another trainer may count tied tables twice, or keep buffers beside its parameters.
    slack = 0 if evidence.reference_trainer else 0.5
    if abs(held - stated) > slack * stated:
        yield fail(
            "the weights are not those of the model in the log",
            f"{folder}: parameters",
            expected=stated,
            found=held,
        )


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _content(path: Path, relative: str) -> Iterator[Finding]:
    """What is wrong with a file's content; its name says what it should be."""
    if _suffix(relative) == ".safetensors":
        try:
            read_weights(path)
        except BrokenWeights as error:
            yield fail(f"not a whole safetensors file: {error}", relative)
    else:
        what = foreign_content(path)
        if what:
            yield fail(f"holds {what}", relative)
            return
    if zipfile.is_zipfile(path):  # also one behind other content
        yield fail("a zip archive at the end of the file", relative)


def foreign_content(path: Path) -> str:
    """What a file that should be text holds instead; empty for text."""
    with open_regular(path) as file:
        start = file.read(_TEXT_BYTES)
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            return what
    if len(start) > 1 and start[0] == 0x80 and start[1] in _PICKLE_PROTOCOLS:
        return "a pickle"
    if _suffix(path.name) == ".model":
        return ""  # SentencePiece writes a protocol buffer
    if b"\0" in start or start[257:262] == b"ustar":
        return "no text"
    try:
        start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # the last character may be cut
            return "no text"
    if start.lstrip().startswith((b"(lp", b"(dp", b"c__builtin__", b"cos\n", b"cposix\n")):
        return "a pickle"
    return ""


def _strangers(evidence: Evidence, folder: str, names: set[str]) -> Iterator[Finding]:
    """Files beside the listed ones; a trainer's own state for resuming is none of a loader's."""
    root = evidence.folder / folder
    for entry in evidence.listing(folder):
        relative = Path(entry.path).relative_to(root).as_posix()
        if relative.split("/")[0] == _STATE:
            continue
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            yield fail("a symbolic link among the outputs", f"{folder}/{relative}")
        elif stat.S_ISREG(mode) and relative.casefold() not in names:
            plain = _suffix(relative) in _PLAIN and not foreign_content(Path(entry.path))
            say = warn if plain or _unfinished(relative) else fail
            yield say("a file that the manifest does not list", f"{folder}/{relative}")
        elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            yield fail("not a regular file", f"{folder}/{relative}")


def _unfinished(relative: str) -> bool:
    """Whether the name is that of a file which a killed process had not yet renamed."""
    return relative.endswith(".tmp")


CHECKS = (
    Check(
        "V21",
        "Checkpoint",
        "Swapped weights; code, links and archives in a checkpoint; names that lead elsewhere.",
        "checkpoint, artifacts events, the files themselves",
        checkpoint,
    ),
)

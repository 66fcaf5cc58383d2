"""V21: the files of the checkpoint."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import tamper
from tamper import Draft

from kit.trust.digest import FileDigest, manifest_digest, sha256_bytes
from mutations.registry import mutation, typed

WEIGHTS = "checkpoints/pretrain/model.safetensors"


def file_mutation(name: str, change: Callable[[Path], Any], expected: str = "V21") -> None:
    mutation(name, expected, kind="file")(change)


def write(relative: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / relative).write_bytes(content)


def link(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "weights")
    (folder / WEIGHTS).symlink_to(folder / "weights")


def link_folder(folder: Path) -> None:
    (folder / "checkpoints/pretrain").rename(folder / "moved")
    (folder / "checkpoints/pretrain").symlink_to(folder / "moved")


file_mutation("other weights of the same size", write(WEIGHTS, tamper.safetensors(77)))
file_mutation("weights cut short", write(WEIGHTS, tamper.safetensors(1)[:-9]))
file_mutation("weights behind a link", link)
file_mutation("a folder behind a link", link_folder)
file_mutation("code beside the weights", write("checkpoints/sft/modeling.py", b"import os\n"))
file_mutation("a pickle beside the weights", write("checkpoints/sft/extra.pkl", b"\x80\x04."))
file_mutation("edited CORE outcomes", write("eval/core.json", b"{}"))
file_mutation("another tokenizer", write("tokenizer/tokenizer.json", b'{"kind":"new"}'))
typed(
    "typed weights digest",
    "V21",
    "checkpoint",
    "base",
    "files",
    1,
    "sha256",
    value="sha256:" + "0" * 64,
)
typed(
    "typed tokenizer digest", "V21", "checkpoint", "tokenizer", "digest", value="sha256:" + "0" * 64
)
typed("checkpoint not shown", "V21", "checkpoint", "chat", value=None)


def manifest_mutation(name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """A name or size changed in the log's manifest, digest and all."""

    @mutation(name, "V21", kind="draft")
    def apply(draft: Draft) -> None:
        event = next(e for e in draft.of("artifacts") if e["data"]["stage"] == "sft")
        files = [
            {
                "path": path.removeprefix("checkpoints/sft/"),
                "bytes": len(c),
                "sha256": sha256_bytes(c),
            }
            for path, c in sorted(draft.files.items())
            if path.startswith("checkpoints/sft/")
        ]
        change(files)
        event["data"]["files"] = files
        event["data"]["digest"] = manifest_digest(
            [FileDigest(f["path"], f["bytes"], f["sha256"]) for f in files]
        )


manifest_mutation(
    "a name that climbs out", lambda files: files[0].update(path="../../../etc/passwd")
)
manifest_mutation("an absolute name", lambda files: files[0].update(path="/etc/passwd"))
manifest_mutation("a Windows name", lambda files: files[0].update(path="..\\..\\secret"))
manifest_mutation("a name with two slashes", lambda files: files[0].update(path="a//b"))
manifest_mutation(
    "a name with an invisible letter", lambda files: files[0].update(path="config\u200b.json")
)
manifest_mutation(
    "a name in look-alike letters", lambda files: files[1].update(path="m\u043edel.safetensors")
)
manifest_mutation("a name with a line end", lambda files: files[0].update(path="a\nb"))
manifest_mutation("a name twice", lambda files: files.append(files[0]))
manifest_mutation(
    "names apart only in case", lambda files: files.append({**files[0], "path": "Config.json"})
)
manifest_mutation("a wrong size", lambda files: files[1].update(bytes=1))
manifest_mutation(
    "a pickle in the manifest", lambda files: files.append({**files[0], "path": "x.pkl"})
)
manifest_mutation(
    "code in the manifest", lambda files: files.append({**files[0], "path": "modeling.py"})
)


def content_mutation(name: str, file: str, content: bytes) -> None:
    """A file of the checkpoint that was bad from the beginning."""

    @mutation(name, "V21", kind="draft")
    def apply(draft: Draft) -> None:
        draft.files[f"checkpoints/sft/{file}"] = content


def zipped() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * 10_000_000)
    return buffer.getvalue()


content_mutation("a pickle called config.json", "config.json", b"\x80\x04\x95.")
content_mutation("a zip bomb called tokenizer.json", "tokenizer.json", zipped())
content_mutation("a script called tokenizer.json", "tokenizer.json", b"#!/bin/sh\nrm -rf /\n")
content_mutation(
    "safetensors with bytes to spare", "model.safetensors", tamper.safetensors(2) + b"more"
)
content_mutation("safetensors with a lying header", "model.safetensors", b"\xff" * 8 + b"{}")


@mutation("a digest of a manifest that is not its files'", "V21", kind="draft")
def _(draft: Draft) -> None:
    manifest = next(e for e in draft.of("artifacts") if e["data"]["stage"] == "sft")["data"]
    files = [
        {"path": p.removeprefix("checkpoints/sft/"), "bytes": len(c), "sha256": sha256_bytes(c)}
        for p, c in sorted(draft.files.items())
        if p.startswith("checkpoints/sft/")
    ]
    manifest.update(files=files, digest="sha256:" + "0" * 64)


@mutation("outputs in another stage's folder", "V21", kind="draft")
def _(draft: Draft) -> None:
    manifest = next(e for e in draft.of("artifacts") if e["data"]["stage"] == "sft")["data"]
    manifest["folder"] = "checkpoints/pretrain"

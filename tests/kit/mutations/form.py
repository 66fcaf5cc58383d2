"""V01: the form of a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutations.registry import mutation, typed


def text_mutation(name: str, change: Callable[[bytes], bytes]) -> None:
    @mutation(name, "V01", kind="file")
    def apply(folder: Path) -> None:
        path = folder / "result.json"
        path.write_bytes(change(path.read_bytes()))


text_mutation("empty file", lambda data: b"")
text_mutation("an array", lambda data: b"[]")
text_mutation("cut in half", lambda data: data[: len(data) // 2])
text_mutation("a second document behind it", lambda data: data + b"{}")
text_mutation(
    "duplicate key", lambda data: data.replace(b'"claims": {', b'"claims": {"ranked": true, ', 1)
)
text_mutation("NaN", lambda data: data.replace(b'"total_s": ', b'"total_s": NaN, "x": ', 1))
text_mutation(
    "Infinity", lambda data: data.replace(b'"budget_s": ', b'"budget_s": Infinity,"x":', 1)
)
text_mutation(
    "overflowing float", lambda data: data.replace(b'"budget_s": ', b'"budget_s": 1e999,"x":', 1)
)
text_mutation(
    "integer past 2^53",
    lambda data: data.replace(b'"count": ', b'"count": 9007199254740993, "x": ', 1),
)
text_mutation(
    "lone surrogate", lambda data: data.replace(b'"notes": [', b'"notes": ["\\ud800", ', 1)
)
text_mutation("byte order mark", lambda data: b"\xef\xbb\xbf" + data)
text_mutation("not UTF-8", lambda data: data.replace(b'"notes": [', b'"notes": ["\xff", ', 1))
text_mutation("UTF-16", lambda data: data.decode().encode("utf-16"))
text_mutation("nested 100,000 deep", lambda data: b'{"a":' * 10**5 + b"1" + b"}" * 10**5)
text_mutation("comments", lambda data: data.replace(b"{", b"{ // honest\n", 1))


@mutation("100 MB", "V01", kind="file")
def _(folder: Path) -> None:
    with (folder / "result.json").open("r+b") as file:
        file.truncate(100 * 2**20)


@mutation("result.json is a link", "V01", kind="file")
def _(folder: Path) -> None:
    (folder / "result.json").rename(folder / "elsewhere.json")
    (folder / "result.json").symlink_to("elsewhere.json")


@mutation("field nobody checks", "V01", kind="result")
def _(result: dict[str, Any]) -> None:
    result["verified_by"] = "a friend"


@mutation("section left out", "V01", kind="result")
def _(result: dict[str, Any]) -> None:
    del result["environment"]


typed("another schema version", "V01", "schema_version", value=2)
typed("a number as text", "V01", "timing", "total_s", value="1")
typed("negative time", "V01", "timing", "total_s", value=-1.0)
typed("score above one", "V01", "quality", "core", "value", value=1.5)
typed("look-alike letters in a name", "V01", "recipe", "name", value="d2\u043e")
typed("unknown track", "V01", "recipe", "track", value="rtx4090-24h ")
typed("digest in capitals", "V01", "log", "head", value=lambda digest: digest.upper())

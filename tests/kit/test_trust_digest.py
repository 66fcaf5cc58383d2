"""Digests, against coreutils."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kit.errors import SchemaError
from kit.trust.digest import (
    DigestCache,
    manifest_digest,
    sha256_bytes,
    sha256_file,
    tree_digest,
    tree_manifest,
)


def make_tree(root: Path) -> None:
    for name in ("b.txt", "a/z.bin", "a-b/c.txt", "A.txt", "a/ü.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}\n")


def test_tree_digest_is_what_sha256sum_gives(tmp_path: Path) -> None:
    make_tree(tmp_path)
    command = (
        "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    )
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert tree_digest(tmp_path) == "sha256:" + done.stdout.split()[0]


def test_tree_digest_sees_content_names_and_moves(tmp_path: Path) -> None:
    make_tree(tmp_path)
    first = tree_digest(tmp_path)
    (tmp_path / "b.txt").write_text("other")
    second = tree_digest(tmp_path)
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert len({first, second, tree_digest(tmp_path)}) == 3


def test_patterns_choose_files(tmp_path: Path) -> None:
    make_tree(tmp_path)
    assert [file.path for file in tree_manifest(tmp_path, ["*.txt"])] == sorted(
        ["A.txt", "a-b/c.txt", "a/ü.txt", "b.txt"], key=str.encode
    )
    assert [file.path for file in tree_manifest(tmp_path, ["a/*"])] == ["a/z.bin", "a/ü.txt"]
    assert tree_digest(tmp_path, ["nothing"]) == sha256_bytes(b"") == manifest_digest([])


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "link").symlink_to("b.txt")
    with pytest.raises(SchemaError, match="symbolic link"):
        tree_digest(tmp_path)
    with pytest.raises(SchemaError, match="symbolic link"):
        sha256_file(tmp_path / "link")
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SchemaError, match="regular"):
        tree_digest(tmp_path)
    with pytest.raises(SchemaError, match="regular"):
        sha256_file(tmp_path / "pipe")


def test_a_name_with_a_line_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a\nb").write_text("")
    with pytest.raises(SchemaError, match="manifest"):
        tree_digest(tmp_path)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(9 * 2**20))
    seen: list[int] = []
    assert sha256_file(path, progress=seen.append) == sha256_bytes(path.read_bytes())
    assert sum(seen) == path.stat().st_size and len(seen) > 1


def test_cache_answers_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    cache = DigestCache(tmp_path / "cache.json")
    first = sha256_file(path, cache=cache)
    cache.save()
    cache = DigestCache(tmp_path / "cache.json")
    assert cache.get(path.stat()) == first
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_file(path, cache=cache) == sha256_bytes(b"two") != first


def test_a_broken_cache_is_an_empty_one(tmp_path: Path) -> None:
    for content in (b"{", b"[]", b'{"a": 1}', b"\xff"):
        (tmp_path / "cache.json").write_bytes(content)
        path = tmp_path / "file"
        path.write_bytes(b"x")
        assert DigestCache(tmp_path / "cache.json").get(path.stat()) is None


def test_folders_that_are_skipped_are_not_even_opened(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "code.py").write_text("1")
    before = tree_digest(tmp_path, ("*.py",), skip=("__pycache__",))
    cache = tmp_path / "inner" / "__pycache__"
    cache.mkdir(parents=True)
    (cache / "hidden.py").write_text("2")
    opened = os.scandir

    def closed(path):
        if Path(path).name == "__pycache__":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert tree_digest(tmp_path, ("*.py",), skip=("__pycache__",)) == before
    with pytest.raises(PermissionError):
        tree_digest(tmp_path, ("*.py",))

"""Files appear under their final name only when whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.files import whole_file, write_bytes


def test_a_body_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "made" / "table.jsonl"
    write_bytes(path, b"old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise ValueError("no more rows")

    with pytest.raises(ValueError, match="no more rows"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    with whole_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]

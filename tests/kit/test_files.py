"""Files appear under their final name only when whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kit.files
import reference.files


@pytest.mark.parametrize(
    ("whole_file", "write"),
    [
        (kit.files.whole_file, kit.files.write_bytes),
        (reference.files.whole_file, reference.files.write_whole),
    ],
    ids=["kit", "trainer"],
)
def test_a_body_that_fails_leaves_the_old_file_and_nothing_else(
    whole_file: Any, write: Any, tmp_path: Path
) -> None:
    path = tmp_path / "made" / "table.jsonl"
    write(path, b"old")

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

"""Which folders another user may enter; that user itself is met in tests/docker."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.run.separation import TrainerUser


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder that everybody may come to; pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        top = Path(folder, "top")
        (top / "below").mkdir(parents=True)
        yield top
        top.chmod(0o755)


@pytest.mark.parametrize(
    ("owner", "group", "mode", "may"),
    [
        (False, False, 0o755, True),
        (False, False, 0o711, True),
        (False, False, 0o700, False),
        (False, False, 0o776, False),
        (False, True, 0o710, True),
        (False, True, 0o701, False),  # the group's bit counts, not the others'
        (True, False, 0o100, True),
        (True, False, 0o077, False),
    ],
)
def test_the_first_folder_on_the_way_is_named(
    top: Path, owner: bool, group: bool, mode: int, may: bool
) -> None:
    status = top.stat()
    user = TrainerUser(
        "trainer", status.st_uid if owner else 40900, status.st_gid if group else 40900
    )
    if user.barred_from(top.parent):
        pytest.skip(f"{top.parent} cannot be reached by others on this machine")
    top.chmod(mode)
    found = user.barred_from(top)
    assert found == (None if may else top)
    if os.geteuid() == 0:  # others could not look at what is below themselves
        assert user.barred_from(top / "below") == found

"""Which state an interrupted stage goes on from."""

import errno
import io
from pathlib import Path

import pytest
import torch

from reference.errors import TrainerError
from reference.train.checkpoint import (
    STATE_FOLDER,
    drop_states_after,
    load_latest_state,
    save_state,
)


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20):
        save_state(tmp_path, step, {"of": step})
    return tmp_path


def files(folder):
    return sorted(path.name for path in (folder / STATE_FOLDER).iterdir())


def test_the_newest_whole_state_is_taken(folder):
    assert load_latest_state(folder) == (20, {"step": 20, "of": 20})
    assert (
        load_latest_state(folder, 20) == load_latest_state(folder, 99) == load_latest_state(folder)
    )
    damage(folder, 20)
    assert load_latest_state(folder, 99)[0] == 10
    damage(folder, 10)
    with pytest.raises(TrainerError, match="so is every older state"):
        load_latest_state(folder, 99)


def test_a_state_with_steps_before_it_that_nobody_heard_of_is_passed_over(folder):
    assert load_latest_state(folder, 19)[0] == 10
    assert load_latest_state(folder, 10)[0] == 10


def test_of_two_such_states_the_newer_is_taken_however_often(folder):
    assert load_latest_state(folder, 9)[0] == 20
    drop_states_after(folder, 20)
    assert load_latest_state(folder, 9)[0] == 20
    damage(folder, 20)
    assert load_latest_state(folder, 9)[0] == 10


def test_behind_the_first_such_state_the_stage_begins_anew(tmp_path):
    assert load_latest_state(tmp_path, 9) is None
    save_state(tmp_path, 10, {})
    assert load_latest_state(tmp_path, 9) is None
    assert load_latest_state(tmp_path, 10)[0] == 10


def test_states_that_will_be_written_again_are_removed(folder):
    drop_states_after(folder, 20)
    assert len(files(folder)) == 4
    drop_states_after(folder, 10)
    assert files(folder) == ["step-00000010.pt", "step-00000010.sha256"]
    drop_states_after(folder / "missing", 0)


def damage(folder, step):
    path = folder / STATE_FOLDER / f"step-{step:08}.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_a_disk_that_fills_up_while_a_state_is_saved_is_named(tmp_path, monkeypatch):
    """PyTorch's writer raises an error of its own over the refused write."""
    from reference.stage import explain

    real = Path.open

    class Full(io.FileIO):
        room = 4096

        def write(self, data):
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def open_full(self, mode="r", *arguments, **options):
        if mode == "wb" and ".pt" in self.name:
            return Full(self, "wb")
        return real(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(Exception) as raised:  # noqa: B017, PT011: whatever type PyTorch chooses
        save_state(tmp_path, 3, {"model": {"weight": torch.zeros(1 << 16)}})
    assert not isinstance(raised.value, OSError), "the refused write must be found behind it"
    assert explain(raised.value).kind == "disk_full"
    assert not [path for path in (tmp_path / STATE_FOLDER).iterdir() if path.suffix == ".pt"]

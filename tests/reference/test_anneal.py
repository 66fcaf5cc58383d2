"""The last part of training reads the anneal files, and resumes exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reference.errors import TrainerError
from reference.rows.anneal import AnnealedLoader, open_loader
from reference.rows.documents import find_shards
from reference.rows.packing import PackedLoader


class Texts:
    """Documents of one token each besides BOS (0), so that a batch says where it came from."""

    def __init__(self, token: int) -> None:
        self._documents = [np.array([0] + [token] * n) for n in (3, 5, 9, 4)]
        self.lengths = np.array([len(document) for document in self._documents])
        self.digest = str(token)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._documents[index]


def make(documents, state):
    return PackedLoader(documents, 2, 8, seed=1, prefetch=False, state=state)


def test_the_anneal_part_takes_over_at_its_share_and_resumes_there():
    loader = AnnealedLoader(make, Texts(1), Texts(2), begin=0.5)
    seen, states = [], []
    for step in range(8):
        loader.at(step / 8)
        seen.append(loader.next_batch().tokens)
        states.append(loader.state_dict())
    for step, tokens in enumerate(seen):
        assert set(tokens.unique().tolist()) == {0, 1 if step < 4 else 2}
    for cut in (2, 6):
        again = AnnealedLoader(make, Texts(1), Texts(2), begin=0.5, state=states[cut])
        for step in range(cut + 1, 8):
            again.at(step / 8)
            assert torch.equal(again.next_batch().tokens, seen[step])


def test_a_state_of_another_setting_is_refused(tmp_path: Path):
    state = make(Texts(1), None).state_dict()
    with pytest.raises(TrainerError, match=r"another data\.anneal"):
        open_loader(make, Texts(1), tmp_path, None, 0.5, state)
    assert isinstance(open_loader(make, Texts(1), tmp_path, None, 0.0, state), PackedLoader)


def test_anneal_files_are_apart_only_where_asked(tmp_path: Path):
    for name in ("train-0", "anneal-0", "validation-0"):
        (tmp_path / f"{name}.parquet").touch()
    apart = find_shards(tmp_path, anneal=True)
    assert [p.stem for p in apart.train] == ["train-0"]
    assert [p.stem for p in apart.anneal] == ["anneal-0"]
    assert [p.stem for p in find_shards(tmp_path).train] == ["anneal-0", "train-0"]
    (tmp_path / "anneal-0.parquet").unlink()
    with pytest.raises(TrainerError, match=r"no anneal\*\.parquet"):
        find_shards(tmp_path, anneal=True)

"""The reference model as the evaluator sees it: every fast path gives the plain logits."""

from pathlib import Path

import pytest
import torch

from kit.core_eval.loaders import load_model
from kit.core_eval.model import PrefixModel
from kit.core_eval.probes import check_fast_path, probe_model
from kit.core_eval.score import Paths
from kit.errors import SchemaError
from reference.checkpoint import save_model
from reference.model import GPT, ModelConfig
from reference.tokenizer import Tokenizer

TEXTS = ["Once upon a time there was a fox.", "The fox met an owl near the river.", "1 2 3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer.train(TEXTS * 20, 300)
    tokenizer.save(root / "tokenizer")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        n_layer=4,
        n_embd=48,
        n_head=4,
        n_kv_head=2,
        seq_len=24,
        short_window=6,
    )
    model = GPT(config)
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # away from the initial zeros, so that every part matters
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    save_model(root / "model", model, config, root / "tokenizer")
    return root / "model"


def test_the_checkpoint_names_its_loader_and_offers_the_whole_fast_path(checkpoint: Path) -> None:
    model = load_model(checkpoint, device="cpu")
    assert isinstance(model, PrefixModel)
    assert check_fast_path(model) == (Paths(True, True), "")
    assert model.encode(["The fox", "<|bos|>"])[1] != [model.bos_id]
    assert model.max_seq_len is None and model.context_len == 24


def test_rows_continue_a_cache_as_if_read_whole(checkpoint: Path) -> None:
    """Windows of 6 and 24, uneven rows, rows taken twice: beyond the training length, too."""
    model = load_model(checkpoint, device="cpu", dtype="float32")
    tokens = torch.randint(0, model.vocab_size, (3, 60), generator=torch.Generator().manual_seed(3))
    plain = model.logits(tokens)
    lengths = [40, 9, 31]
    prefix = tokens[:, :40].clone()
    for row, length in enumerate(lengths):
        prefix[row, length:] = model.bos_id
    with torch.inference_mode():
        states, cache = model.prefill(prefix, torch.tensor(lengths))
        rows = [1, 2, 0, 1]
        more = torch.stack([tokens[row, lengths[row] : lengths[row] + 15] for row in rows])
        for _ in range(2):
            extended = model.extend(cache, torch.tensor(rows), more)
            for r, row in enumerate(rows):
                expected = plain[row, lengths[row] : lengths[row] + 15]
                torch.testing.assert_close(model.head(extended[r]), expected, rtol=1e-4, atol=1e-4)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            model.head(states[row, :length]), plain[row, :length], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_passes_the_probes(checkpoint: Path, dtype: str) -> None:
    model = load_model(checkpoint, device="cpu", dtype=dtype)
    assert model.dtype == dtype
    assert [probe.name for probe in probe_model(model) if not probe.passed] == []


def test_a_damaged_checkpoint_is_the_kits_error(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SchemaError, match="cannot be read"):
        load_model(tmp_path, device="cpu")
